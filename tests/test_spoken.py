"""What the log promises of credentials that a model says. Every credential here is generated from a seed at run time."""

from __future__ import annotations

import json
import random
import string
from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger import Later, Ledger, Record, TokenEvent, Tokens, by_request
from gateway.logs import LogWriter
from gateway.output_scan import MASK, OutputScan
from gateway.sinks import segment_files
from gateway.spoken import Spoken

ALNUM = string.ascii_letters + string.digits
KEY = "sk" + "-proj-" + "".join(random.Random(1).choices(ALNUM, k=48))


def token(text, index=0, *, request_id="r", choice=0, logged=True):
    return TokenEvent(0, request_id, index, 1.0, 1, text, logged, "up/m", "external", choice)


def closed(request_id="r"):
    return Record(request_id=request_id, opened_at=1.0, endpoint="chat/completions", ending="complete", status=200, stream=True)


def hear(spoken, batch):
    """What comes out for a batch as the log's writer hands it over, line by line."""
    return flat(spoken.through(by_request(batch)))


def flat(things):
    """Each line of tokens by itself."""
    return [
        line
        for thing in things
        for line in (
            [thing.between(place, place + 1) for place in range(len(thing.text))] if isinstance(thing, Tokens) else [thing]
        )
    ]


def through(*batches):
    spoken = Spoken()
    return [*(line for batch in batches for line in hear(spoken, batch)), *flat(spoken.rest())]


def tokens_in(lines):
    return [line for line in lines if isinstance(line, Tokens)]


def texts(lines):
    return [line.text[0] for line in tokens_in(lines) if line.shown]


def test_a_credential_over_several_tokens_is_masked_and_every_token_keeps_its_line():
    """The mask stands where the credential begins; the tokens that it covered are there without text."""
    parts = ["your key is ", "sk" + "-pro", KEY[6:30], KEY[30:], ", keep it"]
    lines = through(*([token(part, index)] for index, part in enumerate(parts)), [closed()])
    assert texts(lines) == ["your key is ", MASK, "", "", ", keep it"]
    assert [line.index[0] for line in tokens_in(lines)] == [0, 1, 2, 3, 4]


def test_what_was_found_is_told_before_the_request_closes():
    """One event with kind and count, never text, and the count in the record; nothing where nothing was found."""
    *_, event, record = through([token(f"{KEY} or {KEY[:-1]}x")], [closed()])
    assert {name: event[name] for name in ("event", "request_id", "kind", "count")} == {
        "event": "output.secret_found",
        "request_id": "r",
        "kind": "secret",
        "count": 2,
    }
    assert record.secrets_out == 2
    assert through([token("a plain sentence")], [closed()])[-1] == closed()


def test_text_that_is_not_logged_is_searched_and_never_waits():
    """Where no text may be logged a line goes on at once, and a credential is still told."""
    spoken = Spoken()
    (line,) = hear(spoken, [token(KEY[:20], logged=False)])
    assert (line.index[0], line.shown) == (0, False)
    hear(spoken, [token(KEY[20:], 1, logged=False)])
    *_, record = hear(spoken, [closed()])
    assert (record.secrets_out, spoken.n_found) == (1, 1)


def test_no_more_than_a_word_waits():
    """What stands before the last blank is written at once; the word behind it when it has ended."""
    spoken = Spoken()
    assert texts(hear(spoken, [token("Hello"), token(" wor", 1), token("ld", 2)])) == ["Hello"]
    assert texts(hear(spoken, [token("! ", 3)])) == [" wor", "ld", "! "]
    assert spoken.waiting == 0


def test_an_event_of_a_request_stays_behind_its_tokens():
    """Lines of one request keep their order, also where a token waits; other requests do not wait for it."""
    other = {"event": "upstream.failed", "request_id": "other"}
    failed = Later(0, "upstream.failed", "r", dict, ())
    spoken = Spoken()
    assert hear(spoken, [token("half"), failed, other]) == [other]
    lines = hear(spoken, [closed()])
    assert [texts(lines), lines[1:]] == [["half"], [failed, closed()]]


def test_where_the_search_fails_lines_stay_and_text_does_not(monkeypatch):
    """A fault of the search loses no line and shows no text, also of what already waited, and is told."""
    spoken = Spoken()
    hear(spoken, [token(KEY[:20])])
    monkeypatch.setattr("gateway.spoken.suspects", lambda *_: 1 / 0)
    lines = hear(spoken, [token(KEY[20:], 1), closed()])
    assert [(line.index[0], line.shown) for line in lines[:2]] == [(0, False), (1, False)]
    assert lines[2] == closed()
    assert (lines[3]["event"], lines[3]["error_type"]) == ("log.unencodable", "ZeroDivisionError")


PIECES = st.sampled_from(
    ["a b", " ", "\n", "", "password: ", "hunter2!x", KEY, KEY[:9], KEY[9:], "token=", "-----BEGIN PRIVATE KEY-----", "é\u200b",
     "-----END PRIVATE KEY-----", "Bearer ", "x" * 50, "://u:p4ss@h/", "api key is ", "\uff53\uff4b"]
)  # fmt: skip


SAID = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from((0, 1)), PIECES), max_size=24)
CUTS = st.lists(st.integers(0, 24), max_size=4)


def run(said, cuts, *, logged):
    """The lines of these answers of requests a and b, handed over in batches that end at these places."""
    events = [token(text, index, request_id=id_, choice=choice, logged=logged) for index, (id_, choice, text) in enumerate(said)]
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    return through(*(events[begin:end] for begin, end in pairwise(edges)), [closed("a"), closed("b")])


def alone(said, id_, choice):
    """What `OutputScan` makes of one answer: its text masked, and how many credentials it holds."""
    scan = OutputScan()
    parts = [*(scan.feed(text) for *key, text in said if key == [id_, choice]), scan.finish()]
    return "".join(part.text for part in parts), sum(part.n_found for part in parts)


@given(SAID, CUTS)
def test_in_whatever_batches_it_comes_the_log_shows_what_the_scan_of_the_whole_shows(said, cuts):
    """Masked line by line, an answer joins to what `OutputScan` makes of it alone, and no line is lost, added or moved."""
    lines = run(said, cuts, logged=True)
    tokens = tokens_in(lines)
    for id_, choice in product("ab", (0, 1)):
        mine = [line.text[0] for line in tokens if (line.request_id, line.choice[0]) == (id_, choice)]
        assert "".join(mine) == alone(said, id_, choice)[0]
    for id_ in "ab":
        indexes = [index for index, (of, *_) in enumerate(said) if of == id_]
        assert [line.index[0] for line in tokens if line.request_id == id_] == indexes


@given(SAID, CUTS, st.booleans())
def test_every_credential_is_counted_whether_or_not_its_text_is_logged(said, cuts, logged):
    """The record of each request says how many credentials its answers held."""
    records = {line.request_id: line.secrets_out for line in run(said, cuts, logged=logged) if isinstance(line, Record)}
    assert records == {id_: sum(alone(said, id_, choice)[1] for choice in (0, 1)) for id_ in "ab"}


def test_whatever_the_ledger_hands_over_is_searched():
    """Of both ways in which content comes, one by one and together, the text is read, shown or not."""
    events = []
    ledger = Ledger("r", "chat/completions", on_token=events.append, on_event=lambda *_, **__: None, on_record=events.append)
    ledger.content(KEY[:20], 1)
    ledger.contents([(0, KEY[20:]), (1, f"and {KEY}")])
    ledger.close("complete", status=200)
    assert [line.secrets_out for line in through(events) if isinstance(line, Record)] == [2]


def test_the_log_holds_no_part_of_a_credential_that_a_model_said(tmp_path):
    """From the ledger to the file: masked where text is logged, told where not, and nothing is left when the log closes."""
    spoken = Spoken()
    writer = LogWriter(
        tmp_path, segment="front0", stdout=False, rotate_bytes=1 << 20, keep_files=0, on_full="refuse", queue_limit=1000,
        count_tokens=lambda text, _: (len(text), False), between=spoken,
    )  # fmt: skip
    for id_, logged in (("shown", True), ("hidden", False), ("cut", True)):
        ledger = Ledger(id_, "chat/completions", on_token=writer.token, on_event=lambda *_, **__: None, on_record=writer.closed)
        ledger.log_text = logged
        for at in range(0, len(KEY), 7):
            ledger.content(KEY[at : at + 7], 1)
        if id_ != "cut":
            ledger.close("complete", status=200)
    assert writer.close() == 0
    raw = b"".join(path.read_bytes() for path in segment_files(tmp_path))
    assert not any(KEY[at : at + 7].encode() in raw for at in range(8, len(KEY) - 7))
    lines = [json.loads(line) for line in raw.splitlines()]
    assert {line["request_id"] for line in lines if line["event"] == "output.secret_found"} == {"shown", "hidden"}
    assert [
        sum(line["event"] == "token" and line["request_id"] == id_ for line in lines) for id_ in ("shown", "hidden", "cut")
    ] == [-(-len(KEY) // 7)] * 3
