"""What a purge of the log promises: what is meant is gone, nothing else is, and no line of a running gateway is lost."""

from __future__ import annotations

import gzip
import json
import random
import string
import subprocess
import sys
import threading

import pytest

from gateway.ledger import Record, TokenEvent
from gateway.logs import LogWriter
from gateway.purge import Selector, Subject, log_files, purge_logs
from gateway.sinks import segment_files

SUBJECT = "Ada Lovelace"


def token(request_id, index, text):
    return TokenEvent(0, request_id, index, 1.0, 1, text, True, "up/m", "external", 0)


def record(request_id, tenant, class_="internal", **more):
    return Record(
        request_id=request_id, opened_at=1.0, endpoint="chat/completions", ending="complete", status=200, stream=True,
        tenant=tenant, class_=class_, **more,
    )  # fmt: skip


def writer(folder, **changes):
    settings = {
        "segment": "front0",
        "stdout": False,
        "rotate_bytes": 1 << 20,
        "keep_files": 0,
        "on_full": "refuse",
        "queue_limit": 10**6,
        "count_tokens": lambda text, _: (len(text), False),
    }
    return LogWriter(folder, **settings | changes)


def talk(log, request_id, tenant, *texts, **more):
    """One request with these tokens."""
    log.event({"event": "request.opened", "request_id": request_id, "endpoint": "chat/completions", "tenant": tenant})
    for index, text in enumerate(texts):
        log.token(token(request_id, index, text))
    log.closed(record(request_id, tenant, **more))


@pytest.fixture
def folder(tmp_path):
    """A log of three requests, over several files."""
    log = writer(tmp_path, rotate_bytes=1000)
    talk(log, "a1", "acme", "Ada Love", "lace asked", client_request_id="ada-7")
    talk(log, "a2", "acme", "of tea", class_="public")
    talk(log, "b1", "beta", "Ada Lovelace as well")
    assert log.close() == 0
    assert len(segment_files(tmp_path)) > 2
    return tmp_path


def lines(folder):
    found = []
    for path in log_files(folder):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [json.loads(raw) for raw in data.splitlines()]
    return found


def texts(folder):
    return {(line["request_id"], line["index"]): line.get("text") for line in lines(folder) if line["event"] == "token"}


ALL = {("a1", 0): "Ada Love", ("a1", 1): "lace asked", ("a2", 0): "of tea", ("b1", 0): "Ada Lovelace as well"}


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        ({"tenant": "acme"}, {"a1", "a2"}),
        ({"tenant": "acme", "class_": "public"}, {"a2"}),
        ({"class_": "internal"}, {"a1", "b1"}),
        ({"tenant": "acme", "subject": "ADA  lovelace"}, {"a1"}),
        ({"subject": SUBJECT}, {"a1", "b1"}),
        ({"tenant": "nobody"}, set()),
        ({"model": "m"}, set()),
        ({}, {"a1", "a2", "b1"}),
    ],
)
def test_the_text_of_what_is_meant_is_gone_and_nothing_else(folder, wanted, gone):
    """By tenant, class and subject, also one whose name came in two tokens; every line stays, and the rest is as it was."""
    before = lines(folder)
    done = purge_logs(folder, Selector(**wanted), dry_run=False)
    assert texts(folder) == {place: None if place[0] in gone else text for place, text in ALL.items()}
    after = lines(folder)
    assert [(line["event"], line.get("index")) for line in after] == [(line["event"], line.get("index")) for line in before]
    assert done.requests == len(gone)
    ids = [line["client_request_id"] for line in after if line["event"] == "request.closed" and line["request_id"] == "a1"]
    assert ids == [""] if "a1" in gone else ["ada-7"]


def test_a_dry_run_counts_and_changes_nothing(folder):
    """What a dry run says is what the purge then does."""
    before = {path: path.read_bytes() for path in log_files(folder)}
    said = purge_logs(folder, Selector(tenant="acme"), dry_run=True)
    assert {path: path.read_bytes() for path in log_files(folder)} == before
    assert purge_logs(folder, Selector(tenant="acme"), dry_run=False) == said
    assert purge_logs(folder, Selector(tenant="acme"), dry_run=False).lines == 0


def test_packed_files_are_purged_too(folder):
    """A rotated file that an operator has packed is read and packed again."""
    for path in segment_files(folder)[:-1]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    purge_logs(folder, Selector(tenant="acme"), dry_run=False)
    assert {text for place, text in texts(folder).items() if place[0] != "b1"} == {None}


def test_a_purge_that_was_killed_is_done_again(folder):
    """Half a file beside the log is thrown away, and what it was made from is still there."""
    (folder / f".{segment_files(folder)[0].name}.purging").write_bytes(b'{"half')
    purge_logs(folder, Selector(tenant="acme"), dry_run=False)
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []
    assert texts(folder)["a1", 0] is None


def test_a_failure_in_the_middle_leaves_whole_files(folder, monkeypatch):
    """Where a file cannot be put in place it stays as it was, and a second call does the rest."""
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        done = purge_logs(folder, Selector(tenant="acme"), dry_run=False)
    assert (done.files, {problem.place for problem in done.problems} <= set(map(str, log_files(folder)))) == (0, True)
    assert texts(folder) == ALL
    purge_logs(folder, Selector(tenant="acme"), dry_run=False)
    assert texts(folder)["a1", 0] is None


@pytest.mark.parametrize("packed", [False, True])
def test_a_full_disk_keeps_what_was_there(tmp_path, packed):
    """A file that does not fit beside itself survives byte for byte, nothing half-written stays, and the mend is told."""
    log = writer(tmp_path)
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=40_000))
    talk(log, "a1", "acme", noise, "Ada")
    talk(log, "b1", "beta", noise)
    assert log.close() == 0
    (path,) = segment_files(tmp_path)
    if packed:
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        path = path.with_suffix(".jsonl.gz")
    before = path.read_bytes()
    script = """
import resource, sys, pathlib
from gateway.purge import Selector, purge_logs
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for problem in purge_logs(pathlib.Path(sys.argv[1]), Selector(tenant="acme"), dry_run=False).problems:
    print(problem)
"""
    told = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"{path}: nothing was erased here")
    assert "free as much room" in told
    assert (path.read_bytes(), [one.name for one in tmp_path.iterdir()]) == (before, [path.name])
    assert purge_logs(tmp_path, Selector(tenant="acme"), dry_run=False).files == 1
    assert texts(tmp_path)["a1", 1] is None


def test_whose_request_cannot_be_told_is_everybodys(folder):
    """Lines of a request whose first lines are gone, and half lines that hold text, do not survive a purge of any tenant."""
    with segment_files(folder)[-1].open("ab") as file:
        file.write(b'{"time":"t","event":"token","request_id":"lost","index":0,"choice":0,"text":"Ada"}\n')
        file.write(b'{"time":"t","event":"token","request_id":"half","index":0,"choice":0,"text":"Ad\n')
    done = purge_logs(folder, Selector(tenant="acme"), dry_run=False)
    raw = b"".join(path.read_bytes() for path in log_files(folder))
    assert (done.unread, b'"request_id":"lost"' in raw, b'"half"' in raw) == (1, True, False)
    assert texts(folder)["lost", 0] is None


def test_a_running_gateway_loses_no_line(tmp_path):
    """Lines that are written while purges take the open file away are all there, once, and those that were meant are bare."""
    log = writer(tmp_path, rotate_bytes=50_000)
    rewritten = []

    def purges():
        while sum(rewritten) < 5:
            rewritten.append(purge_logs(tmp_path, Selector(tenant="acme"), dry_run=False).files)

    thread = threading.Thread(target=purges)
    thread.start()
    number = 0
    while thread.is_alive():
        talk(log, f"a{number}", "acme", "secret plan")
        talk(log, f"b{number}", "beta", "stays")
        number += 1
        while log.queued > 200:
            threading.Event().wait(0.001)
    assert log.close() == 0
    purge_logs(tmp_path, Selector(tenant="acme"), dry_run=False)
    found = lines(tmp_path)
    for event in ("token", "request.closed"):
        ids = [line["request_id"] for line in found if line["event"] == event]
        assert sorted(ids) == sorted(f"{side}{n}" for n in range(number) for side in "ab")
    assert {line.get("text") for line in found if line["event"] == "token"} == {None, "stays"}


def test_the_audit_knows_that_there_was_a_subject_and_not_which():
    """What is logged of a purge is no new place for what was purged."""
    assert SUBJECT not in json.dumps(Selector(tenant="acme", subject=SUBJECT).told())
    assert Selector(subject=SUBJECT).told()["subject"] is True


@pytest.mark.parametrize("text", ["ada lovelace", "\uff21da Love\u200blace", "Ada\nLovelace", "is Ada Lovelace's"])
def test_a_subject_is_found_as_the_detector_reads(text):
    """In any case and disguise, and escaped in JSON."""
    assert Subject(SUBJECT).stands_in(text)
    assert Subject(SUBJECT).stands_in_json(json.dumps({"user": text}).encode())
