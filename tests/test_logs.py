"""The log: nothing lost without a word, nothing secret written, everything documented."""

from __future__ import annotations

import errno
import json
import logging
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError, Problem, WorkerGone
from gateway.events import EVENTS
from gateway.ledger import Later, Record, TokenEvent, Tokens, Usage
from gateway.logs import WAKE_S, LogWriter, configure, masked
from gateway.sinks import Files, segment_files

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "docs/log-schema.json").read_text())
DOCUMENTED = jsonschema.Draft202012Validator(SCHEMA)
NOW_NS = 1_790_000_000_123_456_789
SECRETS = st.from_regex(r"(gw|sk)-[A-Za-z0-9]{8,20}", fullmatch=True)


def make(folder, **changes):
    settings = {
        "segment": "front-0",
        "stdout": False,
        "rotate_bytes": 1 << 20,
        "keep_files": 0,
        "on_full": "refuse",
        "queue_limit": 10_000,
        "count_tokens": lambda text, upstream: (len(text), upstream == "guess"),
    }
    return LogWriter(folder, **settings | changes)


def token(index=0, *, text="hi", shown=True, n_tokens=1, request_id="r", upstream="a/b"):
    return TokenEvent(NOW_NS, request_id, index, 1.5, n_tokens, text, shown, upstream, "external", 0)


def record(**changes):
    return Record(
        **{
            "request_id": "r",
            "opened_at": 1.79e9,
            "endpoint": "chat/completions",
            "ending": "complete",
            "status": 200,
            "stream": True,
        }
        | changes
    )


def lines(folder):
    return [json.loads(line) for path in segment_files(folder) for line in path.read_text().splitlines()]


def written(folder, *events):
    """What stands in the log after these were handed over."""
    log = make(folder)
    for event in events:
        if isinstance(event, Later):
            log.later(event)
            continue
        hand_over = log.token if isinstance(event, TokenEvent) else log.closed if isinstance(event, Record) else log.event
        hand_over(event)
    assert log.close() == 0
    return lines(folder)


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("a real full disk needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def configured(tmp_path):
    """A writer that structlog and logging write to, and both as they were afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log = make(tmp_path)
    yield configure(log, "info"), log
    log.close()
    structlog.reset_defaults()
    root.handlers[:], root.level = before


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    """A log folder that is a file stops the start with the place and the mend."""
    (tmp_path / "logs").write_text("")
    with pytest.raises(ConfigError, match=r"logs: .*name a folder this user can write"):
        make(tmp_path / "logs")


def test_a_full_disk_refuses_new_requests_and_heals_without_loss(tmp_path):
    """On ENOSPC `healthy` says so, and once there is room every line stands there exactly once, in order."""
    with small_disk(tmp_path / "d", "64k"):
        log = make(tmp_path / "d")
        for index in range(2000):
            log.token(token(index))
        until(log.healthy)
        assert "No space left" in log.healthy()
        assert log.dropped == 0
        subprocess.run(["mount", "-o", "remount,size=4m", tmp_path / "d"], check=True)
        assert log.close() == 0
        found = lines(tmp_path / "d")
    assert [line["index"] for line in found if line["event"] == "token"] == list(range(2000))
    assert [line["event"] for line in found if line["event"] != "token"] == ["log.healed"]


def test_a_full_disk_in_drop_mode_serves_on_and_tells_the_loss(tmp_path):
    """With on_full=drop nothing is refused; what found no room is counted and told in one line."""
    with small_disk(tmp_path / "d", "64k"):
        log = make(tmp_path / "d", on_full="drop", queue_limit=500)
        for index in range(5000):
            log.token(token(index))
            if index % 500 == 0:
                until(lambda: log.fault or not log.queued)
        until(lambda: log.fault)
        for index in range(1000):
            log.token(token(index))
        assert log.healthy() is None
        assert log.dropped >= 500
        subprocess.run(["mount", "-o", "remount,size=4m", tmp_path / "d"], check=True)
        assert log.close() == 0
        told = [line["count"] for line in lines(tmp_path / "d") if line["event"] == "log.dropped"]
    assert sum(told) == log.dropped


def test_a_file_size_limit_costs_no_line():
    """When a file can grow no further (EFBIG in the middle of a line) the line begins again in the next file."""
    script = """
import resource, sys, tempfile
from pathlib import Path
from tests.test_logs import make, token
from gateway.sinks import segment_files
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = Path(tempfile.mkdtemp())
log = make(folder)
for index in range(150):
    log.token(token(index))
assert log.close() == 0
text = b"".join(line for path in segment_files(folder) for line in path.read_bytes().splitlines(True) if line.endswith(b"}\\n"))
print(text.count(b'"event":"token"'), [int(part.split(b",")[0]) for part in text.split(b'"index":')[1:]] == list(range(150)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["150", "True"]


def test_a_lost_folder_refuses_until_it_can_be_made_again(tmp_path):
    """While something else stands where the folder was, new requests are refused; then logging goes on by itself."""
    folder = tmp_path / "logs"
    log = make(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    log.token(token(1))
    until(log.healthy)
    folder.unlink()
    until(lambda: log.healthy() is None)
    assert log.close() == 0
    assert [line["event"] for line in lines(folder)] == ["token", "log.healed"]


def test_a_removed_file_is_begun_anew(tmp_path):
    """Deleting the open log file costs what was in it, and nothing after."""
    log = make(tmp_path)
    segment_files(tmp_path)[0].unlink()
    log.token(token(7))
    assert log.close() == 0
    assert [line["index"] for line in lines(tmp_path)] == [7]


def test_a_queue_that_is_half_full_refuses_and_a_full_one_counts(tmp_path):
    """New requests are refused early enough that the running ones still find room; what finds none is counted."""
    with small_disk(tmp_path / "d", "4k"):
        log = make(tmp_path / "d", queue_limit=400)
        for index in range(300):
            log.token(token(index))
        until(log.healthy)
        for index in range(500):
            log.token(token(index))
        assert log.queued == 400
        assert log.dropped > 0
        lost = log.close(timeout_s=0.2)
        kept = sum(path.read_bytes().count(b"}\n") for path in segment_files(tmp_path / "d"))
    assert kept + lost + log.dropped == 800


def test_a_slow_sink_alone_refuses(tmp_path):
    """Half a queue of waiting lines refuses new requests although no write failed."""
    gate = threading.Event()
    log = make(tmp_path, queue_limit=100, count_tokens=lambda text, upstream: (int(gate.wait()), False))
    log.token(token(n_tokens=0))
    until(lambda: log.queued == 0)
    for index in range(50):
        log.token(token(index))
    assert "50 lines wait" in log.healthy()
    gate.set()
    assert log.close() == 0


def test_standard_output_that_takes_nothing_refuses():
    """A full standard output (/dev/full) is a failing sink like a full disk."""
    script = (
        "import sys\nfrom tests.test_logs import make, token, until\nlog = make(None, stdout=True)\nlog.token(token())\n"
        "until(log.healthy)\nprint(log.healthy(), log.close(0.1), file=sys.stderr)"
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=True
        )
    first, last = done.stderr.splitlines()
    assert json.loads(first)["event"] == "log.failed"
    assert last == "standard output: No space left on device; logging goes on by itself once that is mended 1"


def test_a_reader_that_stops_reading_does_not_hang_the_writer():
    """A pipe nobody reads becomes a fault within a second; when it is read again, every line comes out whole."""
    script = (
        "import sys\nfrom tests.test_logs import make, token, until\nlog = make(None, stdout=True)\n"
        "[log.token(token(i, text='x' * 5000)) for i in range(40)]\nuntil(log.healthy)\n"
        "print('stuck', file=sys.stderr, flush=True)\n"
        "sys.exit(log.close())"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert b"nobody reads it" in process.stderr.readline()
        assert process.stderr.readline() == b"stuck\n"
        found = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.returncode == 0
    assert [line["index"] for line in found if line["event"] == "token"] == list(range(40))


def test_a_killed_process_loses_no_more_than_the_window(tmp_path):
    """After SIGKILL the log is a gapless beginning of what was handed over, up to a moment before."""
    lost = []
    # A disk that stalls keeps one writer up, a writer that is too slow every one.
    while len(lost) < 5 and (not lost or lost[-1] > 10 * WAKE_S / 0.0005):
        lost.append(_lost_to_a_kill(tmp_path / str(len(lost))))
    assert min(lost) <= 10 * WAKE_S / 0.0005


def _lost_to_a_kill(folder):
    """How many lines of those that a process had certainly handed over are not there."""
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom tests.test_logs import make, token\n"
        "log = make(Path(sys.argv[1]), queue_limit=10**6)\ni = 0\n"
        "while True:\n    log.token(token(i)); i += 1; time.sleep(0.0005)\n    if i % 200 == 0: os.write(1, b'%d\\n' % i)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        said = [int(process.stdout.readline()) for _ in range(4)][-1]
        process.send_signal(signal.SIGKILL)
    found = [
        json.loads(line)["index"]
        for path in segment_files(folder)
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"}\n")
    ]
    assert found == list(range(len(found)))
    return said - len(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(10, 120), st.integers(1, 7))
def test_rotation_cuts_between_lines_only(tmp_path_factory, lengths, rotate_bytes, block_lines):
    """Whatever the lines and the limit, the files together hold every line once, and none is above the limit but for one line."""
    folder = tmp_path_factory.mktemp("logs")
    files = Files(folder, segment="s", rotate_bytes=rotate_bytes, keep_files=0)
    texts = [b"%d" % (index % 10) * length + b"\n" for index, length in enumerate(lengths)]
    for start in range(0, len(texts), block_lines):
        block, at = b"".join(texts[start : start + block_lines]), 0
        while at < len(block):
            at = files.write(block, at)
    files.close()
    found = [path.read_bytes() for path in segment_files(folder, "s")]
    assert b"".join(found) == b"".join(texts)
    assert all(part.endswith(b"\n") and (len(part) <= rotate_bytes or part.count(b"\n") == 1) for part in found)


def test_the_oldest_files_go(tmp_path):
    """At most `keep_files` of a segment are kept, and another segment's files are not touched."""
    (tmp_path / "front-00-20200101T000000-0.jsonl").write_text("")
    (tmp_path / "front-0-20200101T000000-0.jsonl").write_text("")
    log = make(tmp_path, rotate_bytes=500, keep_files=3)
    for index in range(100):
        log.token(token(index))
    log.close()
    assert len(segment_files(tmp_path, "front-0")) == 3
    assert lines(tmp_path)[-1]["index"] == 99
    assert len(segment_files(tmp_path, "front-00")) == 1


def test_only_the_owner_reads_the_log(tmp_path):
    """Log files are made with mode 0600."""
    make(tmp_path).close()
    assert [stat.S_IMODE(path.stat().st_mode) for path in segment_files(tmp_path)] == [0o600]


def test_a_sink_that_fails_for_good_is_bounded_at_the_end(tmp_path, monkeypatch):
    """`close` gives up after its time and says how many lines are lost."""
    log = make(tmp_path)

    def broken(block, at):
        raise OSError(errno.EIO, "Input/output error")

    log._sinks[0].write = broken
    log.token(token())
    assert log.close(timeout_s=0.2) == 1
    assert log.healthy() == "the log is closed"


def test_lines_of_a_request_keep_their_order(tmp_path):
    """Opened, tokens, closed: as they were handed over, whatever their kind."""
    found = written(
        tmp_path, {"event": "request.opened", "request_id": "r", "endpoint": "e"}, *[token(i) for i in range(300)], record()
    )
    assert [line["event"] for line in found] == ["request.opened", *["token"] * 300, "request.closed"]
    assert [line["index"] for line in found[1:-1]] == list(range(300))


def test_threads_may_hand_over_at_once(tmp_path):
    """Two threads lose nothing to each other, and each one's lines stay in order."""
    log = make(tmp_path, queue_limit=100_000)
    work = [
        threading.Thread(target=lambda name=name: [log.token(token(i, request_id=name)) for i in range(3000)]) for name in "ab"
    ]
    [thread.start() for thread in work]
    [thread.join() for thread in work]
    assert log.close() == 0
    for name in "ab":
        assert [line["index"] for line in lines(tmp_path) if line["request_id"] == name] == list(range(3000))


def test_text_that_may_not_be_logged_is_absent(tmp_path):
    """A token event without text has no `text` and still says how many characters passed."""
    (line,) = written(tmp_path, token(text="four", shown=False, n_tokens=0))
    assert "text" not in line
    assert (line["chars"], line["n_tokens"], line["tokens_est"]) == (4, 1, True)


@pytest.mark.parametrize(
    ("n_tokens", "upstream", "expected"), [(2, "guess", (2, None)), (0, "guess", (5, True)), (0, "exact", (5, None))]
)
def test_tokens_are_counted_only_when_nobody_did(tmp_path, n_tokens, upstream, expected):
    """A count from the source stands; else the counter's does, marked when it is an estimate."""
    (line,) = written(tmp_path, token(text="12345", n_tokens=n_tokens, upstream=upstream))
    assert (line["n_tokens"], line.get("tokens_est")) == expected


@pytest.mark.parametrize("bad", [{"x": float("nan"), "y": "\ud800"}, {"x": (deep := [])}, {"x": 10**400, "y": "\udfff"}])
def test_a_bad_line_takes_no_other_along(tmp_path, bad):
    """What cannot be written as JSON is mended or told in its place; its neighbours are untouched."""
    if bad.get("x") == []:
        deep = bad["x"]
        for _ in range(5000):
            deep.append([])
            deep = deep[0]
    found = written(tmp_path, token(1), {"event": "cache.miss", "request_id": "r"} | bad, token(2, text="\ud83dx"))
    assert [found[0]["index"], found[-1]["index"], found[-1]["text"]] == [1, 2, "?x"]
    assert found[1]["event"] in ("cache.miss", "log.unencodable")
    assert len(found) == 3


@given(secret=SECRETS, before=st.sampled_from(["", "Bearer ", "key=", "["]), deep=st.integers(0, 3))
def test_no_key_survives_in_an_event(secret, before, deep):
    """A string shaped like a key is masked wherever it stands; so is anything under a name like `api_key`."""
    value = before + secret
    for _ in range(deep):
        value = {"a": [value]}
    assert secret not in json.dumps(masked({"note": value, "api_key": secret[3:], "Authorization": secret[3:]}))
    assert secret[3:] not in json.dumps(masked({"x-api-key": secret[3:], "client_secret": {"v": secret[3:]}}))


def test_ordinary_words_are_not_masked():
    """Names that only contain the letters of a key are left alone."""
    fields = {"note": "risk-assessment-task", "key_label": "team-a", "count": 3, "ok": True, "none": None}
    assert masked(fields) == fields
    assert masked({"x": b"text", "y": ValueError("text"), "z": {1}}) == {"x": "<bytes>", "y": "<ValueError>", "z": [1]}


def test_an_exception_is_logged_by_type_and_place(configured, tmp_path):
    """The text of an exception, which may be text of a request, stands in no line."""
    emit, log = configured
    try:
        int("my social security number")
    except ValueError as error:
        emit("request.crashed", request_id="r", exc_info=True, fault=type(error).__name__, place="here", cause=error)
        logging.getLogger("asyncio").exception("failed: social %s", "security")
        logging.getLogger("httpx").warning("GET /?q=social security")
    log.close()
    assert "social" not in json.dumps(lines(tmp_path))
    assert [DOCUMENTED.validate(line) for line in lines(tmp_path)] == [None] * 3
    assert [line["error_type"] for line in lines(tmp_path)[:2]] == ["ValueError", "ValueError"]
    assert re.fullmatch(r"tests\.test_logs:\d+|test_logs:\d+", lines(tmp_path)[0]["error_place"])


def test_our_own_errors_speak_in_lifecycle_events_only(configured, tmp_path):
    """A ConfigError keeps its message where no request is concerned; in a request event it does not."""
    emit, log = configured
    emit("policy.refused", exc_info=ConfigError([Problem("a.toml:1", "unknown upstream")]))
    emit("upstream.failed", request_id="r", upstream="a", kind="gone", exc_info=WorkerGone("text"))
    logging.getLogger("uvicorn.error").error("[Errno %d] address in use", 98)
    log.close()
    first, second, third = lines(tmp_path)
    assert first["error_message"] == "a.toml:1: unknown upstream"
    assert "error_message" not in second
    assert third["message"] == "[Errno 98] address in use"
    assert [line["level"] for line in (first, second)] == ["error", "warning"]


def test_the_level_is_kept(configured, tmp_path):
    """Events below the configured level are not written."""
    _, log = configured
    structlog.get_logger().debug("cache.miss", request_id="r")
    structlog.get_logger().info("cache.miss", request_id="s")
    log.close()
    assert [line["request_id"] for line in lines(tmp_path)] == ["s"]


SAMPLES = {"facts": {}, "health": {}, "order": ["a/b"], "removed": [], "limits": [], "refusal": None}
SAMPLES |= {"selector": {}, "erased": {"cache": 1}, "failed_s": 0.5, "count": 1, "tier": "exact", "redact": True}


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_a_line_of_each_kind_is_as_documented(tmp_path, name):
    """Every kind of line that is written validates against docs/log-schema.json, and one without its fields does not."""
    fields = {field: SAMPLES.get(field, "x") for field in EVENTS[name].fields}
    made = {"token": token(n_tokens=0, upstream="guess"), "request.closed": record(cost_usd=0.5, usage=Usage(3, 4))}
    (line,) = written(tmp_path, made.get(name, {"event": name} | fields))
    DOCUMENTED.validate(line)
    with pytest.raises(jsonschema.ValidationError):
        DOCUMENTED.validate({"time": line["time"], "event": name} | {"request_id": 1})


def test_the_schema_and_the_docs_name_everything():
    """Every event with its fields and every Record field stands in docs/logs.md and in the schema."""
    text = (ROOT / "docs/logs.md").read_text()
    for name, event in EVENTS.items():
        assert f"`{name}`" in text
        assert set(event.fields) <= set(SCHEMA["$defs"][name]["required"])
        assert all(f"`{field}`" in text for field in SCHEMA["$defs"][name]["properties"])
    fields = {"class" if name == "class_" else name for name in Record.__struct_fields__}
    assert fields <= set(SCHEMA["$defs"]["request.closed"]["required"])
    assert set(SCHEMA["$defs"]["request.closed"]["properties"]["usage"]["properties"]) == set(Usage.__struct_fields__)
    assert all(f"`{field}`" in text for field in Usage.__struct_fields__)


def test_every_event_in_the_source_is_in_the_table():
    """Nothing in gateway/ logs an event that EVENTS, and so the docs, do not know."""
    call = re.compile(r"\b(?:emit|event|on_event|_event|debug|info|warning|error|exception)\(\s*\"([a-z_]+\.[a-z_]+)\"")
    used = {name for path in (ROOT / "gateway").rglob("*.py") for name in call.findall(path.read_text())}
    assert used
    assert used <= set(EVENTS)


def test_the_record_line_closes_when_the_request_did(tmp_path):
    """`time` of request.closed is the opening plus the duration, and a failed request is a warning."""
    ok, failed = written(tmp_path, record(duration_ms=1500.0), record(ending="failed", status=503))
    assert (ok["time"], ok["level"]) == ("2026-09-21T14:13:21.500000Z", "info")
    assert (failed["time"], failed["level"]) == ("2026-09-21T14:13:20.000000Z", "warning")
    assert msgspec.json.decode(json.dumps(ok["usage"]), type=Usage) == Usage()


def test_an_event_put_together_on_the_thread_is_the_same_line(tmp_path):
    """As one handed over whole, with its secrets masked all the same."""
    for number, tier in enumerate(["exact", "sk-1234567890abcdef"]):
        fields = {"tier": tier, "cosine": 1.0}
        whole = {"event": "cache.hit", "level": "info", "request_id": "r", "time_ns": NOW_NS, **fields}
        later = Later(NOW_NS, "cache.hit", "r", lambda tier, cosine: {"tier": tier, "cosine": cosine}, (tier, 1.0))
        one, other = written(tmp_path / str(number), whole, later)
        assert one == other
        assert "sk-" not in json.dumps(other)


def test_an_event_that_cannot_be_put_together_takes_no_other_along(tmp_path):
    """Its place says what it was to be, and what went wrong; the line behind it is written."""
    broken = Later(NOW_NS, "cache.hit", "r", lambda: {}["missing"], ())
    first, second = written(tmp_path, broken, token())
    assert (first["event"], first["error_type"], second["event"]) == ("log.unencodable", "KeyError", "token")


def test_tokens_that_come_together_keep_to_the_queue_and_are_counted(tmp_path):
    """As many as there is room for are written, the rest are counted as lost."""
    log = make(tmp_path, queue_limit=3, on_full="drop")
    log.tokens(Tokens.of([token(index) for index in range(5)]))
    log.close()
    found = [line for line in lines(tmp_path) if line["event"] == "token"]
    assert len(found) + log.dropped == 5
    assert [line["index"] for line in found] == list(range(len(found)))


TOKENS = st.builds(
    TokenEvent,
    st.sampled_from([NOW_NS, NOW_NS + 1_000, NOW_NS + 10**9]),
    st.sampled_from(["r", 'req"2']),
    st.integers(0, 10**6),
    st.sampled_from([1.5, 0.0001, 12345.67891]),
    st.integers(0, 3),
    st.text(max_size=40),
    st.booleans(),
    st.sampled_from(["a/b", "ü/b", "guess"]),
    st.sampled_from(["external", "local"]),
    st.integers(0, 2),
)


def told(event):
    """The line of an event that is logged by itself."""
    time_ns, request_id, index, ms, n_tokens, text, shown, upstream, source, choice = event
    when = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    line = {
        "time": f"{when}.{time_ns // 1000 % 1_000_000:06d}Z", "event": "token", "request_id": request_id, "index": index,
        "ms": pytest.approx(ms, abs=0.00051), "n_tokens": n_tokens, "upstream": upstream, "source": source, "choice": choice,
        "chars": len(text),
    }  # fmt: skip
    if shown:
        line["text"] = text
    if text and not n_tokens:
        line["n_tokens"] = len(text) if shown else -(-len(text) // 4)
        if not shown or upstream == "guess":
            line["tokens_est"] = True
    return line


@given(st.lists(TOKENS, min_size=1, max_size=6))
def test_lines_of_tokens_that_come_together_say_what_each_says_alone(events):
    """Of one request, in whatever seconds they came, counted or not; the text stands there where all may be shown."""
    first = events[0]
    shown = all(event.shown for event in events)
    events = [event._replace(request_id=first.request_id, upstream=first.upstream, source=first.source) for event in events]
    log = make(None)
    log.close()
    found = [json.loads(line) for line in log._encode([Tokens.of(events)]).splitlines()]
    assert found == [told(event._replace(shown=shown)) for event in events]
