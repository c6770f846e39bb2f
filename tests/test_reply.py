"""Answers on their way to the client: what is logged, settled and told when they end, whatever they were made of."""

import json

import pytest
from front import body
from hostile import chunk, completion

from gateway import reply, stream, wire
from gateway.cache import Entry, Hit
from gateway.dispatch import Opened
from gateway.ledger import Usage
from gateway.patience import Patience, Waits
from gateway.policy.decision import Option
from gateway.sse import DONE
from gateway.upstreams import Call, Piece

OPTION = Option(
    upstream="up", model="m", zone="local", retention="none", trains=False, takes_up_to="public", capabilities=("chat",),
    input_usd_per_mtok=1_000_000.0, output_usd_per_mtok=2_000_000.0,
)  # fmt: skip


class Given:
    """An Answer whose pieces are given."""

    status = 200

    def __init__(self, pieces, media="text/event-stream"):
        self.headers = [("content-type", media)]
        self._pieces = pieces

    async def __aiter__(self):
        for piece in self._pieces:
            yield piece

    async def aclose(self):
        pass


class Shelf:
    def __init__(self, room=1_000_000):
        self.pool = stream.Pool(2_000_000)
        self.kept = []
        self._most = room

    def room(self):
        return stream.Room(self._most, self.pool) if self._most else None

    def keep(self, entry, *, exact_only):
        self.kept.append(entry)


@pytest.fixture
def relay(world):
    """Relay given pieces; gives the answer's bytes, and world and shelf to look at."""
    made = world()

    async def run(*pieces, stream=True, shelf=None, usage_added=False, media="text/event-stream", **fields):
        sent = body(stream=stream, **fields)
        request = wire.read("chat/completions", sent)
        call = Call(request_id="r", endpoint=request.endpoint, model="m", body=sent, stream=stream, usage_added=usage_added)
        made.health.started(OPTION.name)
        opened = Opened(OPTION, Given(pieces, media), call, Patience(Waits(), 10.0, "late"), made.health)
        await opened.prime()
        ledger = made.ledger()
        ledger.log_text = True
        shelf = shelf or Shelf()
        got = await reply.relayed(ledger, opened, request, [], prompt_tokens=10, keeper=shelf, done="complete")
        out = b"".join([piece async for piece in got.pieces()])
        await got.aclose()
        return out, made.records[-1], shelf

    run.world = made
    return run


def say(text, n_tokens=1, **fields):
    return Piece(chunk(text, **fields), text, n_tokens)


async def test_usage_is_taken_out_only_where_we_put_it_in(relay):
    """Whether the client asked is not the question: an API may count unasked, and then its bytes are the client's."""
    counted = chunk("x", finish="stop", usage=None)
    for usage_added, expected in ((False, counted), (True, chunk("x", finish="stop"))):
        out, _, _ = await relay(Piece(counted), Piece(DONE), usage_added=usage_added)
        assert out == expected + DONE


async def test_a_burst_is_relayed_and_logged_like_its_events(relay):
    """A whole stream in one read, cut anywhere: the same bytes, a log line for each event, and its usage."""
    said = [f"word{number} " for number in range(40)]
    last = chunk(finish="stop") + chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 40}) + DONE
    whole = b"".join(map(chunk, said)) + last
    assert len(whole) > 4 * reply._BURST_BYTES
    for cut in (len(whole), len(whole) // 2, 2 * len(whole) // 3):
        relay.world.tokens.clear()
        out, record, _ = await relay(*[Piece(part) for part in (whole[:cut], whole[cut:]) if part])
        assert out == whole
        assert ([token.text for token in relay.world.tokens], record.events) == (said, 40)
        assert record.usage == Usage(3, 40)


async def test_a_source_that_counts_is_believed(relay):
    """Its pieces are the log's lines, with the tokens that said nothing; nobody parses them for text again."""
    await relay(say("one ", 2), say("two", 3), Piece(chunk(finish="stop"), "", 1), Piece(DONE, "", 0))
    assert [(token.text, token.n_tokens) for token in relay.world.tokens] == [("one ", 2), ("two", 3), ("", 1)]


async def test_a_whole_answer_of_a_source_that_counts(relay):
    """The same when it does not stream."""
    whole = json.dumps(completion("one two")).encode()
    out, record, _ = await relay(
        Piece(b"", "one ", 2), Piece(b"", "two", 3), Piece(whole, "", 0), stream=False, media="application/json"
    )
    assert (out, record.finish_reason) == (whole, "stop")
    assert [(token.text, token.n_tokens) for token in relay.world.tokens] == [("one ", 2), ("two", 3)]


async def test_what_nobody_counted_is_estimated_and_says_so(relay):
    """A quarter of the characters, and the prompt's estimate."""
    _, record, _ = await relay(Piece(chunk("x" * 40)), Piece(chunk(finish="stop")), Piece(DONE))
    assert (record.usage, record.cost_usd) == (Usage(10, 10, estimated=True), 30.0)


async def test_what_the_upstream_counted_is_paid(relay):
    """Its own numbers, with what was cached."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    _, record, _ = await relay(Piece(chunk("x", finish="stop", usage=usage)), Piece(DONE))
    assert (record.usage, record.cost_usd) == (Usage(3, 2, 1), 7.0)


KEPT = {
    "whole": ([chunk("x"), chunk(finish="stop"), DONE], True),
    "without the end mark": ([chunk("x"), chunk(finish="stop")], True),
    "cut": ([chunk("x")], False),
    "an end mark without a finish reason": ([chunk("x"), DONE], False),
    "tools": ([chunk("x"), chunk(finish="tool_calls"), DONE], False),
    "something unreadable": ([chunk("x"), b"data: hello\n\n", chunk(finish="stop"), DONE], False),
    "something odd": ([chunk("x"), b'data: {"choices":[{"index":"one"}]}\n\n', chunk(finish="stop"), DONE], False),
    "an error": ([chunk("x"), b'data: {"error":"no"}\n\n', chunk(finish="stop"), DONE], False),
}


@pytest.mark.parametrize(("parts", "kept"), KEPT.values(), ids=KEPT)
async def test_only_what_came_to_its_end_is_kept(relay, parts, kept):
    """As events, in order, without the end mark."""
    _, _, shelf = await relay(*map(Piece, parts))
    assert [entry.kind for entry in shelf.kept] == (["events"] if kept else [])


async def test_what_does_not_fit_is_not_kept(relay):
    """Neither a stream nor a body."""
    _, _, shelf = await relay(*map(Piece, KEPT["whole"][0]), shelf=Shelf(50))
    assert shelf.kept == []
    _, _, shelf = await relay(Piece(json.dumps(completion()).encode()), stream=False, media="application/json", shelf=Shelf(50))
    assert shelf.kept == []


ENDS = {
    "whole": KEPT["whole"][0],
    "odd": KEPT["something odd"][0],
    "cut": [chunk("x")],
    "error": KEPT["an error"][0],
    "too long": [chunk("x" * 400), chunk(finish="stop"), DONE],
}


@pytest.mark.parametrize("parts", ENDS.values(), ids=ENDS)
async def test_what_was_held_for_the_cache_is_given_back_however_it_ends(relay, parts):
    """So that the bound on all answers under way holds, and does not shrink."""
    shelf = Shelf(500)
    before = shelf.pool.left
    await relay(*map(Piece, parts), shelf=shelf)
    assert shelf.pool.left == before


async def test_answers_under_way_hold_no_more_than_all_of_them_may(relay):
    """What finds no room passes all the same, and is not kept; what held room of its own is not touched."""
    shelf = Shelf()
    first = stream.Room(10_000, shelf.pool)
    assert first.take(5_000)
    shelf.pool.left = 50
    out, record, _ = await relay(*map(Piece, KEPT["whole"][0]), shelf=shelf)
    assert (record.ending, out.endswith(DONE), shelf.kept, shelf.pool.left) == ("complete", True, [], 50)
    first.give_back()
    first.give_back()
    assert shelf.pool.left == 5_050
    await relay(*map(Piece, KEPT["whole"][0]), shelf=shelf)
    assert len(shelf.kept) == 1


async def test_several_choices_cut_between_them_are_broken(relay):
    """Two were asked for, one had ended, the other not begun."""
    out, record, _ = await relay(Piece(chunk("x")), Piece(chunk(finish="stop")), n=2)
    assert (record.ending, b'"error"' in out) == ("broken", True)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["json", "events"])
async def test_a_stored_answer_is_given_in_either_shape(world, kind, stream):
    """Reasoning, calls and usage are those of the first time."""
    message = {
        "content": "a b",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    whole = completion()
    whole["choices"][0]["message"] |= message
    events = tuple(reply.stream.chunks_of(json.dumps(whole).encode()))
    entry = Entry(
        kind=kind, body=json.dumps(whole).encode() if kind == "json" else b"", events=events if kind == "events" else ()
    )
    request = wire.read("chat/completions", body(stream=stream, stream_options={"include_usage": True}))
    made = world()
    got = await reply.stored(made.ledger(), Hit(entry, "exact", 1.0, 0.0), request, [])
    out = b"".join([piece async for piece in got.pieces()])
    await got.aclose()
    if stream:
        parts = [line[6:] for line in out.split(b"\n\n") if line.startswith(b"data: {")]
        assert all("usage" in json.loads(part) for part in parts)
        out = reply.stream.collect(parts)
    found = json.loads(out)
    assert {name: found["choices"][0]["message"][name] for name in message} == message
    assert found["usage"] == whole["usage"]
    assert (made.records[0].ending, made.records[0].cost_usd) == ("hit", 0.0)
