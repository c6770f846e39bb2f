"""The framing of server-sent events."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import sse

LINES = st.lists(
    st.sampled_from([b"data: {}", b"data:x", b": ping", b"event: e", "data: ü€🙂".encode(), b"data", b""]), max_size=12
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def fed(parts):
    splitter = sse.Splitter()
    return [event for part in parts for event in splitter.feed(part)], splitter.rest


@st.composite
def cut_streams(draw):
    """(one stream, the same cut at random places)."""
    whole = b"".join(line + draw(ENDS) for line in draw(LINES))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return whole, [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(cut_streams())
def test_events_do_not_depend_on_where_the_network_cuts(streams):
    """Any split of any stream with any line ends gives the same events, and no byte is lost."""
    whole, parts = streams
    events, rest = fed(parts)
    assert b"".join(events) + rest == whole
    assert (events, rest) == fed([whole])
    assert (events, rest) == fed([whole[at : at + 1] for at in range(len(whole))])


@given(cut_streams())
def test_an_event_ends_at_its_blank_line_and_nowhere_else(streams):
    """No event has a blank line before its end."""
    events, _ = fed(streams[1])
    for event in events:
        text = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert text.endswith(b"\n\n")
        assert b"\n\n" not in text.lstrip(b"\n")[:-1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_is_handed_on_with_its_last_byte(end):
    """Nobody waits for the event after it."""
    event = b"data: a" + end + end
    splitter = sse.Splitter()
    assert splitter.feed(event[:-1]) == []
    assert splitter.feed(event[-1:]) == [event]


def test_an_endless_event_is_refused(monkeypatch):
    """Memory has an end, though the sender's event has none."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1_000)
    splitter = sse.Splitter()
    for _ in range(10):
        splitter.feed(b"x" * 100)
    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        splitter.feed(b"x")


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_time_is_linear_in_a_large_event(end):
    """Four times the bytes take far less than sixteen times as long; quadratic code copies gigabytes here."""

    def seconds(size):
        event = b"data: " + b"x" * size + end
        began = time.process_time()
        events, _ = fed([event[at : at + 1024] for at in range(0, len(event), 1024)])
        assert events == [event]
        return time.process_time() - began

    small = min(seconds(1 << 20) for _ in range(3))
    assert min(seconds(1 << 22) for _ in range(3)) < 10 * small


DATA = {
    b"data: {}\n\n": b"{}",
    b"data:{}\n\n": b"{}",
    b"data:  {}\n\n": b" {}",
    b"data: {}\r\n\r\n": b"{}",
    b"data: a\ndata: b\n\n": b"a\nb",
    b"event: e\nid: 1\ndata: a\r\r": b"a",
    b"\n\xef\xbb\xbfdata: a\n\n": None,
    b"\xef\xbb\xbfdata: a\n\n": b"a",
    b"data\n\n": b"",
    b": data: a\n\n": None,
    b"datax: a\n\n": None,
    b"\n": None,
}


@pytest.mark.parametrize(("event", "data"), DATA.items())
def test_data_is_read_as_the_standard_says(event, data):
    """One blank after the colon goes, lines are joined, other fields and comments are no data."""
    assert sse.data_of(event) == data


@given(st.binary(max_size=30).filter(lambda data: not set(data) & set(b"\r\n")))
def test_what_is_written_is_read(data):
    """`data_of` undoes `event_of`."""
    assert sse.data_of(sse.event_of(data)) == data


@given(cut_streams())
def test_events_taken_together_are_the_same_events(streams):
    """Where `through` gives whole events in one piece they are those that `feed` gives, and both may take turns."""
    whole, parts = streams
    splitter, found = sse.Splitter(), []
    for part in parts:
        together = splitter.through(part)
        if together is None:
            found += splitter.feed(part)
        elif together:
            found += [event + b"\n\n" for event in together[:-2].split(b"\n\n")]
    assert (found, splitter.rest) == fed([whole])
