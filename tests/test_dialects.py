"""The dialects: what events and whole answers say, how errors look, and that nothing that arrives can make them fall."""

import json

import pytest
from hostile import begun, chunk, completion, ended, event, message, message_events, response, says
from hypothesis import given
from hypothesis import strategies as st

from gateway import dialects, stream, wire
from gateway.errors import (
    ApiError,
    BadUpstream,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    Relayed,
    TooLarge,
    Unauthorized,
    Unavailable,
    UpstreamTimeout,
)  # fmt: skip
from gateway.ledger import Usage

ENDPOINTS = sorted({*wire.ENDPOINTS, "responses/retrieve", "responses/delete"})
EVERY = pytest.mark.parametrize("endpoint", ENDPOINTS)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "x", "error", "response.failed", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "error", "response", "usage", "input_tokens", "input_tokens_details", "output", "content",
                             "delta", "message", "text", "choices", "stop_reason", "id", "status", "object", "sequence_number"]),
            inner, max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip
KINDS = st.sampled_from(["error", "response.created", "response.completed", "response.failed", "response.output_text.delta",
                         "message_start", "message_delta", "message_stop", "content_block_delta", "ping"])  # fmt: skip
OBJECTS = st.dictionaries(
    st.sampled_from(["response", "message", "delta", "usage", "error", "index", "output_index"]), JSON, max_size=4
)
DATA = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(KINDS, OBJECTS).map(lambda pair: json.dumps({**pair[1], "type": pair[0]}).encode()),
)


@EVERY
@given(datas=st.lists(DATA, max_size=4))
def test_whatever_arrives_passes_and_nothing_falls(endpoint, datas):
    """Events keep their bytes, an error or a judgement comes out, and the stream can be ended at any point."""
    dialect = dialects.of(endpoint)
    tap = dialect.tap(strip_usage=False, room=stream.Room(1_000, stream.Pool(1_000)), choices=1)
    for data in datas:
        raw = b"data: " + data.replace(b"\r", b"").replace(b"\n", b"") + b"\n\n"
        assert tap.event(raw).out == raw
        assert isinstance(dialect.opening(data).begins, bool)
        whole = dialect.whole(data)
        assert whole is None or all(isinstance(text, str) for _, text in whole.texts)
    assert isinstance(tap.whole, bool)
    assert b"event: error" in tap.end_with(BadUpstream("x")) or b"[DONE]" in tap.end_with(BadUpstream("x"))
    assert b"error" not in tap.end_with(None)


TYPES = [
    (InvalidRequest, "invalid_request_error"), (Unauthorized, "authentication_error"), (Forbidden, "permission_error"),
    (NotFound, "not_found_error"), (TooLarge, "request_too_large"), (RateLimited, "rate_limit_error"), (BadUpstream, "api_error"),
    (Unavailable, "api_error"), (UpstreamTimeout, "timeout_error"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), TYPES)
def test_anthropics_error_types_follow_the_status(error, kind):
    """The same in a body and inside a stream."""
    dialect = dialects.of("messages")
    expected = {"type": "error", "error": {"type": kind, "message": "why"}}
    assert json.loads(dialect.error_body(error("why"))) == expected
    told = dialect.tap(strip_usage=False, room=None, choices=1).end_with(error("why"))
    assert told == b"event: error\ndata: " + json.dumps(expected, separators=(",", ":")).encode() + b"\n\n"


@pytest.mark.parametrize("endpoint", ["chat/completions", "responses", "moderations", "audio/speech"])
def test_openais_error_bodies_are_the_envelope(endpoint):
    """An upstream's own body keeps its bytes."""
    own = b'{ "error": {"message":"no", "n":1.10} }'
    assert dialects.of(endpoint).error_body(Relayed(400, own, (), code=None)) == own
    assert json.loads(dialects.of(endpoint).error_body(NotFound("x", param="p", code="c"))) == {
        "error": {"message": "x", "type": "invalid_request_error", "param": "p", "code": "c"}
    }


def fed(endpoint, *events):
    tap = dialects.of(endpoint).tap(strip_usage=False, room=stream.Room(1_000, stream.Pool(1_000)), choices=1)
    seen = [tap.event(one) for one in events]
    return tap, [text for one in seen for text in one.texts]


def test_an_error_in_a_response_goes_on_counting():
    """The next number, whatever was skipped; `response.failed` only where a response had begun."""
    tap, _ = fed("responses", begun(), says("x", 41))
    numbers = [
        json.loads(line[6:])["sequence_number"]
        for line in tap.end_with(BadUpstream("x")).decode().splitlines()
        if line[:5] == "data:"
    ]
    assert numbers == [42, 43]
    tap, _ = fed("responses", says("x", 0))
    assert b"response.failed" not in tap.end_with(BadUpstream("x"))


def test_where_the_official_client_looks_for_an_error_there_is_one():
    """Flat as the API description has it, and as an object under `error`, all four keys each time."""
    tap, _ = fed("responses", begun())
    told = json.loads(tap.end_with(Relayed(502, b'{"error":{"message":"no","code":7}}', (), code=None)).split(b"\n")[1][6:])
    assert (told["type"], told["message"], told["code"], told["param"]) == ("error", "no", None, None)
    assert told["error"] == {"message": "no", "type": None, "code": None, "param": None}


RESPONSE_ENDS = [("completed", "completed", True), ("incomplete", "max_output_tokens", True), ("cancelled", "cancelled", True)]


@pytest.mark.parametrize(("kind", "reason", "whole"), RESPONSE_ENDS)
def test_a_response_ends_in_one_of_several_ways(kind, reason, whole):
    """Each is an end, with its reason and usage; nothing else is."""
    details = {"incomplete_details": {"reason": "max_output_tokens"}} if kind == "incomplete" else {}
    tap, texts = fed("responses", begun(), says("a", 1), ended(2, kind, **details))
    assert (tap.whole, tap.done, tap.finish_reasons, tap.usage, tap.id) == (whole, True, {0: reason}, Usage(5, 2, 1), "resp_1")
    assert texts == [(0, "a")]
    assert not fed("responses", begun(), says("a", 1))[0].whole


SAID = {
    "refusal": (event("response.refusal.delta", output_index=1, delta="no"), [(1, "no")]),
    "arguments": (event("response.function_call_arguments.delta", output_index=2, delta="{}"), [(2, "{}")]),
    "reasoning": (event("response.reasoning_summary_text.delta", output_index=0, delta="hm"), [(0, "hm")]),
    "sound": (event("response.audio.delta", delta="UklGRg=="), []),
    "done": (event("response.output_text.done", text="all of it again"), []),
    "odd": (event("response.output_text.delta", delta={"x": 1}, output_index="one"), []),
}


@pytest.mark.parametrize(("raw", "texts"), SAID.values(), ids=SAID)
def test_what_a_typed_event_says_is_logged_once(raw, texts):
    """Deltas of text of any kind; neither sound nor what repeats them."""
    assert fed("responses", raw)[1] == texts


def test_a_message_says_text_thought_and_calls():
    """With the counts of its first and last event together; cached prompt tokens are prompt tokens."""
    more = [
        event("content_block_delta", index=1, delta=delta)
        for delta in ({"thinking": "hm"}, {"partial_json": "{}"}, {"signature": "z"})
    ]
    events = message_events("fine")
    tap, texts = fed("messages", *events[:4], *more, *events[4:])
    assert (texts, tap.usage, tap.finish_reasons, tap.whole) == (
        [(0, "fine"), (1, "hm"), (1, "{}")],
        Usage(8, 2, 4),
        {0: "end_turn"},
        True,
    )
    assert not fed("messages", *events[:-1])[0].whole


WHOLES = [
    ("responses", response(), ((0, "fine"),), Usage(5, 2, 1), {"completed"}, "resp_1"),
    ("responses/retrieve", response(), (), None, {"completed"}, "resp_1"),
    ("messages", message(), ((0, "fine"),), Usage(8, 2, 4), {"end_turn"}, ""),
    ("messages/count_tokens", {"input_tokens": 7}, (), None, set(), ""),
    ("chat/completions", completion(), ((0, "fine"),), Usage(3, 2), {"stop"}, ""),
    ("moderations", {"id": "modr-1", "results": []}, (), None, set(), ""),
    ("images/generations", {"data": [], "usage": {"input_tokens": 1, "output_tokens": 2}}, (), Usage(1, 2), set(), ""),
]


@pytest.mark.parametrize("row", WHOLES, ids=lambda row: row[0])
def test_what_a_whole_answer_says(row):
    """Text, usage, reasons and the id it is kept under; a stored one that is read again says and costs nothing."""
    endpoint, body, texts, usage, reasons, id_ = row
    whole = dialects.of(endpoint).whole(json.dumps(body).encode())
    assert (whole.texts, whole.usage, set(whole.reasons), whole.id, whole.error) == (texts, usage, reasons, id_, None)


@EVERY
def test_an_error_in_a_200_is_seen(endpoint):
    """In a whole answer and as the first event, in the chat's shape too: an API may only half speak the dialect."""
    body = b'{"error":{"message":"no"}}'
    assert dialects.of(endpoint).whole(body).error == {"message": "no"}
    assert dialects.of(endpoint).opening(body).error == {"message": "no"}


def test_a_failed_response_is_an_answer():
    """It carries its own status and error, and is no failure of the upstream's transport."""
    whole = dialects.of("responses").whole(json.dumps(response("failed", error={"message": "no", "code": "x"})).encode())
    assert (whole.error, set(whole.reasons)) == (None, {"failed"})


def test_only_chats_answers_are_cached():
    """Nothing that cannot be replayed in either shape."""
    assert {name for name in wire.ENDPOINTS if dialects.of(name).converts} == {"chat/completions", "completions", "embeddings"}
    assert dialects.of("chat/completions").whole(chunk("x")[6:]).storable


def test_every_error_has_a_body_in_every_dialect():
    """Whatever class of ours it is."""
    for error in ApiError.__subclasses__():
        made = error(400, b'{"error":{"message":"x"}}', (), code=None) if error is Relayed else error("x")
        assert all("x" in json.loads(dialects.of(name).error_body(made))["error"]["message"] for name in ENDPOINTS)
