"""Names of people, places and firms: a real model in a real process, what the gateway makes of them, and every way it can be away."""

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from front import POLICY
from hostile import hostile
from named import AT_HOME, MASKED
from parrot import parrot

from gateway import config, privacy
from gateway.errors import ConfigError
from gateway.names import Names, NamesAway, NamesFailed, NamesLate, NamesTooLong, engines, needs
from gateway.names.frames import Failed, Found, Read
from gateway.names.worker import Worker
from gateway.policy.generation import Catalogue, Generation, load
from gateway.policy.store import Store, Watcher
from gateway.privacy import DETECTOR, SEPARATOR
from gateway.weights import WeightsError

TEXT = "Please write a letter to Ingrid Okafor in Vienna, ada@example.org."
KINDS = frozenset({"person", "location"})
POLICY_AT_HOME, POLICY_MASKED = POLICY + AT_HOME, POLICY + MASKED


@pytest.fixture(scope="session")
def presidio(presidio_model):
    return engines.load("presidio", str(presidio_model.folder), language="en", least_score=presidio_model.least_score)


@pytest.fixture(scope="module")
def worker(presidio_model, tmp_path_factory):
    """A names worker, and its socket; SIGSTOP and SIGCONT are a test's own business."""
    path = tmp_path_factory.mktemp("run") / "names.sock"
    with subprocess.Popen(presidio_model.command(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        states = []
        while not states or states[-1]["state"] == "loading":
            states.append(json.loads(process.stdout.readline()))
        assert states[-1]["state"] == "ready", states
        yield process, path
        process.send_signal(signal.SIGCONT)
        process.terminate()


@asynccontextmanager
async def names(path, *, max_chars=10_000, timeout_s=60.0, clock=time.monotonic):
    """A front worker's end; connected, if there is a worker."""
    made = Names(str(path), max_chars=max_chars, timeout_s=timeout_s, clock=clock)
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(30):
        while path.exists() and not made._client.connected:
            await asyncio.sleep(0.01)
    yield made
    running.cancel()


def spoken(spans, text=TEXT):
    return [(kind, text[start:end]) for kind, start, end in spans]


def test_an_engine_says_where_names_stand(presidio):
    """By kind and place, in their order; nothing where there is none."""
    assert spoken(presidio.locate(TEXT)) == [("person", "Ingrid Okafor"), ("location", "Vienna")]
    assert presidio.locate("") == presidio.locate("How do I sort a list in Python?") == []


@pytest.mark.parametrize(
    ("engine", "model"), [("presidio", "no_such_pipeline"), ("gliner", "/no/such/folder"), ("presidio", "/etc")]
)
def test_a_model_that_is_not_there_is_told_with_its_mend(engine, model):
    """Before anything reaches for the network."""
    with pytest.raises(WeightsError) as told:
        engines.load(engine, model, language="en", least_score=0.5)
    assert model in str(told.value)


@pytest.mark.parametrize(("engine", "package"), [("presidio", "presidio_analyzer"), ("gliner", "gliner")])
def test_a_package_that_is_not_there_is_told_with_its_mend(engine, package, presidio_model, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WeightsError, match="pip install"):
        engines.load(engine, str(presidio_model.folder), language="en", least_score=0.5)


@pytest.mark.parametrize(("most_words", "most_tokens"), [(150, 472), (7, 472), (150, 45), (1, 1)])
def test_long_texts_are_read_in_windows_that_miss_no_word(most_words, most_tokens):
    """What GLiNER would drop behind a limit stands in another window; none is over a limit, and a word that alone is, in none."""
    words = [engines._Word(10 * number, 10 * number + 9, 1 + number % 50 * (number % 3)) for number in range(1_000)]
    windows = list(engines._windows(words, most_words, most_tokens))
    held = [[word for word in words if begin <= word.start and word.end <= end] for begin, end in windows]
    assert all(len(window) <= most_words and sum(word.tokens for word in window) <= most_tokens for window in held)
    assert {word for window in held for word in window} == {word for word in words if word.tokens <= most_tokens}
    assert windows == sorted(set(windows))
    assert list(engines._windows([], most_words, most_tokens)) == []


async def test_names_are_found_beside_patterns(worker):
    """The two methods of a Finder: kinds over all strings, places in the joined text; only kinds that were asked for."""
    async with names(worker[1]) as made:
        finder = made.beside(DETECTOR, KINDS)
        whole = SEPARATOR.join(["user", TEXT, "Dear John Taylor,"])
        assert await asyncio.to_thread(finder.kinds_of_all, ["user", TEXT]) == {"person", "location", "email"}
        found = await asyncio.to_thread(finder.locate, whole)
        assert [(one.kind, whole[one.start : one.end]) for one in found] == [
            ("person", "Ingrid Okafor"), ("location", "Vienna"), ("email", "ada@example.org"), ("person", "John Taylor"),
        ]  # fmt: skip
        assert await asyncio.to_thread(made.beside(DETECTOR, {"organization"}).kinds_of_all, [TEXT]) == {"email"}
        assert (DETECTOR.waits, finder.waits, finder.patterns) == (False, True, DETECTOR)


async def test_what_was_read_before_is_not_read_again(worker):
    """Not even a worker that stands still is missed for it, nor does it count against the limit."""
    process, path = worker
    async with names(path, max_chars=len(TEXT), timeout_s=0.3) as made:
        first = await asyncio.to_thread(made.read, [TEXT])
        process.send_signal(signal.SIGSTOP)
        assert await asyncio.to_thread(made.read, [TEXT, TEXT]) == [*first, *first]
        with pytest.raises(NamesTooLong):
            await asyncio.to_thread(made.read, [TEXT + "!"])
        scanned = await asyncio.to_thread(
            privacy.scan, {"content": "Another."}, max_chars=1_000, detector=made.beside(DETECTOR, KINDS)
        )
        process.send_signal(signal.SIGCONT)
    assert scanned.failed == "NamesLate"
    assert privacy.classify(scanned, {}) == "restricted"


async def test_a_worker_that_was_late_keeps_nobody_else_waiting(worker, presidio):
    """Until its time is over others are told at once, without asking it; then one finds out, and all are read again."""
    process, path = worker
    now = [0.0]
    async with names(path, timeout_s=0.3, clock=lambda: now[0]) as made:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(NamesLate, match=r"within 0\.3 s"):
            await asyncio.to_thread(made.read, [TEXT])
        process.send_signal(signal.SIGCONT)
        made._timeout_s = 60.0
        with pytest.raises(NamesLate, match="last answer"):
            await asyncio.to_thread(made.read, [TEXT])
        assert made.trouble == "late with its last answer"
        now[0] = 0.4
        assert spoken((await asyncio.to_thread(made.read, [TEXT]))[0]) == spoken(presidio.locate(TEXT))
        assert made.trouble == ""
        assert await asyncio.to_thread(made.read, [TEXT + " Bye."])


async def test_what_nobody_waits_for_any_more_is_not_read(worker, presidio):
    """A burst makes no more late than itself: what waited too long in the line is passed over."""
    read = []
    late = Worker(SimpleNamespace(locate=lambda text: read.append(text) or []))
    assert late._read(Read(1, [TEXT], 0.0), time.monotonic() - 1) == Failed(1, "late")
    assert late._read(Read(2, ["hello"], 9.0), time.monotonic() + 9) == Found(2, [[]])
    assert read == ["hello"]
    process, path = worker
    async with names(path, timeout_s=0.3, clock=itertools.count().__next__) as made:
        process.send_signal(signal.SIGSTOP)
        for number in range(3):
            with pytest.raises(NamesLate):
                await asyncio.to_thread(made.read, [f"{TEXT} {number}"])
        process.send_signal(signal.SIGCONT)
        made._timeout_s = 60.0
        assert spoken((await asyncio.to_thread(made.read, [TEXT]))[0]) == spoken(presidio.locate(TEXT))


async def test_a_text_on_which_the_model_fails_does_not_pass_for_read(tmp_path):
    """The worker lives on and says no more than the failure's type."""

    def fail(text):
        raise ValueError(text)

    async def serve(reader, writer):
        await Worker(SimpleNamespace(locate=fail)).serve(reader, writer)
        await writer.wait_closed()
        over.set()

    path, over = tmp_path / "names.sock", asyncio.Event()
    async with await asyncio.start_unix_server(serve, path):
        async with names(path) as made:
            for _ in range(2):
                with pytest.raises(NamesFailed) as told:
                    await asyncio.to_thread(made.read, [TEXT])
                assert TEXT not in str(told.value)
        async with asyncio.timeout(30):
            await over.wait()


async def test_without_its_worker_nothing_passes_for_read(tmp_path):
    """And on the event loop, which would wait for itself, it refuses to work."""
    async with names(tmp_path / "none.sock") as made:
        with pytest.raises(NamesAway):
            await asyncio.to_thread(made.read, [TEXT])
        with pytest.raises(AssertionError):
            made.read([TEXT])
    with pytest.raises(NamesAway):
        Names(str(tmp_path / "none.sock"), max_chars=100, timeout_s=1.0).read(["hello"])


@asynccontextmanager
async def front(world, worker, server, policy, takes_up_to):
    """A front worker before an upstream outside, which may have this class, and one at home."""
    far = {"base_url": server.base_url, "takes_up_to": takes_up_to, "zone": "eu"}
    made = world(policy=policy, far=far, home={"takes_up_to": "restricted", "zone": "local"})
    async with names(worker) as model:
        made.generation = Generation(made.policies, Catalogue.of(made.config), beside=model.beside)
        yield made


def ask(text, **fields):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def answer(made, sent):
    """What a client gets, as bytes."""
    ledger = made.ledger()
    reply = await made.pipeline.answer(made.incoming(sent), ledger)
    out = b"".join([piece async for piece in reply.pieces()]) if reply.body is None else reply.body
    reply.leaving()
    reply.delivered()
    await reply.aclose()
    return out


async def test_a_name_keeps_a_request_at_home(world, worker):
    """What has none goes where it went before; what cannot be read counts as restricted."""
    async with hostile() as server, front(world, worker[1], server, POLICY_AT_HOME, "internal") as made:
        await answer(made, ask("How do I sort a list in Python?"))
        await answer(made, ask(TEXT))
        await answer(made, ask("Please call John Taylor. " * 1_000))
        told = [(record.route, record.class_, record.found) for record in made.records]
        assert told == [
            ("far/m", "public", ()), ("home/m", "confidential", ("email", "person")), ("home/m", "restricted", ()),
        ]  # fmt: skip
        assert [record.unsearched for record in made.records] == ["", "", "NamesTooLong"]
        assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_name_leaves_masked_and_comes_back(world, worker, stream):
    """The upstream never sees it; the client sees nothing else."""
    async with hostile() as server, front(world, worker[1], server, POLICY_MASKED, "restricted") as made:
        server.scripts = [parrot(seed=3)]
        out = await answer(made, ask(TEXT, stream=stream))
        ((_, sent),) = server.requests
    assert b"Okafor" not in sent
    assert b"Vienna" in sent  # nobody asked for places
    texts = [line.removeprefix(b"data: ") for line in out.splitlines() if line.startswith((b"data: {", b"{"))]
    choices = [json.loads(text)["choices"][0] for text in texts if b'"choices"' in text]
    said = "".join(choice.get("delta", choice.get("message")).get("content") or "" for choice in choices)
    assert TEXT in said
    assert made.records[-1].redacted == {"email": 1, "person": 1}


def test_policies_that_ask_for_names_need_a_model(tmp_path):
    """Else the start is refused, with the mend; without such a kind nothing is asked of a model that is set up."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "all.toml").write_text(POLICY_AT_HOME)
    path = tmp_path / "config.toml"
    plain = '[cache]\nsemantic = false\n[policies]\ndefault = "listed"\n'
    path.write_text(plain)
    line = 1 + POLICY_AT_HOME[: POLICY_AT_HOME.index('"person"')].count("\n")
    with pytest.raises(
        ConfigError, match=rf'^policies/all.toml:{line}:17: "person" is found by a model only.*\[names\] in config.toml'
    ):
        load(config.load(path), tmp_path / "policies")
    path.write_text(plain + '[names]\nmodel = "en_core_web_sm"\n')
    set_up = config.load(path)
    assert load(set_up, tmp_path / "policies").named == {"person"}
    (tmp_path / "policies" / "all.toml").write_text(POLICY)
    assert load(set_up, tmp_path / "policies").named == frozenset()
    assert not load(set_up, tmp_path / "policies").detector.waits


def test_policies_that_ask_for_names_are_never_in_force_without_a_model(tmp_path):
    """Not by a change of the files while the gateway runs, and not as those of before over a config that has lost its model."""
    (tmp_path / "policies").mkdir()
    file = tmp_path / "policies" / "all.toml"
    file.write_text(POLICY)
    path = tmp_path / "config.toml"
    plain = '[cache]\nsemantic = false\n[policies]\ndefault = "listed"\n'
    path.write_text(plain)
    without = config.load(path)
    store = Store(tmp_path / "state")
    store.propose(load(without, file.parent))
    watcher = Watcher(without, file.parent, store)
    assert watcher.poll() is watcher.poll() is None
    file.write_text(POLICY_AT_HOME)
    assert watcher.poll() is None
    assert 'policies/all.toml:8:17: "person"' in str(watcher.poll().problems[0])
    path.write_text(plain + '[names]\nmodel = "en_core_web_sm"\n')
    made = load(config.load(path), file.parent)
    assert Generation.from_source(made.source()).named == {"person"}
    with pytest.raises(ConfigError, match="is found by a model only"):
        made.with_catalogue(Catalogue.of(without))


@pytest.mark.parametrize("block", ["limit", "route"])
def test_a_rule_about_names_that_nobody_looks_for_is_refused(block):
    """It would never hold: a kind of name is looked for only where some file maps it to a class."""
    effect = 'cache = "off"' if block == "limit" else 'order_by = "cost"'
    rule = f'[[{block}]]\nname = "n"\nwhen = {{ found = ["card", "person"] }}\n{effect}\n'
    files = {"a.toml": 'policy = "a"\n' + rule + '[[route]]\nname = "rest"\norder_by = "cost"\n'}
    with pytest.raises(ConfigError, match=r'^policies/a.toml:4:10: "person" is looked for only where a file maps it to a class'):
        Generation(files, Catalogue(upstreams=(), models={}, substitutable=()))
    files["b.toml"] = 'policy = "b"\n[classes]\ninternal = ["person"]\n'
    assert Generation(files, Catalogue(upstreams=(), models={}, substitutable=())).named == {"person"}


def test_what_the_names_worker_needs_is_looked_for_without_loading_it(presidio_model, tmp_path, monkeypatch):
    """Each thing that is missing is named with its mend; where nothing is, nothing was imported for it."""

    def missing(**fields):
        settings = "".join(f"{name} = {json.dumps(str(value))}\n" for name, value in fields.items())
        (tmp_path / "config.toml").write_text("[cache]\nsemantic = false\n[names]\n" + settings)
        return needs.missing(config.load(tmp_path / "config.toml"))

    before = set(sys.modules)
    assert missing(model=presidio_model.folder) is None
    assert not {name.partition(".")[0] for name in set(sys.modules) - before} & {"spacy", "presidio_analyzer", "gliner"}
    assert "python -m spacy download no_such_pipeline" in missing(model="no_such_pipeline")
    assert f'the folder "{tmp_path}/none" is not there' in missing(model="./none").replace("/./", "/")
    assert "meta.json is not there" in missing(model=tmp_path)
    monkeypatch.setitem(sys.modules, "gliner", SimpleNamespace(__spec__=True))
    assert "gliner_config.json is not there" in missing(model=tmp_path, engine="gliner")
    assert "none" in missing(model="none", engine="gliner")
    monkeypatch.setitem(sys.modules, "gliner", None)
    assert "gliner is missing" in missing(model=tmp_path, engine="gliner")
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert 'spacy is missing; run: pip install "gateway[names]"' in missing(model=presidio_model.folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_names_worker_that_loads_stops_at_once(presidio_model, tmp_path, number):
    """Its libraries and its pipeline take seconds, which nobody waits for: status 0, and nothing is left or said."""
    path = tmp_path / "names.sock"
    command = presidio_model.command(path)
    pipe = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert json.loads(process.stdout.readline())["state"] == "loading"
        process.send_signal(number)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0
    assert not path.exists()
