"""Answers with the originals in them: streams that are cut anywhere, in any shape, come to the same as the whole."""

import json

import pytest
from hostile import event
from hypothesis import given, settings
from hypothesis import strategies as st
from parrot import STREAMED, WHOLE, heard

from gateway.errors import UpstreamFailed
from gateway.redact import Redactor, Vault
from gateway.restore import Events, Restored, whole
from gateway.upstreams import Piece

KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----"
TEXT = f'[to] ada@example.org, "bob@example.org" [and] 4111 1111 1111 1111 \U0001f600\n{KEY}'
ENDPOINTS = sorted(STREAMED)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A masked prompt, and what it stands for."""
    body = json.dumps({"model": "m", "prompt": TEXT}).encode()
    return Redactor(tmp_path_factory.mktemp("key") / "k").mask(body, tenant="t", max_chars=10_000)


def said(masked):
    return json.loads(masked.body)["prompt"]


def vault_of(*values, json_answer=False):
    vault = Vault("BCDF", json_answer=json_answer)
    for value in values:
        vault.hide("email", value)
    return vault


def restored(endpoint, vault, pieces):
    events = Events(endpoint, vault)
    return b"".join([events.feed(piece) for piece in pieces]) + events.end()


def chat(delta, finish=None, **fields):
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}).encode() + b"\n\n"
    )


def datas(out):
    return [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: {")]


@given(
    st.sampled_from(ENDPOINTS), st.integers(0, 10**9), st.lists(st.integers(1, 400), min_size=1, max_size=9), st.integers(1, 3)
)
@settings(max_examples=150)
def test_every_chunking_comes_to_the_same(masked, endpoint, seed, sizes, choices):
    """However events cut the text, and however the network cuts the events: each text of each choice and call is the original."""
    sent = b"".join(STREAMED[endpoint](said(masked), seed, {"n": choices}))
    pieces, place = [], 0
    while place < len(sent):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(sent[place : place + size])
        place += size
    out = restored(endpoint, masked.vault, pieces)
    assert set(heard(endpoint, out, stream=True).values()) == {TEXT}
    assert masked.vault.altered == 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_whole_answer_is_restored_everywhere(masked, endpoint):
    """Content, reasoning, arguments as JSON, and what the answer repeats of the request."""
    body = json.dumps(WHOLE[endpoint](said(masked), {"instructions": said(masked)})).encode()
    out = whole(body, masked.vault)
    assert set(heard(endpoint, out, stream=False).values()) == {TEXT}
    assert endpoint != "responses" or json.loads(out)["instructions"] == TEXT


@pytest.mark.parametrize("body", [b"", b"<html>[EMAIL_BCDF_1]", b"[1]", b'{"a": '])
def test_what_is_no_json_object_stays(body):
    """Whoever reads it says what is wrong with it."""
    assert whole(body, vault_of("a@example.org")) == body


def test_a_stream_without_placeholders_keeps_its_bytes():
    """Comments, ids, carriage returns, odd events and spacing pass as they came."""
    sent = b': hi\r\n\r\nid: 1\ndata: {"choices": [ {"delta":{"content":"a [b"}} ]}\n\ndata: nonsense\n\ndata:{"x":1}\n\ndata: [DONE]\n\n'
    assert restored("chat/completions", vault_of("a@example.org"), [sent]) == sent


def test_data_over_several_lines_is_restored():
    """The event becomes one line; its name stays."""
    out = restored("messages", vault_of("a@example.org"), [b'event: x\ndata: {"a":\ndata: "[EMAIL_BCDF_1]"}\n\n'])
    assert out == b'event: x\ndata: {"a": "a@example.org"}\n\n'


ENDINGS = {
    "finish": chat({}, "stop"),
    "usage": b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
    "error": b'data: {"error":{"message":"no"}}\n\n',
    "done": b"data: [DONE]\n\n",
    "nothing": b"",
    "half an event": b'data: {"choi',
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_what_is_held_goes_out_before_any_ending(ending):
    """In a chunk like the last one of its text, with nothing else in it."""
    out = restored("chat/completions", vault_of("a@example.org"), [chat({"content": "x [EMAIL_B"}, id="c"), ending])
    first, tail, *_ = datas(out.removesuffix(ending))
    assert first["choices"][0]["delta"] == {"content": "x "}
    assert tail == {"id": "c", "choices": [{"index": 0, "delta": {"content": "[EMAIL_B"}, "finish_reason": None}]}
    assert out.endswith(ending)


def test_a_text_that_ends_with_its_finish_reason_is_whole_in_that_chunk():
    """There is nothing to wait for."""
    out = restored("chat/completions", vault_of("a@example.org"), [chat({"content": "[EM"}), chat({"content": "AIL"}, "stop")])
    assert [one["choices"][0]["delta"]["content"] for one in datas(out)] == ["", "[EMAIL"]


def test_a_last_event_without_its_blank_line_stays_apart():
    """What was held follows it as an event of its own."""
    out = restored("chat/completions", vault_of("a@example.org"), [chat({"content": "x [EM"}).rstrip()])
    assert [one["choices"][0]["delta"]["content"] for one in datas(out)] == ["x ", "[EM"]
    assert out.count(b"\n\n") == 2


def test_a_cut_response_goes_on_with_the_next_number():
    """What was held has the number after the last event's."""
    sent = [event("response.output_text.delta", sequence_number=7, item_id="m", delta="x [EM")]
    assert [one["sequence_number"] for one in datas(restored("responses", vault_of("a@example.org"), sent))] == [7, 8]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("[EMAIL_BCDF_1] [EM"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "index", "delta", "type", "tool_calls", "content", "id", "finish_reason", "item_id",
                         "sequence_number", "function", "arguments", "error", "output_index"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(
    st.sampled_from(ENDPOINTS),
    st.lists(JSON | st.sampled_from([{"type": "content_block_delta"}]), max_size=4),
    st.binary(max_size=20),
)
def test_no_event_of_any_shape_breaks_the_stream(endpoint, values, rest):
    """Whatever an upstream sends, it comes out; what is no JSON comes out as it is."""
    sent = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    out = restored(endpoint, vault_of("a@example.org"), [sent, rest.replace(b"\n", b"")])
    assert out.count(b"data: ") >= len(values)


def test_calls_under_one_index_are_not_mixed():
    """Some upstreams send every call under index 0: another id begins another call, and what was held of the first goes before."""
    calls = [("a", '{"x": "[EMA'), ("", ""), ("b", '{"y": "[EMAIL_BCDF_1]"}')]
    sent = [
        chat({"tool_calls": [{"index": 0, **({"id": id_} if id_ else {}), "function": {"arguments": piece}}]})
        for id_, piece in calls
    ]
    told = [
        one["choices"][0]["delta"]["tool_calls"][0]
        for one in datas(restored("chat/completions", vault_of("q@example.org"), sent))
    ]
    assert [(call.get("id"), call["function"]["arguments"]) for call in told] == [
        ("a", '{"x": "'), (None, ""), (None, "[EMA"), ("b", '{"y": "q@example.org"}'),
    ]  # fmt: skip


def test_calls_without_an_index_are_told_apart():
    """An id begins a call, and what has none belongs to the last."""
    fragments = [{"id": "a", "function": {"arguments": '"[EMAIL_'}}, {"function": {"arguments": 'BCDF_1]"'}}]
    out = restored("chat/completions", vault_of('q"@example.org'), [chat({"tool_calls": [one]}) for one in fragments])
    told = "".join(one["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for one in datas(out))
    assert json.loads(told) == 'q"@example.org'


def test_an_answer_asked_for_as_json_stays_json():
    """Then the content is escaped like arguments; without it, it is text."""
    vault = vault_of('a\n"b"', json_answer=True)
    content = '{"k": "[EMAIL_BCDF_1]"}'
    out = restored("chat/completions", vault, [chat({"content": content[:9]}), chat({"content": content[9:]}, "stop")])
    told = "".join(one["choices"][0]["delta"]["content"] for one in datas(out))
    assert json.loads(told) == {"k": 'a\n"b"'}
    answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    assert json.loads(json.loads(whole(answer, vault))["choices"][0]["message"]["content"]) == {"k": 'a\n"b"'}


def test_parts_of_a_content_are_restored():
    """Upstreams that send a list of parts have their texts restored over pieces too."""
    parts = [{"content": [{"type": "text", "text": piece}]} for piece in ("to [EMAIL", "_BCDF_1]", " [EM")]
    out = restored("chat/completions", vault_of("a@example.org"), [chat(part) for part in parts])
    assert [one["choices"][0]["delta"]["content"][0] for one in datas(out)] == [
        {"type": "text", "text": text} for text in ("to ", "a@example.org", " ", "[EM")
    ]


def test_a_block_of_a_message_ends_with_what_was_held():
    """Before its stop, as a delta of the same type."""
    sent = [
        event("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"a": "[EMAIL_'}),
        event("content_block_stop", index=1),
    ]
    _, tail, _ = datas(restored("messages", vault_of("a@example.org"), sent))
    assert tail == {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "[EMAIL_"}}


class Said:
    """An upstream's answer of these pieces, which may break off."""

    status = 200

    def __init__(self, pieces, media="text/event-stream", failure=None):
        self.headers = [("content-type", media), ("content-length", "9")]
        self.closed = False
        self._pieces, self._failure = pieces, failure

    async def __aiter__(self):
        for piece in self._pieces:
            yield piece
        if self._failure is not None:
            raise self._failure

    async def aclose(self):
        self.closed = True


CHAT = "chat/completions"


async def test_a_cut_gives_what_was_held_and_then_fails():
    """The client has all that came; the failure is the upstream's own."""
    source = Said([Piece(chat({"content": "[EM"}))], failure=UpstreamFailed("cut", "x"))
    out = []

    async def read():
        async for piece in Restored(source, CHAT, vault_of("a@example.org")):
            out.append(piece.data)

    with pytest.raises(UpstreamFailed, match="x"):
        await read()
    assert [one["choices"][0]["delta"]["content"] for one in datas(b"".join(out))] == ["", "[EM"]


async def test_a_source_that_knows_its_tokens_is_read_like_any_other():
    """What it says of them is of the masked text, so it is not passed on; nor is a length that is no longer true."""
    source = Said([Piece(b"", "[EMAIL_BCDF_1]", 1), Piece(b'{"a":"[EMAIL_BCDF_1]"}')], "application/json")
    answer = Restored(source, CHAT, vault_of("a@example.org"))
    assert [piece async for piece in answer] == [Piece(b'{"a":"a@example.org"}')]
    assert answer.headers == [("content-type", "application/json")]
    await answer.aclose()
    assert source.closed


async def test_what_comes_back_altered_is_told():
    """While the answer goes, so that the record has it whatever its ending."""
    vault, told = vault_of("a@example.org"), []
    vault.on_altered = told.append
    async for _ in Restored(
        Said([Piece(chat({"content": "email_bcdf_1"})), Piece(chat({"content": "[EMAIL BCDF"}))]), CHAT, vault
    ):
        pass
    assert (told[0], told[-1]) == (1, 2)
