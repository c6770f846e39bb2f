"""The benchmark commands of tests/bench judge their own figures rightly; the long runs themselves are started by hand."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def commands(monkeypatch):
    """The modules as `python -m` finds them."""
    monkeypatch.syspath_prepend(str(ROOT))
    return tuple(importlib.import_module(f"tests.bench.{name}") for name in ("growth", "peers", "sides"))


def test_a_step_that_grows_faster_than_the_work_is_a_cliff(commands):
    """Twice the work for four times the cost is named; twice the work for twice the cost is not."""
    growth, _, _ = commands
    assert growth.curve("x", "y", [(1, 10.0), (2, 20.0), (4, 80.0)])["cliffs"] == [((2, 20.0), (4, 80.0))]
    assert growth.curve("x", "y", [(1, 10.0), (100, 12.0)])["cliffs"] == []


def test_a_ratio_is_made_of_medians_and_left_out_without_its_peer(commands):
    """Goals compare medians of one run; a peer that was left out gives no row instead of a wrong one."""
    _, peers, _ = commands
    found = {"gateway": {"json": {"cpu_us": [90.0, 100.0, 900.0]}}, "envoy": {"json": {"cpu_us": [50.0, 1.0, 51.0]}}}
    rows = peers.goals(found, 70.0)
    assert [(row["what"], row["found"]) for row in rows] == [
        ("CPU of a JSON request, of Envoy's", 2.0),
        ("front worker's memory after the run (PSS), MiB", 70.0),
    ]


def test_a_side_that_answers_wrongly_is_left_out(commands):
    """A target that does not answer at all never gets into the comparison."""
    _, _, sides = commands
    side = sides.Side("dead", 0, "", {"json": {"url": "http://127.0.0.1:1/v1/chat/completions"}})
    with pytest.raises(sides.LeftOut, match="does not answer"):
        sides.prove(side)


def test_growth_runs_by_its_command(tmp_path):
    """One command measures a part, writes its JSON, and ends with status 0."""
    command = [sys.executable, "-m", "tests.bench.growth", "--only", "body", "--secs", "0.05", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    points = json.loads((tmp_path / "growth.json").read_text())["body"]["points"]
    assert [x for x, _ in points] == [1, 4, 16, 64, 256, 1024]
    assert all(us > 0 for _, us in points)
    assert (tmp_path / "growth-body.png").exists()


def test_the_policy_bench_runs_by_its_command():
    """One command times decisions and a replay, and says by its status whether every decision was made again."""
    command = [sys.executable, "-m", "tests.bench.policy", "--lines", "20", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout)["replay"]
    assert (replay["lines"], replay["decisions"], replay["same"]) == (20, 10, 10)
