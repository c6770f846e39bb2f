"""Replay: the same policy decides the same, and what another would change is told, above all where data could newly go."""

import gzip
import io
import json
import random

import msgspec
import pytest
from front import Client, body
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from policy.worlds import EU, HOME, LAST_ROUTE, LIMITS, US, VAULT, all_facts, all_health, facts, generation, limit_texts
from rich.console import Console

from gateway import pipeline
from gateway.errors import ConfigError, Problem
from gateway.facts import detector_version
from gateway.logs import LogWriter
from gateway.policy.decide import decide, pin
from gateway.policy.decision import Health
from gateway.policy.generation import Catalogue, Generation
from gateway.replay import Replayer, as_json, render, replay
from gateway.sinks import segment_files

OPTIONS = (HOME, EU, US, VAULT)
OPEN = generation("", options=OPTIONS)
HOME_ONLY = generation('[[limit]]\nname = "home"\nonly = { upstream = "home" }\n', options=OPTIONS)


def line(made, request, health, *, pinned=None, id_="req_1", **changes):
    """The line that a gateway under these policies writes for a request."""
    decision = decide(made, "p0", request, health)
    if pinned:
        decision = pin(decision, request, pinned)
    fields = pipeline.decided(request, decision, health) | {"detector": detector_version(), "pinned": pinned}
    head = {"time": "2026-11-23T06:38:35.074197Z", "event": "route.decided", "level": "info", "request_id": id_}
    return msgspec.json.encode(head | fields | changes) + b"\n"


def closed(id_="req_1", **fields):
    head = {"time": "2026-11-23T06:38:36.074197Z", "event": "request.closed", "level": "info", "request_id": id_}
    return msgspec.json.encode(head | fields) + b"\n"


def archive(*generations):
    known = {one.hash: one for one in generations}

    def past(hash_):
        if hash_ not in known:
            raise ConfigError([Problem("archive", "cannot be read: No such file")])
        return known[hash_]

    return past


def replayed(now, *lines, past=(OPEN, HOME_ONLY)):
    replayer = Replayer(now, archive(*past))
    for one in lines:
        replayer.feed(one)
    return replayer.result()


@given(LIMITS, all_facts(), all_health(OPTIONS), st.sampled_from([None, "home", "us-api"]))
def test_under_the_same_policy_every_decision_is_made_again(limits, request, health, pinned):
    """Whatever facts, health and policy: the log line holds enough to come to the same decision, word for word."""
    route = '[[route]]\nname = "r"\norder_by = "latency"\nwithin = 1.5\n'
    made = generation("".join(limit_texts(limits)) + route, options=OPTIONS)
    raw = line(made, request, health, pinned=pinned)
    replayer = Replayer(made, archive())
    again = replayer.decide(replayer._decided.decode(raw), raw)
    assert msgspec.json.encode(pipeline.decided(request, again, health)["removed"]) in raw
    replayer.feed(raw)
    found = replayer.result()
    assert (found.same, found.changed, found.moved, found.not_replayable) == (1, 0, 0, {})


def test_a_cap_decides_again_with_the_length_that_was_known_then():
    """What was learned stands in the line; a line of an older gateway, which learned nothing, is decided with the fixed figure."""
    made = generation('[[limit]]\nname = "c"\nmax_cost = 0.0015\n', options=OPTIONS)
    fixed = line(made, facts(), {"eu-api/m": Health(ttft_ms=9)})
    known = line(made, facts(), {"eu-api/m": Health(ttft_ms=9, long_output=300)}, id_="req_2")
    assert b"long_output" not in fixed
    assert [b'"order":["home/m","eu-api/m"' in raw for raw in (fixed, known)] == [False, True]
    assert replayed(made, fixed, known, past=(made,)).same == 2


def test_another_policy_moves_what_it_should():
    """Requests that go elsewhere are counted with their way, their tokens and what they would have cost."""
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}
    found = replayed(HOME_ONLY, line(OPEN, facts(), {"home/m": Health(up=False)}), closed(usage=usage))
    assert (found.moved, found.moves) == (1, [("eu-api/m", "refused: unavailable", 1)])
    assert (found.cost_before_usd, found.cost_after_usd) == (2.0, 0.0)
    flows = {flow.zone: flow for flow in found.flows}
    assert (flows["eu"].before.tokens, flows["eu"].after.tokens) == (1_500_000, 0)
    assert flows["nobody"].after.requests == 1
    assert found.new_flows == []


def test_where_data_could_newly_go_is_told_first_even_as_the_last_candidate():
    """A zone that nothing of a class could reach before is a new flow, though nobody's first choice changes."""
    found = replayed(OPEN, *[line(HOME_ONLY, facts(class_="confidential"), {}, id_=f"req_{index}") for index in range(5)])
    (flow,) = found.new_flows
    assert (found.moved, found.changed) == (0, 5)
    assert (flow.class_, flow.zone, flow.after.may_reach, flow.after.requests) == ("confidential", "eu", 5, 0)
    assert flow.examples == ["req_0", "req_1", "req_2"]
    console = Console(width=160, file=io.StringIO())
    console.print(render(found))
    assert console.file.getvalue().startswith("NEW FLOWS")
    assert json.loads(json.dumps(as_json(found)))["new_flows"][0]["class"] == "confidential"


def test_what_would_leave_unmasked_is_told():
    """A policy without the masks of the one before opens no new zone, and yet lets originals out: it is counted, and shown."""
    masked = generation('[[limit]]\nname = "m"\nredact = "outside"\n', options=OPTIONS)
    lines = [line(masked, facts(found=("email",)), {}), line(masked, facts(), {}, id_="req_2")]
    found = replayed(OPEN, *lines, past=(OPEN, masked))
    assert (found.unmasked, found.changed, found.same, found.new_flows) == (1, 1, 1, [])
    console = Console(width=160, file=io.StringIO())
    console.print(render(found))
    assert "UNMASKED          1 requests" in console.file.getvalue()
    assert replayed(masked, line(OPEN, facts(found=("email",)), {}), past=(OPEN, masked)).unmasked == 0


def test_a_lowered_class_shows_as_a_flow_of_the_class_that_it_was():
    """What was confidential when it was sent is told as such, also when the new files call it internal."""
    before = generation('[classes]\nconfidential = ["email"]\n', options=OPTIONS)
    after = generation('[classes]\ninternal = ["email"]\n', options=OPTIONS)
    raw = line(before, facts(class_="confidential", found=("email",)), {})
    found = replayed(after, raw, past=(before,))
    assert [(flow.class_, flow.zone) for flow in found.new_flows] == [("confidential", "us")]


def without(raw, *names):
    """A line of an older gateway, which did not log these facts yet."""
    plain = json.loads(raw)
    for name in names:
        del plain["facts"][name]
    return msgspec.json.encode(plain) + b"\n"


LOWERED = generation('[classes]\ninternal = ["email"]\nconfidential = ["card"]\n', options=OPTIONS)
TAGGED = generation('[[limit]]\nname = "t"\nwhen = { tags = "x" }\ncache = "off"\n', options=OPTIONS)
CAPPED = generation('[[limit]]\nname = "c"\nmax_cost = 1\n', options=OPTIONS)
TASKED = generation('[[route]]\nname = "code"\nwhen = { task = "code" }\nuse = ["home"]\n' + LAST_ROUTE, options=OPTIONS)
CODE = facts(task="code")
TERMS = generation('[[terms]]\nname = "t"\nclass = "internal"\nwords = ["Acme"]\n', options=OPTIONS)
EMAIL = facts(class_="restricted", found=("email",))


@pytest.mark.parametrize(
    ("now", "raw", "reason"),
    [
        (OPEN, line(generation('[log]\ntext_up_to = "public"\n'), facts(), {}), "cannot be opened"),
        (OPEN, line(OPEN, facts(), {}, policy=f"gone@{OPEN.hash}"), 'the policy "gone" is not among'),
        (TAGGED, without(line(OPEN, facts(), {}), "tags"), 'asks for "tags", which was not logged'),
        (OPEN, line(OPEN, facts(), {}, detector="0000"), "the detector has changed since (0000)"),
        (TASKED, line(OPEN, facts(), {}), "the task was not worked out then"),
        (TASKED, line(OPEN, CODE, {}, classifier="0000"), "the classifier has changed since (0000)"),
        (TASKED, without(line(OPEN, CODE, {}), "task"), 'asks for "task", which was not logged'),
        (CAPPED, without(line(OPEN, facts(), {}), "choices"), 'asks for "choices", which was not logged'),
        (TERMS, line(OPEN, facts(), {}), "the customer terms have changed"),
        (OPEN, line(OPEN, facts(tenant="[masked]"), {}), "a fact was masked"),
        (LOWERED, without(line(OPEN, EMAIL, {}), "class_floor"), "its class may be lower now"),
    ],
)
def test_what_the_log_cannot_decide_is_counted_with_its_reason(now, raw, reason):
    """Nothing is guessed: a line that does not hold enough is not replayable, and says why."""
    found = replayed(now, raw)
    assert (found.decisions, found.replayed) == (1, 0)
    ((said, count),) = found.not_replayable.items()
    assert reason in said
    assert count == 1


@pytest.mark.parametrize(
    ("request_", "class_"),
    [
        (facts(class_="restricted", class_floor="restricted", found=("email",)), "restricted"),
        (facts(class_="restricted", found=("email",)), "internal"),
        (facts(class_="restricted", class_floor="internal", found=("email", "card")), "confidential"),
        (facts(class_="restricted", found=()), "restricted"),
    ],
)
def test_the_class_is_worked_out_again_under_other_classes(request_, class_):
    """Kinds that were found count as the new files say; what key or header demanded, and what could not be scanned, stays."""
    decided = Replayer(LOWERED, archive(OPEN))
    raw = line(OPEN, request_, {})
    again = decided.decide(decided._decided.decode(raw), raw)
    takes = {"internal": 4, "confidential": 3, "restricted": 2}
    assert len(again.candidates) == takes[class_]


def test_a_logged_task_is_decided_by_again():
    """Where the same model guessed it, and the same request goes the same way."""
    (found,) = [replayed(TASKED, line(TASKED, CODE, {}, policy=f"p0@{OPEN.hash}"))]
    assert (found.replayed, found.not_replayable) == (1, {})


def test_damaged_lines_and_other_events_are_passed_over():
    """Half lines are counted; dry runs, tokens and whatever else are no decisions."""
    good = line(OPEN, facts(), {})
    dry = good.replace(b"route.decided", b"route.explained")
    found = replayed(OPEN, good[:100], good.replace(b'"health":{}', b'"health":[]'), dry, good)
    assert (found.lines, found.damaged, found.decisions, found.same) == (4, 2, 1, 1)


def test_packed_files_are_read_and_a_cut_one_is_read_to_its_cut(tmp_path):
    """A rotated file may be packed; one whose end is missing counts as one damaged line."""
    raw = b"".join(line(OPEN, facts(), {}, id_=f"req_{index}") for index in range(2000))
    whole, cut = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    whole.write_bytes(gzip.compress(raw))
    cut.write_bytes(gzip.compress(raw)[:-200])
    told = []
    found = replay([whole], OPEN, archive(), progress=told.append)
    assert (found.same, sum(told)) == (2000, whole.stat().st_size)
    found = replay([cut], OPEN, archive())
    assert found.damaged == 1
    assert 0 < found.same < 2000


def random_request(rng):
    """A chat request with its headers, of any class, size and need."""
    text = rng.choice(["hello", "write to ada@example.org", "pay 4111 1111 1111 1111", "from 203.0.113.9", "word " * 3000])
    fields = {"stream": rng.random() < 0.5}
    if rng.random() < 0.3:
        fields["max_tokens"] = rng.choice([5, 500, 5000])
    if rng.random() < 0.2:
        fields["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    headers = {"x_gateway_class": rng.choice([None, "internal", "confidential"]), "x_gateway_tags": rng.choice([None, "a,b"])}
    return body(text, **fields), headers


POLICY = """policy = "listed"
[classes]
confidential = ["email", "ip"]
[[limit]]
name = "confidential stays"
when = { class = ">= confidential" }
never = { zone = "us" }
[[limit]]
name = "cheap"
when = { tags = "a", stream = true }
max_cost = 0.004
[[route]]
name = "streams"
when = { stream = true }
order_by = "latency"
within = 2.0
[[route]]
name = "rest"
order_by = "cost"
within = 1.5
"""


async def test_what_a_gateway_logged_is_replayed_without_a_difference(world, tmp_path):
    """Random requests through the whole request path, with upstreams that fail: their log replays identically."""
    made = world(a={}, b={"fail": "status"}, c={"ms_per_token": 0.1}, d={}, policy=POLICY)
    rng = random.Random(5)
    zones = zip(made.generation.options_for("m"), ["local", "eu", "us", "us"], [0.5, 1.0, 1.1, 9.0], strict=True)
    options = tuple(
        replace(option, zone=zone, input_usd_per_mtok=price, output_usd_per_mtok=price) for option, zone, price in zones
    )
    catalogue = Catalogue(upstreams=("a", "b", "c", "d"), models={"m": options}, substitutable=("m",))
    made.generation = Generation(made.policies, catalogue)
    for _ in range(60):
        payload, headers = random_request(rng)
        await Client(made, payload, **headers).answer()
    log = LogWriter(
        tmp_path / "logs",
        segment="s",
        stdout=False,
        rotate_bytes=20_000,
        keep_files=0,
        on_full="refuse",
        queue_limit=10_000,
        count_tokens=lambda text, upstream: (1, False),
    )
    for name, fields in made.events:
        log.event({"event": name, **fields})
    for record in made.records:
        log.closed(record)
    log.close()
    found = replay(segment_files(tmp_path / "logs"), made.generation, archive())
    assert (found.decisions, found.same, found.not_replayable, found.damaged) == (60, 60, {}, 0)
    assert found.cost_before_usd == found.cost_after_usd > 0
    assert {flow.zone for flow in found.flows} >= {"local", "eu", "us"}


def test_the_cost_is_that_of_the_tokens_that_were_counted():
    """Usage comes from the record; without one, the estimate is reckoned and the request counted as estimated."""
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    found = replayed(OPEN, line(OPEN, facts(), {}, id_="a"), line(OPEN, facts(), {}, id_="b"), closed("a", usage=usage))
    assert found.estimated == 1
    assert sum(flow.before.tokens for flow in found.flows) == 30 + 100 + 512
