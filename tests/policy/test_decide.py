"""The decision: what may serve, in which order, and what is said when nothing may."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from policy import slow_decide
from worlds import (
    DARK,
    EU,
    HOME,
    LAST_ROUTE,
    LIMITS,
    US,
    VAULT,
    all_facts,
    all_health,
    catalogue,
    facts,
    generation,
    limit_texts,
    names,
    option,
)

from gateway.errors import Conflict, Forbidden
from gateway.facts import Facts
from gateway.policy.decide import (
    _CACHE_RANK,
    MOST_KINDS,
    PRIOR_TTFT_MS,
    decide,
    expected_cost_usd,
    policy_for,
    worst_cost_usd,
)
from gateway.policy.decision import Health
from gateway.policy.generation import Generation

OPTIONS = (HOME, EU, US, DARK, VAULT)
DOWN = Health(up=False, reason="connection refused")
OFF = Health(up=False, off=True, reason="API_KEY is not set")


def route(text):
    return f'[[route]]\nname = "r"\n{text}\n'


@pytest.mark.parametrize(
    ("given_facts", "message"),
    [
        ({"needs": ("chat", "images")}, "No upstream of this model can do all of: chat, images."),
        ({"prompt_tokens": 99_990, "max_output": 11}, "Prompt and answer may take 100001 tokens; the maximum context"),
        ({"model": "who"}, "No upstream serves this model."),
    ],
)
def test_what_no_model_can_do_is_unsupported(given_facts, message):
    """A request that no candidate is able to serve is refused for that reason, before any policy is asked."""
    refusal = decide(generation(""), "p0", facts(**given_facts), {}).refusal
    assert refusal.kind == "unsupported"
    assert refusal.message.startswith(message)


SPEAKS = option("speaks", capabilities=("responses", "chat"), takes_up_to="restricted")
CHATS = option("chats", capabilities=("chat", "json"), takes_up_to="restricted")
RESPONSES = {"endpoint": "responses", "needs": ("responses",), "via_chat": ("chat",), "stores": True}


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({}, ["speaks", "chats"]),
        ({"via_chat": ()}, ["speaks"]),
        ({"needs": ("responses", "json"), "via_chat": ("chat", "json")}, ["chats"]),
        ({"class_": "confidential"}, ["chats"]),
        ({"class_": "confidential", "stores": False}, ["speaks", "chats"]),
        ({"class_": "confidential", "via_chat": ()}, []),
    ],
)
def test_chat_may_stand_in_for_responses(changes, served):
    """Where it can be translated, who chats may serve it; above internal, who would keep the answer may not."""
    decision = decide(generation("", options=(SPEAKS, CHATS)), "p0", facts(**{**RESPONSES, **changes}), {})
    assert names(decision) == served
    if "speaks" not in served and "class_" in changes:
        assert ("speaks/m", "store") in [(one.option, one.by) for one in decision.removed]


def test_what_is_lacking_is_named_by_the_way_an_option_is_asked():
    """The words of the endpoint for who speaks it, those of chat for who does not."""
    asked = facts(**RESPONSES | {"needs": ("responses", "images"), "via_chat": ("chat", "images", "logprobs")})
    decision = decide(generation("", options=(SPEAKS, CHATS)), "p0", asked, {})
    assert {one.option: one.reason for one in decision.removed} == {
        "speaks/m": "cannot do: images",
        "chats/m": "cannot do: images, logprobs",
    }
    assert decision.refusal.message == "No upstream of this model can do all of: responses (or chat), images, logprobs."


def test_an_upstream_never_sees_a_class_above_its_own():
    """takes_up_to is a limit without any policy file saying so."""
    decision = decide(generation(""), "p0", facts(class_="confidential"), {})
    assert names(decision) == ["home", "eu-api"]
    assert [(one.option, one.by) for one in decision.removed] == [("us-api/m", "class")]


def test_a_refusal_by_policy_names_the_limits_and_what_was_found():
    """A client that is refused learns which limit it was and what was found, and nothing of its own text."""
    limits = '[[limit]]\nname = "cards stay"\nwhen = { found = "card" }\nonly = { zone = "mars" }\n'
    refusal = decide(generation(limits), "p0", facts(class_="restricted", found=("card",)), {}).refusal
    assert (refusal.kind, refusal.should_retry) == ("forbidden", False)
    assert refusal.message == (
        'The policy does not allow this request of class restricted (card found): it is refused by "cards stay".'
    )


@pytest.mark.parametrize(("state", "should_retry"), [(OFF, False), (DOWN, True)])
def test_trying_again_is_advised_only_when_waiting_can_help(state, should_retry):
    """An upstream that is switched off stays so; one that is down may come back."""
    refusal = decide(generation("", options=[US]), "p0", facts(), {"us-api/m": state}).refusal
    assert (refusal.kind, refusal.should_retry) == ("unavailable", should_retry)
    assert f"us-api: {'off' if state.off else 'down'}, {state.reason}" in refusal.message


@pytest.mark.parametrize("state", [OFF, DOWN, Health(off=True)])
def test_what_is_down_or_off_is_not_tried(state):
    """An option that cannot be used drops out last, with its state as the reason."""
    decision = decide(generation(""), "p0", facts(), {"home/m": state})
    assert names(decision) == ["eu-api", "us-api"]
    assert [(one.option, one.by) for one in decision.removed] == [("home/m", "down")]


def test_limits_of_every_file_apply_whichever_policy_routes():
    """A limit cannot be escaped by choosing the routes of another file."""
    strict = '[[limit]]\nname = "home only"\nonly = { zone = "local" }\n'
    decision = decide(generation("", strict), "p0", facts(), {})
    assert names(decision) == ["home"]
    assert decision.limits == ("home only",)
    assert decision.removed[0].reason == 'limit "home only" (policies/p1.toml:2)'


def test_never_takes_away_only_what_matches_in_every_key():
    """`never` with two keys means the upstreams for which both are true."""
    text = '[[limit]]\nname = "n"\nnever = { zone = ["us", "eu"], trains = true }\n'
    assert names(decide(generation(text), "p0", facts(), {})) == ["home", "eu-api"]


def test_a_cap_counts_the_longest_answer_and_never_an_unknown_price():
    """Under a cost cap the worst case decides, and what has no price is not eligible."""
    text = '[[limit]]\nname = "cap"\nmax_cost = 0.0015\n'
    decision = decide(generation(text, options=[HOME, EU, DARK]), "p0", facts(), {})
    assert names(decision) == ["home"]
    reasons = {one.option: one.said for one in decision.removed}
    assert reasons["dark/m"] == 'limit "cap" (policies/p0.toml:2): its price is not known'
    assert reasons["eu-api/m"] == 'limit "cap" (policies/p0.toml:2): the cap is $0.0015, and this may cost $0.0021'


def test_the_expected_cost_is_that_of_a_usual_answer_and_the_worst_that_of_the_longest():
    """Ranking reckons with 512 tokens of answer at most, a cap with the longest that client or model allow."""
    assert expected_cost_usd(EU, facts(prompt_tokens=1000)) == pytest.approx((1000 + 2 * 512) / 1e6)
    assert expected_cost_usd(EU, facts(prompt_tokens=1000, max_output=10)) == pytest.approx((1000 + 20) / 1e6)
    assert worst_cost_usd(EU, facts(prompt_tokens=1000), Health()) == pytest.approx((1000 + 2 * 1000) / 1e6)
    assert worst_cost_usd(EU, facts(prompt_tokens=1000, prompt_tokens_high=1500), Health()) == pytest.approx(
        (1500 + 2 * 1000) / 1e6
    )
    unbounded = option("x", max_output=None)
    assert worst_cost_usd(unbounded, facts(prompt_tokens=1000), Health()) == pytest.approx((1000 + 2 * 4096) / 1e6)


def test_an_embedding_costs_its_prompt_alone():
    """The price of an answer plays no part where there is none."""
    dear = option("x", output_usd_per_mtok=None)
    assert worst_cost_usd(dear, facts(endpoint="embeddings", prompt_tokens=1000), Health()) == pytest.approx(0.001)


CAP = '[[limit]]\nname = "cap"\nmax_cost = 0.0015\n'


@pytest.mark.parametrize(
    ("learned", "changes", "served"),
    [
        (UNSET, {}, ["home"]),
        (600, {}, ["home", "eu-api"]),
        (9000, {}, ["home"]),
        (600, {"max_output": 900}, ["home"]),
        (600, {"choices": 2}, ["home"]),
        (9000, {"max_output": 600}, ["home", "eu-api"]),
    ],
)
def test_a_cap_reckons_with_the_answers_that_an_option_gives(learned, changes, served):
    """The learned length stands in for a bound that the client did not set, in either direction, and never for one it did."""
    health = {EU.name: Health(long_output=learned)}
    assert names(decide(generation(CAP, options=[HOME, EU]), "p0", facts(**changes), health)) == served


def test_by_cost_the_cheapest_is_first_and_an_unknown_price_last():
    """An unknown price is never taken for a low one."""
    decision = decide(generation(route('order_by = "cost"'), options=[DARK, EU, US, HOME]), "p0", facts(), {})
    assert names(decision) == ["home", "us-api", "eu-api", "dark"]


def test_by_latency_a_queue_counts_and_an_unmeasured_upstream_is_tried_soon():
    """The expected wait is the time to first token for everyone in the queue; nobody measured is assumed fast."""
    health = {
        "home/m": Health(ttft_ms=90, in_flight=9),
        "eu-api/m": Health(ttft_ms=PRIOR_TTFT_MS / 2, in_flight=0),
        "us-api/m": Health(),
    }
    decision = decide(generation(route('order_by = "latency"')), "p0", facts(), health)
    assert names(decision) == ["eu-api", "us-api", "home"]
    assert decision.candidates[2].expected_ttft_ms == 900


def test_within_shares_the_load_by_lot_among_the_nearly_best_only():
    """Those within the factor take turns by the request's seed; a worse one never goes first."""
    health = {"home/m": Health(ttft_ms=100), "eu-api/m": Health(ttft_ms=115), "us-api/m": Health(ttft_ms=125)}
    policy = generation(route('order_by = "latency"\nwithin = 1.2'))
    firsts = [names(decide(policy, "p0", facts(seed=str(seed)), health)) for seed in range(200)]
    assert {order[0] for order in firsts} == {"home", "eu-api"}
    assert 60 < sum(order[0] == "home" for order in firsts) < 140
    assert {order[2] for order in firsts} == {"us-api"}


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('use = ["eu-api"]\nthen = "nothing"', ["eu-api"]),
        ('use = ["eu-api"]', ["eu-api", "home", "us-api"]),
        ('use = ["us-api/m", "eu-api"]\nthen = "cheapest"', ["us-api", "eu-api", "home"]),
        ('use = ["us-api"]\nthen = "listed"', ["us-api", "home", "eu-api"]),
        ('use = ["us-api"]\nthen = "fastest"', ["us-api", "eu-api", "home"]),
    ],
)
def test_use_comes_first_in_its_own_order_and_then_says_how_the_rest_follows(text, order):
    """`use` names who is first; `then` orders the rest, or leaves it out."""
    health = {"home/m": Health(ttft_ms=900), "eu-api/m": Health(ttft_ms=10), "us-api/m": Health(ttft_ms=500)}
    assert names(decide(generation(route(text)), "p0", facts(), health)) == order


def test_a_route_that_uses_only_what_is_forbidden_refuses_instead_of_widening():
    """When `then` is "nothing" and a limit took away what `use` names, nobody else steps in."""
    limits = '[[limit]]\nname = "n"\nnever = { upstream = "eu-api" }\n'
    decision = decide(generation(route('use = ["eu-api"]\nthen = "nothing"') + limits), "p0", facts(), {})
    assert decision.refusal.kind == "forbidden"
    assert {one.by for one in decision.removed} == {"limit", "route"}


def test_the_first_route_that_holds_ranks():
    """Routes are asked from top to bottom."""
    text = '[[route]]\nname = "streams"\nwhen = { stream = true }\nuse = ["us-api"]\n' + route('order_by = "cost"')
    policy = generation(text)
    assert decide(policy, "p0", facts(), {}).rule == "r"
    streamed = decide(policy, "p0", facts(stream=True), {})
    assert (streamed.rule, names(streamed)[0]) == ("streams", "us-api")


def test_the_shorter_deadline_counts():
    """Route and client each bound the wait."""
    policy = generation(route('order_by = "cost"\ndeadline_ms = 2000'))
    assert [decide(policy, "p0", facts(deadline_ms=given), {}).deadline_ms for given in (None, 500, 9000)] == [2000, 500, 2000]


@pytest.mark.parametrize(
    ("text", "given_facts", "cache"),
    [
        ("", {"class_": "confidential"}, "off"),
        ('[[limit]]\nname = "e"\ncache = "exact"\n[[limit]]\nname = "s"\ncache = "semantic"\n', {}, "exact"),
        ('[[limit]]\nname = "o"\nwhen = { stream = true }\ncache = "off"\n', {"stream": True}, "off"),
        ("", {"class_": "internal"}, "semantic"),
    ],
)
def test_the_lowest_cache_mode_wins_and_nothing_above_internal_is_cached(text, given_facts, cache):
    """Limits can only lower what the cache may do."""
    assert decide(generation(text), "p0", facts(**given_facts), {}).cache == cache


@pytest.mark.parametrize(
    ("text", "class_", "logged"),
    [
        ("", "public", False),
        ('[log]\ntext_up_to = "internal"', "confidential", False),
        ('[log]\ntext_up_to = "internal"\n[[limit]]\nname = "l"\nlog = "no text"\n', "public", False),
        ('[log]\ntext_up_to = "internal"', "internal", True),
    ],
)
def test_text_is_logged_only_where_a_file_says_so_and_no_limit_forbids_it(text, class_, logged):
    """Without a word on it, the log holds no text."""
    assert decide(generation(text), "p0", facts(class_=class_), {}).log_text is logged


@given(LIMITS, LIMITS, all_facts(), all_health(OPTIONS), st.randoms(use_true_random=False))
def test_adding_a_limit_never_adds_an_upstream_in_any_order_of_files(few, more, request, health, rng: random.Random):
    """More limits, in whatever file and order, leave a subset."""
    texts = limit_texts([*few, *more])
    before = decide(generation("", *texts[: len(few)], options=OPTIONS), "p0", request, health)
    rng.shuffle(texts)
    after = decide(generation("", *texts, options=OPTIONS), "p0", request, health)
    assert {one.option.name for one in after.candidates} <= {one.option.name for one in before.candidates}
    assert after.redact >= before.redact
    assert _CACHE_RANK[after.cache] <= _CACHE_RANK[before.cache] or not before.candidates


@given(LIMITS, all_facts(models=("auto", "unknown")), all_health(OPTIONS))
def test_every_request_gets_candidates_or_a_refusal_and_twice_the_same(limits, request, health):
    """The decision is total and deterministic, and accounts for every option exactly once."""
    policy = generation("".join(limit_texts(limits)) + route('order_by = "latency"\nwithin = 1.5'), options=OPTIONS)
    decision = decide(policy, "p0", request, health)
    assert bool(decision.candidates) != bool(decision.refusal)
    told = [one.option.name for one in decision.candidates] + [one.option for one in decision.removed]
    assert sorted(told) == sorted(option.name for option in policy.options_for(request.model))
    assert decide(policy, "p0", request, health) == decision


@given(
    LIMITS,
    st.lists(st.tuples(all_facts(models=("auto", "us-model", "unknown")), all_health(OPTIONS)), min_size=1, max_size=8),
    st.sampled_from(["cost", "latency"]),
)
def test_what_is_remembered_decides_like_what_is_worked_out(limits, asked, order):
    """Whatever was asked before, a decision is the same as one that remembers nothing, in every field."""
    made = named("".join(limit_texts(limits)) + route(f'when = {{ stream = true }}\norder_by = "{order}"\nwithin = 1.5'))
    for request, health in asked * 2:
        assert decide(made, "p0", request, health) == slow_decide.decide(made, "p0", request, health)


def test_what_is_remembered_is_bounded():
    """Kinds of requests beyond the bound push out the others instead of growing without end."""
    made = generation("", options=OPTIONS)
    for number in range(MOST_KINDS + 10):
        decide(made, "p0", facts(model=f"m{number}"), {})
    assert len(made.known) <= MOST_KINDS


KEY = {"key_policy": "", "key_policies": ("p1",), "default": "p0"}


@pytest.mark.parametrize("header", ["p2", "p2@abc", "nobody", "@"])
def test_a_key_cannot_choose_a_policy_that_is_not_its_own(header):
    """The header chooses among the key's policies only, and the refusal does not repeat it."""
    with pytest.raises(Forbidden) as caught:
        policy_for(generation(*[route('order_by = "cost"')] * 3), header=header, **KEY)
    assert header not in caught.value.message


def test_a_pinned_hash_that_is_not_in_force_is_refused():
    """NAME@HASH holds only as long as that generation is in force."""
    policies = generation(*[route('order_by = "cost"')] * 2)
    with pytest.raises(Conflict) as caught:
        policy_for(policies, header="p1@000000000000", **KEY)
    assert (caught.value.code, caught.value.param) == ("policy_changed", "x-gateway-policy")
    assert policy_for(policies, header=policies.label("p1"), **KEY) == "p1"


def test_a_key_bound_to_a_policy_that_is_gone_is_refused():
    """A key made for a policy that no file has any more serves nothing until an operator acts."""
    with pytest.raises(Forbidden, match="not in force"):
        policy_for(generation(""), key_policy="gone", key_policies=(), header=None, default="p0")


@pytest.mark.parametrize(("key_policy", "header", "expected"), [("", None, "p0"), ("p1", None, "p1"), ("", "p1", "p1")])
def test_header_then_key_then_default(key_policy, header, expected):
    """The most specific word on the policy counts."""
    policies = generation(*[route('order_by = "cost"')] * 2)
    chosen = policy_for(policies, key_policy=key_policy, key_policies=("p1",), header=header, default="p0")
    assert chosen == expected


def test_facts_defaults_are_decided_too():
    """Facts with nothing but their required fields are enough."""
    assert decide(generation(""), "p0", Facts(endpoint="chat/completions", model="auto"), {}).candidates


def named(*texts):
    """A generation in which `us-model` and `eu-model` are names of one external candidate each."""
    files = {f"p{index}.toml": f'policy = "p{index}"\n{text}' for index, text in enumerate(texts)}
    files["p0.toml"] += "\n" + LAST_ROUTE
    return Generation(files, catalogue(*OPTIONS, **{"us-model": (US,), "eu-model": (EU,)}))


@pytest.mark.parametrize("text", ["", '[[limit]]\nname = "home"\nwhen = { class = "restricted" }\nonly = { zone = "local" }\n'])
def test_what_the_named_model_may_not_see_is_answered_by_a_local_one(text):
    """A concrete name is narrowed to a local model for a class that none of its own upstreams may see."""
    decision = decide(named(text), "p0", facts(model="us-model", class_="restricted"), {})
    assert names(decision) == ["home", "vault"]


def test_a_limit_on_personal_data_narrows_too():
    """Where an upstream would take the class but a limit forbids it, the local model answers instead of a refusal."""
    text = '[[limit]]\nname = "stay"\nwhen = { class = ">= confidential" }\nonly = { zone = "local" }\n'
    assert names(decide(named(text), "p0", facts(model="eu-model", class_="confidential"), {})) == ["home", "vault"]


def test_the_named_model_comes_first_where_it_may_answer():
    """Personal data goes to the named model while policy allows it; a local one stands behind it, however cheap it is."""
    assert names(decide(named(""), "p0", facts(model="eu-model", class_="confidential"), {})) == ["eu-api", "home", "vault"]


def test_public_text_and_embeddings_are_never_substituted():
    """A concrete name is served by its own upstream only, and vectors of another model would not be comparable."""
    assert names(decide(named(""), "p0", facts(model="us-model"), {US.name: DOWN})) == []
    asked = facts(model="us-model", class_="restricted", endpoint="embeddings")
    assert decide(named(""), "p0", asked, {}).refusal.kind == "forbidden"


@given(LIMITS, LIMITS, all_facts(models=("us-model", "eu-model")), all_health(OPTIONS))
def test_adding_a_limit_never_adds_an_upstream_for_a_named_model_either(few, more, request, health):
    """Narrowing to local hangs on facts alone, so that limits only ever shrink the set."""
    texts = limit_texts([*few, *more])
    before = decide(named("", *texts[: len(few)]), "p0", request, health)
    after = decide(named("", *texts), "p0", request, health)
    assert set(names(after)) <= set(names(before))


MASKED = '[[limit]]\nname = "masked"\nredact = "outside"\n'
BOTH = (HOME, option("eu-api", zone="eu", capabilities=("chat", "responses", "logprobs", "embeddings", "responses/compact")))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"endpoint": "embeddings", "needs": ("embeddings",)}, "embeddings cannot be masked"),
        ({"endpoint": "files", "needs": ()}, "files cannot be masked"),
        ({"found": ("email", "unscannable")}, "files and images cannot be masked"),
        ({"needs": ("chat", "logprobs")}, "leave out logprobs"),
        ({"stores": True, "class_": "internal"}, "send store: false"),
        ({"endpoint": "responses/compact", "needs": ("responses",), "via_chat": ("chat",)}, "would seal a masked summary"),
    ],
    ids=str,
)
def test_what_cannot_be_masked_loses_the_upstreams_outside(changes, why):
    """They are removed with the limit and the reason, in the decision itself; nothing is left to the moment of sending."""
    request = facts(**{"found": ("email",), "class_": "confidential", **changes})
    decision = decide(generation(MASKED, options=BOTH), "p0", request, {})
    (removed,) = (one for one in decision.removed if one.by == "redact")
    assert (removed.option, decision.redact) == ("eu-api/m", True)
    assert removed.reason.startswith('limit "masked" (policies/p0.toml:2): ')
    assert why in removed.reason
    assert "eu-api" not in names(decision)


def test_the_client_is_told_what_stands_in_the_way_of_masks():
    """The mend may be in the request, so the refusal has it."""
    refusal = decide(generation(MASKED, options=BOTH[1:]), "p0", facts(found=("card",), needs=("chat", "logprobs")), {}).refusal
    assert (refusal.kind, '"masked" (log probabilities' in refusal.message) == ("forbidden", True)


@pytest.mark.parametrize("changes", [{"found": ("email",)}, {"class_": "restricted"}], ids=str)
def test_masks_lower_no_class_and_open_nothing(changes):
    """Only what may leave anyway leaves masked, and the cache is off; text that could not be scanned counts as sensitive."""
    options = (HOME, EU, US)
    request = facts(**changes)
    without, with_ = (decide(generation(text, options=options), "p0", request, {}) for text in ("", MASKED))
    assert (names(with_), with_.redact, with_.cache) == (names(without), True, "off")


def test_a_request_without_findings_is_not_masked():
    """There is nothing to hide, so upstream and cache serve it as they would without the limit."""
    decision = decide(generation(MASKED), "p0", facts(endpoint="embeddings", needs=("chat",)), {})
    assert (decision.redact, decision.cache, len(decision.candidates)) == (False, "semantic", 3)


def test_a_refusal_also_names_what_the_able_ones_lack():
    """When the one that could do it is off, the message also says why the others could not: the mend may be in the request."""
    files = {"p0.toml": 'policy = "p0"\n' + LAST_ROUTE}
    made = Generation(files, catalogue(HOME, option("far", capabilities=("chat", "n"))))
    refusal = decide(made, "p0", facts(needs=("chat", "n")), {"far/m": OFF}).refusal
    assert refusal.message == (
        "No upstream that may serve this is available (far: off, API_KEY is not set; home/m: cannot do: n)."
    )
