"""`gateway explain` and the header x-gateway-explain: every candidate stands there, or what removed it; no text ever does."""

import io
import json
from pathlib import Path

import pytest
from front import POLICY, Client, body
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import UNSET
from policy.worlds import EU, HOME, LIMITS, US, VAULT, all_facts, all_health, limit_texts
from policy.worlds import generation as made_of
from rich.console import Console

from gateway import config, facts, pipeline, wire
from gateway.affinity import Made
from gateway.errors import Conflict, Forbidden
from gateway.explain import REASON_CHARS, explain, reason
from gateway.facts import Facts
from gateway.policy.decide import decide
from gateway.policy.decision import Chosen, Decision, Health, Refusal, Removed
from gateway.policy.generation import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generation():
    return load(config.load(ROOT / "config.example.toml"), ROOT / "policies")


def shown(explanation):
    console = Console(width=200, file=io.StringIO())
    console.print(explanation.render())
    return console.file.getvalue()


def test_a_refusal_is_explained_by_the_rule_that_made_it(generation):
    """What removed a candidate stands beside it, with file and line."""
    request = Facts(endpoint="chat/completions", model="auto", needs=("chat", "tools"), class_="restricted", found=("card",))
    explanation = explain(generation, "cost", request, {})
    assert {line.option: line.removed_by for line in explanation.lines} == {
        "local/smollm2-135m": "capability",
        "local/all-minilm-l6-v2": "capability",
        "openai/gpt-4o-mini": "class",
    }
    text = shown(explanation)
    assert "restricted (card found)" in text
    assert "openai takes up to internal, this is restricted" in text
    assert "forbidden" in text


def test_the_order_of_trying_and_its_reasons_are_shown(generation):
    """Candidates stand in the order they are tried, with expected cost and time to first token."""
    request = Facts(endpoint="chat/completions", model="auto", needs=("chat",), prompt_tokens=100, prompt_tokens_high=100)
    explanation = explain(generation, "cost", request, {"local/smollm2-135m": Health(ttft_ms=40, in_flight=1)})
    assert [(line.option, line.place) for line in explanation.lines[:2]] == [("local/smollm2-135m", 1), ("openai/gpt-4o-mini", 2)]
    text = shown(explanation)
    assert "80 ms" in text
    assert "$0.000322" in text


@pytest.mark.parametrize(
    ("changes", "learned", "told"),
    [({}, UNSET, "4096 fixed"), ({}, 900, "900 learned"), ({"max_output": 70}, 900, "70 client")],
    ids=["fixed", "learned", "client"],
)
def test_whose_bound_a_cap_reckons_with_is_shown(generation, changes, learned, told):
    """The tokens of answer behind the highest cost stand beside it, and who bounded them."""
    request = Facts(endpoint="chat/completions", model="auto", needs=("chat",), **changes)
    explanation = explain(generation, "cost", request, {"openai/gpt-4o-mini": Health(long_output=learned)})
    (line,) = (line for line in explanation.lines if line.option == "openai/gpt-4o-mini")
    assert f"{line.worst_output_tokens} {line.worst_output_by}" == told
    assert line.worst_cost_usd == pytest.approx(line.worst_output_tokens * 0.6e-6)
    assert told in shown(explanation)


def test_an_explanation_is_plain_json(generation):
    """The JSON form holds the facts, the decision and every candidate."""
    request = Facts(endpoint="embeddings", model="all-minilm-l6-v2", needs=("embeddings",))
    plain = json.loads(json.dumps(explain(generation, "cost", request, {}).as_json()))
    assert plain["facts"]["class"] == "public"
    assert plain["decision"]["policy"] == generation.label("cost")
    assert plain["candidates"][0]["option"] == "local/all-minilm-l6-v2"


OPTIONS = (HOME, EU, US, VAULT)
ASKED = {"x_gateway_explain": "1"}


def fits_a_header(text):
    """What a reason tells, once it is known to be one that every client can read."""
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= REASON_CHARS
    return json.loads(text)


@given(LIMITS, all_facts(), all_health(OPTIONS))
def test_a_reason_tells_the_decision(limits, request, health):
    """Whatever the policy, the request and the health: order, limits and refusal are those of the decision."""
    decision = decide(made_of("".join(limit_texts(limits)), options=OPTIONS), "p0", request, health)
    told = fits_a_header(reason(request, decision))
    assert (told["policy"], told["route"], told["class"]) == (decision.policy, decision.rule, request.class_)
    assert told["order"] == [chosen.option.name for chosen in decision.candidates]
    assert told["limits"] == list(decision.limits)
    assert told["refusal"] == (decision.refusal.kind if decision.refusal else None)
    assert len(told["removed"]) == len(decision.removed)


@given(LIMITS, all_facts(), all_health(OPTIONS), st.sampled_from([None, "home", "us-api"]))
def test_every_candidate_has_its_place_or_what_removed_it(limits, request, health, pinned):
    """Never both, never neither; what is pinned is named only where something is."""
    found = explain(made_of("".join(limit_texts(limits)), options=OPTIONS), "p0", request, health, pinned=pinned)
    assert all((line.place is None) == bool(line.removed_by) == bool(line.reason) for line in found.lines)
    assert pinned or not any(line.removed_by == "pin" for line in found.lines)


REMOVED = st.builds(Removed, option=st.text(), by=st.sampled_from(["limit", "down"]), reason=st.text())
DECISIONS = st.builds(
    Decision,
    policy=st.text(),
    rule=st.text(),
    candidates=st.lists(st.sampled_from(OPTIONS).map(Chosen)).map(tuple),
    removed=st.lists(REMOVED).map(tuple),
    limits=st.lists(st.text()).map(tuple),
    refusal=st.none() | st.builds(Refusal, kind=st.just("forbidden"), message=st.text()),
)


@given(DECISIONS, st.integers(1, 3000), all_facts())
@example(Decision(policy="a@1", rule="\x7f"), 3000, Facts(endpoint="chat/completions", model="m"))
@example(Decision(policy="😀", rule="😀"), 3000, Facts(endpoint="chat/completions", model="m"))
def test_a_reason_always_fits_a_header(decision, times, request):
    """Names may be of any length and script: what is too long is cut, and said to be."""
    long = Decision(
        policy=decision.policy * times,
        rule=decision.rule * times,
        candidates=decision.candidates,
        removed=decision.removed * min(times, 100),
        limits=tuple(name * times for name in decision.limits),
        refusal=decision.refusal,
    )
    told = fits_a_header(reason(request, long))
    whole = len(told["removed"]) == len(long.removed) and len(told["limits"]) == len(long.limits)
    assert whole or told["cut"] is True


def test_a_reason_that_is_too_long_keeps_what_weighs_most():
    """Of a long list the beginning stays, and everything short stays whole."""
    removed = tuple(Removed(option=f"up{index}/m", by="limit", reason="no" * 20) for index in range(500))
    told = fits_a_header(reason(Facts(endpoint="chat/completions", model="m"), Decision(policy="a@1", rule="r", removed=removed)))
    assert (told["cut"], told["policy"], told["removed"][0].partition(":")[0]) == (True, "a@1", "up0/m")
    assert 10 < len(told["removed"]) < 500


WORDS = st.text("QXZJKŻ茶", min_size=5, max_size=12)


@given(st.lists(WORDS, min_size=4, max_size=4), st.sampled_from(["", " 4111 1111 1111 1111", " ada@example.org"]))
def test_a_reason_holds_no_word_of_the_request(generation, words, more):
    """Content, tool names, the user and metadata: none of it is in the reason, whatever its class."""
    content, tool, user, key = words
    told = {"tools": [{"type": "function", "function": {"name": tool}}], "user": user, "metadata": {key: key}}
    request = wire.read("chat/completions", body(content + more, **told, model="auto"))
    judged = facts.judge(
        request,
        classes=generation.classes,
        max_scan_chars=100_000,
        tenant="t",
        key_label="k",
        class_floor="public",
        headers={},
        seed="s",
        now=0.0,
    )
    text = reason(judged, decide(generation, "cost", judged, {}))
    shown_as = [form for word in words for form in (word, json.dumps(word)[1:-1])]
    assert not [form for form in (*shown_as, *more.split()) if form in text]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_who_asks_is_told_why(world, stream):
    """The answer has the reason in a header, from an upstream and from the cache; the upstream is not told of the wish."""
    made = world(a={}, b={})
    for outcome in ("miss", "hit-exact"):
        got = await Client(made, body(stream=stream), **ASKED).answer()
        assert got.headers["x-gateway-cache"] == outcome
        told = fits_a_header(got.headers["x-gateway-explain"])
        assert (told["order"], told["route"], told["refusal"]) == (["a/m", "b/m"], "all", None)


async def test_a_refusal_is_explained_too(world):
    """By policy, and by upstreams that all failed; a refusal before the decision has nothing to explain."""
    limit = '[[limit]]\nname = "no more"\nwhen = { max_output = "> 9" }\nnever = { zone = "local" }\n'
    made = world(policy=POLICY + limit, a={"fail": "connect"})
    refused = await Client(made, body(max_tokens=10), **ASKED).answer()
    told = fits_a_header(refused.headers["x-gateway-explain"])
    assert (refused.status, told["refusal"], told["limits"]) == (403, "forbidden", ["no more"])
    assert 'limit "no more" (policies/listed.toml:' in told["removed"][0]
    failed = await Client(made, body(max_tokens=5), **ASKED).answer()
    assert (failed.status, fits_a_header(failed.headers["x-gateway-explain"])["order"]) == (503, ["a/m"])
    unread = await Client(made, b"{", **ASKED).answer()
    assert (unread.status, "x-gateway-explain" in unread.headers) == (400, False)


async def test_who_does_not_ask_costs_nothing(world, monkeypatch):
    """Without the header, and with another word in it, no reason is made; hidden headers hide it too."""
    hidden = await Client(world(server="expose_headers = false"), body(), **ASKED).answer()
    assert (hidden.status, "x-gateway-explain" in hidden.headers) == (200, False)

    def made_one(*_):
        raise AssertionError("a reason was made that nobody asked for")

    monkeypatch.setattr(pipeline, "reason", made_one)
    for asked in ({}, {"x_gateway_explain": "0"}):
        got = await Client(world(), body(), **asked).answer()
        assert (got.status, "x-gateway-explain" in got.headers) == (200, False)


async def test_a_dry_run_goes_on_where_the_earlier_response_is_kept(world):
    """Its upstream alone is a candidate, at the class of then; the log line says so, and nothing else is recorded."""
    made = world(a={}, b={})
    made.set_capabilities(["responses"])
    made.affinity.remember("default", "resp_7", Made("b", "m", "m", "internal"))
    asked = b'{"model": "m", "input": "and then?", "previous_response_id": "resp_7"}'
    found = await made.pipeline.explain(made.incoming(asked, endpoint="responses"), made.ledger())
    assert [(line.option, line.place, line.removed_by) for line in found.lines] == [("b/m", 1, ""), ("a/m", None, "pin")]
    assert '"b" keeps what this request goes on from' in shown(found)
    assert (found.facts.model, found.facts.class_) == ("m", "internal")
    ((name, fields),) = made.events
    assert (name, fields["pinned"], made.records) == ("route.explained", "b", [])


async def test_a_dry_run_holds_to_the_policies_that_the_key_may_use(world):
    """The header of an ordinary request is obeyed, and refused in the same way."""
    made = world()
    with pytest.raises(Forbidden):
        await made.pipeline.explain(made.incoming(body(), x_gateway_policy="other"), made.ledger())
    with pytest.raises(Conflict):
        await made.pipeline.explain(made.incoming(body(), x_gateway_policy="listed@0123456789ab"), made.ledger())
    pinned = made.incoming(body(), x_gateway_policy=made.generation.label("listed"))
    assert (await made.pipeline.explain(pinned, made.ledger())).decision.policy == made.generation.label("listed")
