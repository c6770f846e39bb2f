"""One Record for each request, whatever happens to it."""

import msgspec
import pytest

from gateway.ledger import Ending, Ledger, Usage, by_request


@pytest.fixture
def sinks():
    return {"on_token": [], "on_event": [], "on_record": []}


@pytest.fixture
def ledger(sinks):
    return Ledger(
        "req_1",
        "completions",
        on_token=sinks["on_token"].append,
        on_event=lambda name, **fields: sinks["on_event"].append((name, fields)),
        on_record=sinks["on_record"].append,
    )


@pytest.mark.parametrize("ending", Ending.__args__)
def test_nothing_closes_twice(ledger, sinks, ending):
    """The first ending holds."""
    ledger.close(ending, status=200, error="e")
    ledger.close("cancelled", status=499)
    (record,) = sinks["on_record"]
    assert (record.ending, record.status, record.error, ledger.closed) == (ending, 200, "e", True)


def test_a_sink_that_fails_is_not_called_again(sinks):
    """A second close is no second attempt."""
    calls = []

    def broken(record):
        calls.append(record)
        raise OSError

    ledger = Ledger("r", "e", on_token=print, on_event=print, on_record=broken)
    with pytest.raises(OSError):
        ledger.close("complete", status=200)
    ledger.close("complete", status=200)
    assert len(calls) == 1


@pytest.mark.parametrize("logged", [True, False])
def test_text_stays_out_of_the_log_unless_it_may_stand_there(ledger, sinks, logged):
    """The number of characters is always there."""
    ledger.log_text = logged
    ledger.note(route="a/m", source="external")
    ledger.content("secret", 2, choice=1)
    ledger.content("!", 0)
    first, second = sinks["on_token"]
    assert (first.shown, first.text, first.n_tokens, first.index, first.choice) == (logged, "secret", 2, 0, 1)
    assert (second.index, second.upstream, second.source, first.ms <= second.ms) == (1, "a/m", "external", True)
    assert ledger.chars_out == 7


def test_the_record_has_what_was_noted(ledger, sinks):
    """Times of the first attempt and the first content, counts, and the last word on each field."""
    ledger.note(model="m", stream=True, usage=Usage(1, 2))
    ledger.sent()
    ledger.content("x", 1)
    ledger.sent()
    ledger.note(model="n")
    ledger.close("complete", status=200)
    (record,) = sinks["on_record"]
    assert (record.model, record.stream, record.usage, record.events) == ("n", True, Usage(1, 2), 1)
    assert record.overhead_ms <= record.ttft_ms <= record.duration_ms
    assert msgspec.json.decode(msgspec.json.encode(record))["request_id"] == "req_1"


def test_a_request_that_went_nowhere_was_all_ours(ledger, sinks):
    """Without an attempt the whole time is the gateway's own; without content there is no first token."""
    ledger.close("refused", status=404)
    (record,) = sinks["on_record"]
    assert (record.overhead_ms, record.ttft_ms, record.events) == (record.duration_ms, None, 0)


def test_events_carry_the_requests_id(ledger, sinks):
    """So that they can be found."""
    ledger.event("cache.hit", tier="exact")
    assert sinks["on_event"] == [("cache.hit", {"request_id": "req_1", "tier": "exact"})]


def rows(tokens):
    """All that lines of these tokens tell but for their times."""
    columns = zip(tokens.index, tokens.n_tokens, tokens.text, tokens.chars, tokens.choice, strict=True)
    return [(tokens.request_id, tokens.upstream, tokens.source, tokens.shown, *line) for line in columns]


@pytest.mark.parametrize("log_text", [True, False])
def test_what_came_together_is_logged_as_if_it_had_come_piece_by_piece(log_text):
    """The same lines but for their times, the same count of characters, and the next one goes on behind them."""
    said, taken = [(0, "one "), (1, "zwei"), (0, "ü")], {"together": [], "apart": []}
    for name, tokens in taken.items():
        made = Ledger("r", "e", on_token=tokens.append, on_event=print, on_record=print)
        made.log_text = log_text
        made.note(route="a/b", source="external")
        if name == "together":
            made.contents(said)
        else:
            for choice, text in said:
                made.content(text, 0, choice=choice)
        made.content("last", 1)
        assert made.chars_out == 13
    together, apart = ([line for one in by_request(tokens) for line in rows(one)] for tokens in taken.values())
    assert together == apart
    assert [(index, text) for *_, index, _, text, _, _ in apart] == list(enumerate(["one ", "zwei", "ü", "last"]))
