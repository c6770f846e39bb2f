"""The identity of a request."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import key

BODY = {
    "model": "auto",
    "temperature": 0.2,
    "messages": [
        {"role": "system", "content": "Answer as a pirate."},
        {"role": "user", "content": "Who wrote Dune?"},
        {"role": "assistant", "content": "Frank Herbert."},
        {"role": "user", "content": "Tell me about the author"},
    ],
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {}, "b": {}}}}},
}


def scope(body, **changes):
    given_ = {"tenant": "t", "endpoint": "chat/completions", "model": "auto", "policy_scope": "p@1"} | changes
    return key.scope(body, **given_)


def at(path, value):
    body = copy.deepcopy(BODY)
    target = body
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return body


SCALARS = st.one_of(st.text(max_size=8), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
PLACES = st.sampled_from(
    [
        *((name,) for name in ("temperature", "top_p", "logit_bias", "reasoning_effort", "any_new_field")),
        *(("messages", turn, "content") for turn in range(3)),
        ("messages", 0, "role"),
        ("messages", 1, "name"),
        ("response_format", "type"),
    ]
)


@given(PLACES, SCALARS)
def test_any_changed_field_changes_the_scope(place, value):
    """Changing any parameter, system text or earlier turn always leads to another scope and another key."""
    body = at(place, value)
    if json.dumps(body) == json.dumps(BODY):
        return
    changed, base = scope(body), scope(BODY)
    assert changed is None or (changed.digest != base.digest and changed.key != base.key)


@given(st.sampled_from(["tenant", "endpoint", "model", "policy_scope", "epoch"]), st.text(max_size=8))
def test_any_changed_owner_changes_the_scope(name, value):
    """Another tenant, endpoint, model, policy scope or epoch is another scope, whatever they are called."""
    if value == {"tenant": "t", "endpoint": "chat/completions", "model": "auto", "policy_scope": "p@1", "epoch": ""}[name]:
        return
    changed, base = scope(BODY, **{name: value}), scope(BODY)
    assert changed is None or (changed.digest != base.digest and changed.key != base.key)


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
def test_owners_do_not_run_into_each_other(tenant, model, other_tenant, other_model):
    """Moving letters from the tenant's name to the model's never leads to the same scope."""
    if (tenant, model) == (other_tenant, other_model):
        return
    assert scope(BODY, tenant=tenant, model=model).digest != scope(BODY, tenant=other_tenant, model=other_model).digest


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_last_text_alone_stays_out_of_the_scope(one, other):
    """Two last texts share a scope, and share a key only when they are the same text."""
    a, b = scope(at(("messages", 3, "content"), one)), scope(at(("messages", 3, "content"), other))
    if a is None or b is None:
        return
    assert a.digest == b.digest
    assert (a.key == b.key) == (one == other)


@pytest.mark.parametrize("name", sorted(key.BLANKED))
def test_a_field_that_does_not_change_the_answer_does_not_change_the_key(name):
    """Fields about delivery and bookkeeping lead to the same stored answer."""
    value = False if name == "store" else {"some": "thing"}
    assert scope({**BODY, name: value}).key == scope(BODY).key


def test_top_level_order_is_nothing_and_schema_order_is_something():
    """Fields may come in any order; the properties of a schema may not, since answers follow it."""
    turned = at(("response_format", "json_schema", "schema", "properties"), {"b": {}, "a": {}})
    assert scope(dict(reversed(BODY.items()))).key == scope(BODY).key
    assert scope(turned).key != scope(BODY).key


def test_a_text_part_is_not_a_string():
    """The same words as a string and as a part are two scopes: what a model reads may differ."""
    part = scope(at(("messages", 3, "content"), [{"type": "text", "text": "Tell me about the author"}]))
    assert part.text == scope(BODY).text
    assert part.digest != scope(BODY).digest


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 2}, "choices"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"store": True}, "state"),
        ({"previous_response_id": "r"}, "state"),
        ({"modalities": ["text", "audio"]}, "media"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "media"),
        ({"messages": []}, "shape"),
        ({"messages": "hello"}, None),
    ],
)
def test_what_is_never_kept_says_why(changes, reason):
    """Requests whose answer acts, varies, or is not text are kept out of every tier, each with its reason."""
    assert key.cacheable({**BODY, **changes}) == reason
    assert (scope({**BODY, **changes}) is None) == (reason is not None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What time is it?", "live"),
        ("What\u2019s the weather right now in Berlin?", "live"),
        ("What is the current price of Bitcoin?", "live"),
        ("Is the service down today?", "live"),
        ("Wie wird das Wetter?", "live"),
        ("Roll a die for me", "chance"),
        ("Generate a random password", "chance"),
        ("Tell me a joke I have not heard", "chance"),
        ("What is my account balance?", "records"),
        ("Where is my order?", "records"),
        ("Summarise my last three emails", "records"),
        ("What did I just say?", "records"),
        ("How do I reset my password?", None),
        ("What do you know about the Berlin wall?", None),
        ("Explain photosynthesis in simple words", None),
    ],
)
def test_a_fleeting_question_is_never_kept(text, reason):
    """Questions about now, chance or the asker's own affairs are kept out; plain ones are not."""
    assert key.cacheable({"messages": [{"role": "user", "content": text}]}) == reason


@pytest.mark.parametrize(
    ("body", "endpoint", "why"),
    [
        ({**BODY, "seed": 7}, "chat/completions", "seed"),
        ({**BODY, "messages": [*BODY["messages"], {"role": "assistant", "content": "It"}]}, "chat/completions", "no_text"),
        ({"prompt": "Once upon a time"}, "completions", "no_text"),
        ({"input": ["What time is it?"]}, "embeddings", "no_text"),
        (at(("messages", 3, "content"), "half \ud800 pair"), "chat/completions", "unicode"),
    ],
)
def test_without_one_last_user_text_only_equal_requests_meet(body, endpoint, why):
    """Seeds, prefills, raw completions, embeddings and broken text are answered by their equal only."""
    found = scope(body, endpoint=endpoint)
    assert found.text is None
    assert found.exact_only == why
