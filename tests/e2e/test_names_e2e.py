"""Gateways with a names worker and an upstream outside that keeps what it gets: every process real, whatever becomes of the worker."""

import asyncio
import itertools
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import openai
import pytest
from gateways import Gateway, private_redis, small_disk, until
from hostile import hostile, in_a_thread
from named import AT_HOME, MASKED, Model
from parrot import parrot

CONFIG = """
{names}
[upstreams.far]
kind = "openai"
base_url = "{far}"
zone = "eu"
takes_up_to = "{takes}"
[upstreams.home]
kind = "echo"
zone = "local"
takes_up_to = "{home}"
[models.m]
candidates = [{{ upstream = "far" }}, {{ upstream = "home" }}]
[cache]
semantic = false
"""
ANYWHERE = 'policy = "cost"\n[[route]]\nname = "listed"\norder_by = "listed"\n'
WORKER = "gateway.names.worker"
PLAIN = "How do I sort a list in Python?"
NAME = "Ingrid Okafor"
_numbers = itertools.count(1)


def naming():
    """A text with a name, and like none that was read before."""
    return f"Please write a letter to {NAME} about invoice {next(_numbers)}."


def plain():
    """A text without one, that nobody has asked before."""
    return f"{PLAIN} {next(_numbers)}"


@contextmanager
def gateway_with(
    folder, model, *, policy=AT_HOME, takes="internal", home="restricted", more="", timeout_s=5.0, workers=1, **options
):
    """A gateway and what stands outside, which says what it was asked. No name may have reached that, nor any log line."""
    with in_a_thread(hostile()) as far:
        far.scripts = [parrot(seed=7)]
        section = model.section(timeout_s=timeout_s)
        config = CONFIG.format(names=section, far=far.base_url, takes=takes, home=home) + more
        gateway = Gateway(folder, config, policies={"all.toml": ANYWHERE + policy}, **options)
        gateway.config.write_text(gateway.config.read_text().replace("[server]\n", f"[server]\nworkers = {workers}\n"))
        with gateway:
            yield gateway, far
        written = b"".join(path.read_bytes() for path in (folder / "state").rglob("*.jsonl"))
        sent = b"".join(body for _, body in far.requests)
        assert NAME.encode() not in written
        assert policy == "" or b"Okafor" not in sent


def asked(gateway, text):
    """A question over the SDK: who answered, and the record."""
    got = gateway.client().chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": text}])
    assert got.parse().choices[0].message.content == text
    return got.headers["x-gateway-route"], gateway.record(got.headers["x-request-id"])


def judged(gateway, text):
    """Who answered, and as what it was judged."""
    route, record = asked(gateway, text)
    return route, record["class"], record["found"], record["unsearched"]


READ = ("home/m", "confidential", ["person"], "")
AWAY = ("home/m", "restricted", [], "NamesAway")
LATE = ("home/m", "restricted", [], "NamesLate")


def state(gateway):
    """How the names worker is, in the gateway's own words."""
    return gateway.ready()["workers"]["names"]


def until_read(gateway):
    """The worker is there, and the front worker's connection to it."""
    until(lambda: state(gateway) == "ready", f"the names worker: {gateway.said}")
    until(lambda: judged(gateway, naming()) == READ, "a text that was read")


@contextmanager
def folder_away(model):
    """The model is not where it was, for a while."""
    hidden = model.folder.with_name("hidden")
    model.folder.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(model.folder)


@pytest.fixture(scope="module", params=["presidio", "gliner"])
def model(request):
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture(scope="module")
def named(model, tmp_path_factory):
    """A gateway for each engine; every test leaves its worker at work."""
    with gateway_with(tmp_path_factory.mktemp("named"), model) as (gateway, far):
        until_read(gateway)
        yield gateway, far


def test_a_name_stays_at_home(named, model):
    """What holds none goes where it went before."""
    gateway, far = named
    assert judged(gateway, naming()) == READ
    if model.engine == "presidio":  # GLiNER's weights of chance take every word for a name
        assert judged(gateway, PLAIN) == ("far/m", "public", [], "")
        assert len(far.requests) == 1


def test_a_worker_that_is_killed_comes_back(named):
    """Until then what it would have read is restricted, and the record says why."""
    gateway, _ = named
    gateway.kill(WORKER)
    until(lambda: state(gateway) != "ready", "its loss")
    assert judged(gateway, naming()) == AWAY
    until_read(gateway)


def test_a_worker_that_stands_still_is_not_waited_for_for_ever(named):
    """After `timeout_s` a request counts as restricted; when it goes on, so does reading."""
    gateway, _ = named
    gateway.kill(WORKER, signal.SIGSTOP)
    assert judged(gateway, naming()) == LATE
    gateway.kill(WORKER, signal.SIGCONT)
    until_read(gateway)


def test_a_model_that_vanishes_is_named_and_looked_for_again(named, model):
    """A worker that runs has it in memory; the next one says what is missing, and starts when it is back."""
    gateway, _ = named
    with folder_away(model):
        assert judged(gateway, naming()) == READ
        gateway.kill(WORKER)
        until(lambda: str(model.folder) in state(gateway), "the reason")
        assert judged(gateway, naming()) == AWAY
    until_read(gateway)


def test_a_refusal_says_that_nothing_was_read(tmp_path):
    """Where nobody may answer what is restricted, the client is told why it counts as that."""
    missing, told = (
        Model("presidio", tmp_path / "none"),
        pytest.raises(openai.PermissionDeniedError, match="the names worker is away"),
    )
    with gateway_with(tmp_path, missing, home="confidential") as (gateway, _), told:
        asked(gateway, PLAIN)


def test_a_pipeline_that_is_not_there_is_named(tmp_path):
    """On the terminal and in /ready, with what mends it; until then every request counts as restricted."""
    with gateway_with(tmp_path, Model("presidio", "no_such_pipeline")) as (gateway, _):
        until(lambda: "no_such_pipeline" in state(gateway), "the reason")
        assert "spacy download" in state(gateway)
        assert judged(gateway, PLAIN) == AWAY


def test_a_config_that_lost_its_model_sends_no_name_away(tmp_path):
    """The start tells the line that asks for names; the policies of before stay in force, and no request passes for searched."""
    model = Model("presidio", "no_such_pipeline")
    with gateway_with(tmp_path, model) as (gateway, _):
        assert "spacy download no_such_pipeline" in gateway.cli("check").stdout
    config = CONFIG.format(names="", far="http://127.0.0.1:9/v1", takes="internal", home="restricted")
    with Gateway(tmp_path, config, policies={"all.toml": ANYWHERE + AT_HOME}) as without:
        without.key = gateway.key
        assert without.ready()["policy_files"].startswith("broken at policies/all.toml:6:17; the last good ones stay in force")
        assert 'policies/all.toml:6:17: "person" is found by a model only' in without.said
        assert judged(without, naming()) == AWAY
        assert 'policies/all.toml:6:17: "person"' in without.cli("check").stderr


@pytest.mark.parametrize("text", ['[names]\nmodle = "x"\n', "[names]\n", '[names]\nmodel = "x"\nengine = "presido"\n'])
def test_a_wrong_setting_is_told_with_its_place(tmp_path, text):
    config = CONFIG.format(names=text, far="http://127.0.0.1:9/v1", takes="internal", home="restricted")
    said = Gateway(tmp_path, config, policies={"all.toml": ANYWHERE + AT_HOME}).cli("check")
    assert said.returncode != 0
    assert "config.toml:" in said.stdout + said.stderr
    assert "model" in said.stdout + said.stderr or 'did you mean "presidio"' in said.stdout + said.stderr


@pytest.mark.redis
def test_a_dead_redis_changes_nothing_about_names(presidio_model, tmp_path):
    """Two front workers, each with a connection of its own to the one names worker."""
    with private_redis(tmp_path) as (url, redis):
        more = 'redis_url_env = "TEST_REDIS_URL"\n'
        env = {"TEST_REDIS_URL": url}
        with gateway_with(tmp_path / "two", presidio_model, more=more, workers=2, env=env) as (gateway, _):
            until(lambda: all(judged(gateway, naming()) == READ for _ in range(10)), "both front workers' connections")
            redis.kill()
            redis.wait()
            for _ in range(10):
                assert judged(gateway, naming()) == READ
            gateway.kill(WORKER)
            until(lambda: state(gateway) != "ready", "its loss")
            assert {judged(gateway, naming())[:2] for _ in range(10)} == {AWAY[:2]}
            until_read(gateway)


def test_a_full_disk_changes_nothing_about_names(presidio_model, tmp_path):
    """The whole state folder is full: what is read stays as it is, and a worker that dies is missed and comes back."""
    dropping = '[logs]\non_full = "drop"\nqueue_limit = 200\n'

    def route(text):
        return gateway.post("chat/completions", json=body(text)).headers["x-gateway-route"]

    with small_disk(tmp_path / "state", "8m") as resize:  # noqa: SIM117 - the gateway needs its disk
        with gateway_with(tmp_path, presidio_model, more=dropping) as (gateway, _):
            until_read(gateway)
            fill(tmp_path / "state" / "filler")

            assert [route(naming()), route(plain())] == ["home/m", "far/m"]
            gateway.kill(WORKER)
            until(lambda: state(gateway) != "ready", "its loss")
            assert [route(naming()), route(plain())] == ["home/m", "home/m"]
            until(lambda: state(gateway) == "ready", "its return")
            until(lambda: route(plain()) == "far/m", "reading again")
            assert route(naming()) == "home/m"
            resize("64m")


def fill(path):
    """Until the disk has no room for anything more."""
    with path.open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(4096)):
            pass


def body(text, **fields):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize(("policy", "takes"), [(AT_HOME, "internal"), (MASKED, "restricted")], ids=["at home", "masked"])
def test_nothing_leaves_unread_when_the_worker_dies_under_fifty_requests(presidio_model, tmp_path, policy, takes):
    """Each is answered with its own words, from home or masked from outside, and has its one record."""
    killed = threading.Event()
    with gateway_with(tmp_path, presidio_model, policy=policy, takes=takes, timeout_s=60.0) as (gateway, _):
        until(lambda: judged(gateway, naming())[1:] == READ[1:], "the worker")
        barrier = threading.Barrier(51)

        def ask(number):
            """Again and again, and once more after the worker has died."""
            answers, over = [], False
            barrier.wait(60)
            while not over:
                over, text = killed.is_set(), " ".join(naming() for _ in range(20))
                answers.append((gateway.post("chat/completions", json=body(text, stream=number % 2 == 0)), text))
            return answers

        with ThreadPoolExecutor(50) as pool:
            answers = [pool.submit(ask, number) for number in range(50)]
            before = gateway.closed()
            barrier.wait(60)
            until(lambda: gateway.closed() > before, "the first answers")
            gateway.kill(WORKER)
            killed.set()
            answers = [answer for asked in answers for answer in asked.result()]
        for got, text in answers:
            assert (got.status_code, said(got.text)) == (200, text)
        records = [gateway.record(got.headers["x-request-id"]) for got, _ in answers]
        assert {(record["class"], record["unsearched"]) for record in records} == {(READ[1], ""), (AWAY[1], "NamesAway")}
        assert {record["route"] for record in records if record["unsearched"]} == {"home/m"}
        assert {record["ending"] for record in records} <= {"complete", "fallback"}


def said(text):
    """What an answer says, streamed or whole."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("data: {", "{"))]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice.get("delta", choice.get("message")).get("content") or "" for choice in choices)


async def test_a_stream_that_has_begun_ends_whole_without_the_worker(presidio_model, tmp_path):
    """What was masked on its way out needs no model on its way back."""
    async with hostile() as far:
        go_on = asyncio.Event()

        def halting(request, sent):
            steps = parrot(seed=7)(request, sent)
            return [*steps[:4], go_on, *steps[4:]]

        config = CONFIG.format(names=presidio_model.section(), far=far.base_url, takes="restricted", home="restricted")
        gateway = Gateway(tmp_path, config, policies={"all.toml": ANYWHERE + MASKED})
        with gateway:
            far.scripts = [parrot(seed=7)]
            await asyncio.to_thread(until, lambda: judged(gateway, naming())[0] == "far/m", "the worker")
            far.scripts, text = [halting], naming()
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
                stream = await client.chat.completions.create(**body(text, stream=True))
                events = [await anext(stream)]
                await asyncio.to_thread(gateway.kill, WORKER)
                await asyncio.to_thread(until, lambda: state(gateway) != "ready", "its loss")
                go_on.set()
                events += [event async for event in stream]
        pieces = [choice.delta.content or "" for event in events for choice in event.choices]
        assert "".join(pieces) == text
        assert b"Okafor" not in b"".join(sent for _, sent in far.requests)
