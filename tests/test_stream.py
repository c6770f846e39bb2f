"""Reading what passes, and turning a stream into one object and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sse, stream
from gateway.ledger import Usage


def data(*choices, **fields):
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": list(choices), **fields}).encode()


def choice(index=0, finish=None, **delta):
    return {"index": index, "delta": delta, "finish_reason": finish}


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}, "x": {"reasoning_tokens": 1}}


def tap(*datas, choices=1, strip=False, keep=10_000):
    room = stream.Room(keep, stream.Pool(10_000)) if keep else None
    made = stream.Tap(strip_usage=strip, room=room, choices=choices)
    return made, [made.event(sse.event_of(part)) for part in datas]


UNFINISHED = {
    "no finish": [data(choice(content="a"))],
    "nothing": [],
    "usage alone": [data(usage=USAGE)],
    "one of two choices": [data(choice(0, content="a"), choice(1, content="b")), data(choice(0, "stop"))],
    "the second choice not begun": [data(choice(0, content="a")), data(choice(0, "stop"))],
}


@pytest.mark.parametrize("datas", UNFINISHED.values(), ids=UNFINISHED)
def test_a_stream_without_its_end_is_not_whole(datas):
    """Every choice that was asked for must have its finish reason, unless the end mark came."""
    made, _ = tap(*datas, choices=2)
    assert not made.whole
    made.event(sse.DONE)
    assert made.whole
    assert not made.finished


def test_finish_reasons_end_a_stream_that_spares_its_end_mark():
    """Both choices, interleaved."""
    made, seen = tap(
        data(choice(1, content="b"), choice(0, content="a")), data(choice(0, "stop")), data(choice(1, "length")), choices=2
    )
    assert made.whole
    assert made.finished
    assert made.finish_reasons == {0: "stop", 1: "length"}
    assert seen[0].texts == ((1, "b"), (0, "a"))


def test_usage_goes_through_unless_we_asked_for_it():
    """Relayed events are the sender's bytes; rewritten ones lack the usage chunk and the nulls, and nothing else."""
    chunk = b'{"choices":[{"index":0,"delta":{"content":"\\"usage\\":null,"}}], "usage" : null ,"z":1.10}'
    plain, edited = tap(chunk, data(usage=USAGE)), tap(chunk, data(usage=USAGE), strip=True)
    assert [seen.out for seen in plain[1]] == [sse.event_of(chunk), sse.event_of(data(usage=USAGE))]
    assert [seen.out for seen in edited[1]] == [
        sse.event_of(b'{"choices":[{"index":0,"delta":{"content":"\\"usage\\":null,"}}] ,"z":1.10}'),
        b"",
    ]
    assert plain[0].usage == edited[0].usage == Usage(7, 3, 2)


def test_usage_beside_choices_is_never_taken_out():
    """Some APIs count as they go: the choices must arrive."""
    chunk = data(choice(content="a"), usage=USAGE)
    made, (seen,) = tap(chunk, strip=True)
    assert seen.out == sse.event_of(chunk)
    assert made.usage == Usage(7, 3, 2)


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=4)


@given(
    st.dictionaries(st.sampled_from(["a", "usage", "choices", "b"]), JSON, max_size=4),
    st.dictionaries(st.just("usage"), st.none()),
)
def test_only_a_top_level_null_is_taken_out(outer, inner):
    """The rest decodes to the same; a name that stands twice stays."""
    chunk = json.dumps({**outer, "usage": None, "n": inner}).encode()
    edited = json.loads(stream.without_null_usage(chunk))
    assert {**edited, "usage": None} == json.loads(chunk)
    assert ("usage" in edited) is bool(inner)


ODD = [
    b'{"choices":[{"index":0,"delta":{"content":[{"type":"text","text":"a"}]}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"a","tool_calls":5}}],"usage":{"prompt_tokens":1.5}}',
    b'{"choices":[{"index":0,"delta":{"content":"a"}},{"index":"x"},7]}',
    b'{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":[]}',
    b'{"choices":[{"index":0,"delta":{"content":"a","refusal":"\\ud800"}}]}',
]


@pytest.mark.parametrize("part", ODD)
def test_an_odd_field_does_not_hide_the_others(part):
    """Text is seen and bytes pass, whatever stands beside."""
    _, (seen,) = tap(part)
    assert seen.texts[0][1].startswith("a")
    assert seen.out == sse.event_of(part)


@pytest.mark.parametrize("part", [b"{", b"[1]", b"hello", b"\xff", b"[" * 20_000])
def test_what_is_not_an_object_passes_and_is_not_kept(part):
    """An event that nobody can read makes the stream unfit for the cache, no more."""
    made, (seen,) = tap(part)
    assert (seen.out, made.kept) == (sse.event_of(part), None)


@pytest.mark.parametrize("error", ["boom", {"message": "m", "code": 5}, ["x"]])
def test_an_error_is_seen_whatever_its_shape(error):
    """Beside usage that cannot be read, too; what came before it is not kept."""
    made, seen = tap(data(choice(content="a")), json.dumps({"error": error, "usage": {"prompt_tokens": "x"}}).encode())
    assert (seen[1].error, made.error, made.kept) == (error, error, None)
    assert not tap(b'{"error":null,"choices":[]}')[0].error


def test_what_is_too_large_is_not_kept():
    """Half an answer is worth nothing."""
    assert tap(data(choice(content="a" * 50)), data(choice(content="b" * 50)), keep=150)[0].kept is None


CALLS = [
    [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
    [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": '{"y"'}}],
    [{"index": 0, "function": {"arguments": "{}"}}, {"index": 1, "id": "b", "function": {"name": "g", "arguments": ":1}"}}],
]


def test_collect_joins_parallel_calls_by_their_index():
    """Names and ids stand once, arguments are joined, the index is gone."""
    found = json.loads(stream.collect([data(choice(tool_calls=calls)) for calls in CALLS] + [data(choice(0, "tool_calls"))]))
    assert found["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"y":1}'}},
    ]
    assert found["choices"][0]["finish_reason"] == "tool_calls"


def test_collect_takes_calls_without_an_index():
    """An id begins a call; what has none goes on with the last."""
    deltas = [
        {"id": "a", "function": {"arguments": "1"}},
        {"function": {"arguments": "2"}},
        {"id": "b", "function": {"arguments": "3"}},
    ]
    calls = json.loads(stream.collect([data(choice(tool_calls=[delta])) for delta in deltas]))["choices"][0]["message"][
        "tool_calls"
    ]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", "12"), ("b", "3")]


def test_collect_invents_no_end():
    """A choice without a finish reason has none in the whole answer."""
    assert json.loads(stream.collect([data(choice(content="a"))]))["choices"][0]["finish_reason"] is None


def test_collect_keeps_the_upstreams_own_usage():
    """Details that we do not know are kept; the usage chunk adds no choice."""
    found = json.loads(stream.collect([data(choice(0, "stop", role="assistant", content="a")), data(usage=USAGE)]))
    assert found["usage"] == USAGE
    assert len(found["choices"]) == 1


WORDS = st.text(max_size=12) | st.sampled_from(["a b\n c ", " ", "\ud800 x"])
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | WORDS.filter(bool), "refusal": st.none() | WORDS.filter(bool)},
    optional={
        "reasoning_content": WORDS.filter(bool),
        "annotations": st.just([{"type": "url"}]),
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {
                    "id": WORDS,
                    "type": st.just("function"),
                    "function": st.fixed_dictionaries({"name": WORDS, "arguments": WORDS}),
                }
            ),
            min_size=1,
            max_size=3,
        ),
    },
)
LOGPROBS = st.none() | st.just({"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}], "refusal": None})


@given(st.lists(st.tuples(MESSAGE, LOGPROBS, st.sampled_from(["stop", "length", "tool_calls"])), min_size=1, max_size=3))
def test_collect_undoes_chunks_of(parts):
    """A whole answer that is streamed and collected again is the same answer: message, calls, reasoning, logprobs, usage."""
    choices = [
        {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish,
            "content_filter_results": {"hate": index},
        }
        for index, (message, logprobs, finish) in enumerate(parts)
    ]
    whole = {"id": "x", "object": "chat.completion", "created": 2**70, "model": "m", "service_tier": "s", "choices": choices}
    whole["usage"] = USAGE
    assert json.loads(stream.collect(list(stream.chunks_of(json.dumps(whole).encode())))) == whole


@given(
    st.lists(WORDS, min_size=1, max_size=3), st.none() | st.just({"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]})
)
def test_collect_undoes_chunks_of_for_completions(texts, logprobs):
    """The same for plain completions."""
    choices = [{"index": i, "text": text, "logprobs": logprobs, "finish_reason": "stop"} for i, text in enumerate(texts)]
    whole = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
    assert json.loads(stream.collect(list(stream.chunks_of(json.dumps(whole).encode())))) == whole


def test_every_chunk_is_one_that_an_sdk_accepts():
    """The role first, an index and a finish reason in each, exactly one that is not null, and one id for all."""
    from openai.types.chat import ChatCompletionChunk  # noqa: PLC0415 - half a second that only this test needs

    message = {
        "role": "assistant",
        "content": "a b",
        "tool_calls": [{"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": {**USAGE, "total_tokens": 10}}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    chunks = [ChatCompletionChunk.model_validate_json(part, strict=True) for part in stream.chunks_of(json.dumps(body).encode())]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["tool_calls"]
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens, {chunk.id for chunk in chunks}) == ([], 10, {"x"})


def test_a_null_usage_is_added_once():
    """Also beside a token that reads "usage"."""
    assert stream.with_null_usage(b'{"a":"usage"}') == b'{"a":"usage","usage":null}'
    assert stream.with_null_usage(b'{"usage" : null}') == b'{"usage" : null}'


PLAIN = [
    data(choice(content="a")),
    data(choice(content='ü\n\n"usage":null}')),
    data(choice(1, content="b"), choice(0, "stop")),
    data(choice(content=""), usage=None),
    json.dumps({"choices": [choice(content="c")], "usage": None}, separators=(",", ":")).encode(),
    data(choice(refusal="no", tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])),
    data({"index": 0, "text": "d", "finish_reason": "length"}),
    data(),
    data(usage=USAGE),
    b'{"error": {"message": "no"}}',
    b'{"choices": [{"index": "odd"}]}',
    b'{"choices": [1',
    b"2]}",
    b"[DONE]",
    b'{\n"choices": [{"index": 7, "delta": {"content": "not in this event"}}]}',
    b'{"choices": []}\nid: 3',
]


def state(made):
    return made.usage, made.finish_reasons, made.choices, made.done, made.error, made.kept


@given(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=6), st.booleans(), st.sampled_from([0, 60, 10_000]))
def test_events_read_together_say_what_they_say_one_by_one(datas, strip, keep):
    """Whatever they are: bytes, texts, usage, ends and what the cache may keep; or they are not read together, and nothing is noted."""
    one, seen = tap(*datas, strip=strip, keep=keep)
    other, _ = tap(strip=strip, keep=keep)
    before = state(other)
    burst = other.burst(b"".join(map(sse.event_of, datas)))
    if burst is None:
        assert state(other) == before
    else:
        rest = [other.event(event) for event in burst.rest]
        assert b"".join([burst.out, *(part.out for part in rest)]) == b"".join(part.out for part in seen)
        assert (*burst.texts, *(text for part in rest for text in part.texts)) == sum((part.texts for part in seen), ())
        assert state(other) == state(one)


def test_usual_events_are_read_together():
    """Else the test above would show nothing."""
    made, _ = tap(strip=True)
    burst = made.burst(b"".join(map(sse.event_of, (PLAIN[0], PLAIN[2], PLAIN[8], b"[DONE]"))))
    assert (burst.texts, burst.rest) == ([(0, "a"), (1, "b")], [sse.event_of(PLAIN[8]), sse.DONE])
    nulls = b'{"choices": [{"index": 0, "delta": {"content": "c"}}],"usage":null}'
    assert made.burst(sse.event_of(nulls) * 3).out == sse.event_of(nulls.replace(b',"usage":null', b"")) * 3
