"""Reading the log back: sums, one request, and the end of the log as it grows."""

from __future__ import annotations

import io
import json
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.ledger import Record, TokenEvent, Usage
from gateway.logs import LogWriter
from gateway.stats import _spread, as_json, render, show, summarise, tail

NOW_S = 1_790_000_000.0


def make(folder, segment="front-0", rotate_bytes=1 << 20):
    return LogWriter(
        folder,
        segment=segment,
        stdout=False,
        rotate_bytes=rotate_bytes,
        keep_files=0,
        on_full="refuse",
        queue_limit=100_000,
        count_tokens=lambda text, upstream: (1, True),
    )


def record(number=0, **changes):
    fields = {
        "request_id": f"r{number}",
        "opened_at": NOW_S - 10,
        "endpoint": "chat/completions",
        "ending": "complete",
        "status": 200,
    }
    return Record(**fields | {"stream": True, "cache": "miss", "duration_ms": 100.0, "route": "a/b"} | changes)


def token(request_id, index, time_s=NOW_S):
    return TokenEvent(int(time_s * 1e9), request_id, index, 1.0, 1, "hi", True, "a/b", "external", 0)


def write(folder, *records, segment="front-0"):
    log = make(folder, segment)
    for one in records:
        log.closed(one)
    assert log.close() == 0


def tailed(folder, **how):
    found = []
    tail(folder, out=lambda raw: found.append(json.loads(raw)), follow=False, **how)
    return found


def test_damaged_lines_are_skipped_and_counted(tmp_path):
    """A half-written end, broken JSON and a foreign value cost their own line and no other."""
    write(tmp_path, record())
    (tmp_path / "front-1-20260101T000000-0.jsonl").write_bytes(
        b'{"time":"x","event":"request.closed"}\n{"event":"request.closed" oops}\n{"time":"2026","event":"request.cl'
    )
    summary = summarise(tmp_path, 60, now_s=NOW_S)
    assert (summary.total.requests, summary.damaged) == (1, 3)
    assert tail(tmp_path, out=lambda raw: None, follow=False) == 1
    assert show(tmp_path, "r0")[1] == 1


def test_sums_by_route(tmp_path):
    """Requests, errors, tokens, cost, savings and hit rates are those of the records within the span."""
    write(
        tmp_path,
        record(1, usage=Usage(10, 20), cost_usd=0.5, ttft_ms=30.0, duration_ms=100.0),
        record(2, ending="failed", status=503, route="", duration_ms=300.0),
        record(3, ending="hit", route="cache", cache="hit-semantic", saved_usd=0.25, cost_usd=0.0, duration_ms=5.0),
        record(4, opened_at=NOW_S - 500),
    )
    write(tmp_path, record(5, cache="off", duration_ms=200.0, usage=Usage(1, 1)), segment="front-1")
    summary = summarise(tmp_path, 60, now_s=NOW_S)
    assert (summary.total.requests, summary.total.failed, summary.total.cost_unknown) == (4, 1, 1)
    assert sorted(summary.routes) == ["a/b", "cache", "none"]
    assert summary.routes["cache"].saved_usd == 0.25
    assert (summary.routes["a/b"].prompt_tokens, summary.routes["a/b"].ttft_ms.p50) == (11, 30.0)
    assert summary.hit_rate == {"hit-semantic": pytest.approx(1 / 3)}
    assert (summary.total.duration_ms.p50, summary.total.duration_ms.p99) == (100.0, 300.0)


def test_masks_are_told_in_both_forms(tmp_path):
    """Values masked by kind, and placeholders that came back altered; without any, the table has no line on them."""
    console = Console(width=200, record=True, file=io.StringIO())
    write(tmp_path, record(1))
    console.print(render(summarise(tmp_path, 60, now_s=NOW_S)))
    assert "masked" not in console.export_text()
    write(tmp_path, record(2, redacted={"email": 2}, altered=1), record(3, redacted={"email": 1, "card": 1}), segment="front-1")
    summary = summarise(tmp_path, 60, now_s=NOW_S)
    console.print(render(summary))
    assert "masked: card 1, email 3; placeholders that came back altered: 1" in console.export_text()
    assert json.loads(as_json(summary))["redacted"] == {"email": 3, "card": 1}


def test_the_table_and_the_json_tell_the_same(tmp_path):
    """Both forms of a summary carry its figures; an empty log gives an empty table, not an error."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(summarise(tmp_path, 60, now_s=NOW_S)))
    write(tmp_path, record(cost_usd=1234.5))
    summary = summarise(tmp_path, 60, now_s=NOW_S)
    console.print(render(summary))
    assert "1,234.5" in console.export_text()
    assert json.loads(as_json(summary))["total"]["cost_usd"] == 1234.5


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200))
def test_percentiles_are_nearest_rank(values):
    """A percentile is a value that occurred, with at least that share of the values at or below it."""
    spread = _spread(values)
    for percent, found in ((50, spread.p50), (95, spread.p95), (99, spread.p99)):
        assert found in values
        assert sum(value <= found for value in values) >= math.ceil(len(values) * percent / 100)
        assert sum(value < found for value in values) < math.ceil(len(values) * percent / 100)


def test_one_request_is_shown_across_rotation(tmp_path):
    """All lines of a request come in order from all its files, and none of a request whose text only mentions it."""
    log = make(tmp_path, rotate_bytes=2000)
    for index in range(40):
        log.token(token("r1", index))
        log.event({"event": "cache.miss", "request_id": "r2", "reason": 'says "r1"'})
    log.closed(record(1))
    log.close()
    found, damaged = show(tmp_path, "r1")
    assert [line.get("index") for line in found] == [*range(40), None]
    assert damaged == 0


def test_the_last_lines_come_in_order_of_time(tmp_path):
    """`tail` merges segments by time and takes the last ones, reading back over rotated files."""
    first, second = make(tmp_path, "front-0", 700), make(tmp_path, "front-1", 700)
    for index in range(20):
        (first, second)[index % 2].token(token("r", index, NOW_S + index))
    first.close()
    second.close()
    assert [line["index"] for line in tailed(tmp_path, last=7)] == list(range(13, 20))
    assert tailed(tmp_path, last=0) == []


def test_filters_choose_by_event_and_request(tmp_path):
    """`event` takes a name or its noun, `request_id` one request, both together their overlap."""
    log = make(tmp_path)
    for name in ("r1", "r2"):
        log.event({"event": "cache.miss", "request_id": name, "reason": "token"})
        log.token(token(name, 0))
        log.event({"event": "cache.hit", "request_id": name, "tier": "exact"})
    log.close()
    assert [line["event"] for line in tailed(tmp_path, event="cache", request_id="r2")] == ["cache.miss", "cache.hit"]
    assert [line["event"] for line in tailed(tmp_path, event="token")] == ["token", "token"]
    assert len(tailed(tmp_path, request_id="r1")) == 3


def test_following_survives_rotation_new_segments_and_half_lines(tmp_path):
    """Every line written while following comes once, whole and in order, wherever it was written."""
    old = make(tmp_path)
    old.token(token("old", 0))
    old.close()
    growing = next(tmp_path.iterdir())
    fresh = tmp_path / "front-1-20300101T000000-0.jsonl"
    whole = json.dumps({"time": "2026-09-21T14:13:21.500000Z", "event": "token", "request_id": "x", "index": 1}).encode() + b"\n"
    with growing.open("ab") as grown:
        steps = [
            lambda: grown.write(whole[:30]),
            lambda: (grown.write(whole[30:]), fresh.write_bytes(whole)),
            lambda: (tmp_path / "front-0-20310101T000000-1.jsonl").write_bytes(whole * 2),
            fresh.unlink,
        ]

        def wait():
            if not steps:
                return False
            steps.pop(0)()
            grown.flush()
            return True

        found = []
        assert tail(tmp_path, out=found.append, follow=True, wait=wait) == 0
    assert [json.loads(raw)["request_id"] for raw in found] == ["old", "x", "x", "x", "x"]


def test_a_large_folder_is_read_as_a_stream(tmp_path):
    """Summing and searching 10 MB of log takes a small part of that in memory."""
    write(tmp_path, record())
    line = next(tmp_path.iterdir()).read_bytes()
    (tmp_path / "front-1-20260101T000000-0.jsonl").write_bytes(line * (10_000_000 // len(line)))
    tracemalloc.start()
    requests = summarise(tmp_path, 60, now_s=NOW_S).total.requests
    tail(tmp_path, out=lambda raw: None, follow=False, last=5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert requests == 10_000_000 // len(line) + 1
    assert peak < 3_000_000
