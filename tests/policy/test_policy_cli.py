"""`gateway policy ...` on real files: going back, looking at what was in force, trying out."""

import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.exceptions import Abort
from click.testing import CliRunner

from gateway.cli import cli
from gateway.errors import ConfigError
from gateway.facts import Facts
from gateway.pipeline import decided
from gateway.policy.decide import decide
from gateway.policy.generation import load
from gateway.policy.store import Store
from gateway.terminal import load_config

CONFIG = """[policies]
default = "a"
[cache]
semantic = false
[upstreams.e]
kind = "echo"
takes_up_to = "restricted"
[upstreams.far]
kind = "echo"
zone = "us"
takes_up_to = "restricted"
[[models.m.candidates]]
upstream = "e"
[[models.m.candidates]]
upstream = "far"
"""
LIMIT = '[[limit]]\nname = "l"\ncache = "off"\n'
POLICY = 'policy = "a"\n[[route]]\nname = "all"\norder_by = "cost"\n'


class Place:
    """A config with its policy folder and archive, and the command line over them."""

    def __init__(self, root):
        self.path = root / "config.toml"
        self.path.write_text(CONFIG)
        self.folder = root / "policies"
        self.folder.mkdir()
        self.config = load_config(self.path)
        self.store = Store(self.config.state_dir / "policies", clock=iter(range(1_790_000_000, 1_790_009_999)).__next__)

    def activate(self, text):
        (self.folder / "a.toml").write_text(text)
        made = load(self.config, self.folder)
        self.store.approve(made)
        self.store.propose(made)
        return made.hash

    def run(self, *words):
        return CliRunner().invoke(cli, ["policy", *words, "-c", str(self.path)], catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_history_tells_what_was_in_force_and_what_changed(place):
    """Each generation stands there with its time, its changed files and the limits it lost or gained."""
    first, second = place.activate(POLICY + LIMIT), place.activate(POLICY)
    rows = json.loads(place.run("history", "--json").output)
    assert [row["hash"] for row in rows] == [first, second]
    assert rows[1]["files"] == ["a.toml changed"]
    assert rows[1]["lost"] == ['the limit "l" (policies/a.toml:5)']
    assert rows[0]["since"] == "2026-09-21 14:13:20"


def test_rollback_puts_the_files_back_and_keeps_what_was_never_in_force(place):
    """The folder holds exactly the earlier files afterwards; unarchived work is set aside, and the next start takes the change."""
    first = place.activate(POLICY + LIMIT)
    place.activate(POLICY)
    (place.folder / "draft.toml").write_text('policy = "draft"\n' + LIMIT.replace('"l"', '"d"'))
    said = place.run("rollback", "1", "--yes").output
    assert [file.name for file in place.folder.glob("*.toml")] == ["a.toml"]
    assert (place.folder / "a.toml").read_text() == POLICY + LIMIT
    (kept,) = Path(place.config.state_dir).rglob("draft.toml")
    assert kept.name in said
    assert "no gateway runs" in said
    assert place.store.propose(load(place.config, place.folder)).generation.hash == first


def test_rollback_asks_before_it_loses_a_limit(place):
    """Without a yes nothing changes."""
    loose = place.activate(POLICY)
    place.activate(POLICY + LIMIT)
    with pytest.raises(Abort):
        CliRunner().invoke(
            cli, ["policy", "rollback", loose, "-c", str(place.path)], input="n\n", catch_exceptions=False, standalone_mode=False
        )
    assert (place.folder / "a.toml").read_text() == POLICY + LIMIT


def test_an_unknown_generation_is_refused(place):
    """A hash or number that is not in the history is named, with the way to find the right one."""
    place.activate(POLICY)
    with pytest.raises(ConfigError, match="see gateway policy history"):
        place.run("rollback", "7", "--yes")


def test_a_failing_test_fails_the_command(place):
    """`gateway policy test` tells the place of what is not met."""
    place.activate(POLICY + '[[test]]\nname = "t"\ngiven = {}\nexpect = { refused = true }\n')
    with pytest.raises(ConfigError, match=r"policies/a.toml:5: test \"t\": expected a refusal"):
        place.run("test")


def logged(place, made, request):
    """A log folder that holds one decision under these policies."""
    health = {}
    fields = decided(request, decide(made, "a", request, health), health)
    line = {"time": "2026-11-23T06:38:35.074197Z", "event": "route.decided", "level": "info", "request_id": "req_1", **fields}
    file = place.config.logs_folder / "front0-20261123T063835-0.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(msgspec.json.encode(line) + b"\n")
    return file


def draft(place, text):
    """A candidate folder of policies."""
    folder = place.folder.parent / "draft"
    folder.mkdir()
    (folder / "a.toml").write_text(text)
    return str(folder)


HOLD = '[[limit]]\nname = "hold"\nwhen = { class = "restricted" }\nnever = { zone = "us" }\n'
FAR_FIRST = POLICY.replace('order_by = "cost"', 'use = ["far"]')
SECRET = Facts(endpoint="chat/completions", model="m", needs=("chat",), class_="restricted")


def test_replay_exits_with_2_on_a_new_flow_and_says_so_first(place):
    """What a class could not reach before is the head of the table; under the same policies nothing moves and the status is 0."""
    place.activate(POLICY + HOLD)
    logged(place, load(place.config, place.folder), SECRET)
    same = place.run("replay")
    assert (same.exit_code, "NEW FLOWS" in same.output) == (0, False)
    found = place.run("replay", "--policy", draft(place, FAR_FIRST))
    assert (found.exit_code, found.output.splitlines()[0].startswith("NEW FLOWS")) == (2, True)
    told = json.loads(place.run("replay", "--policy", str(place.folder.parent / "draft"), "--json").output)
    assert [(flow["class"], flow["zone"], flow["examples"]) for flow in told["new_flows"]] == [("restricted", "us", ["req_1"])]
    assert (told["moved"], told["moved_share"], told["not_replayable"]) == (1, 1.0, {})


def test_replay_draws_what_it_found(place, tmp_path):
    """The picture is there although the new flow makes the command fail."""
    place.activate(POLICY + HOLD)
    file = logged(place, load(place.config, place.folder), SECRET)
    png = tmp_path / "flows.png"
    found = place.run("replay", "--policy", draft(place, FAR_FIRST), "--log", str(file), "--png", str(png))
    assert (found.exit_code, png.read_bytes()[:4]) == (2, b"\x89PNG")
    assert str(png) in found.stderr


def test_a_picture_that_cannot_be_drawn_is_told_before_the_replay(place, monkeypatch):
    """Nobody waits for a long replay to hear that matplotlib is missing: not even the log is opened."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    place.activate(POLICY)
    (place.config.logs_folder / "front0-20261123T063835-0.jsonl").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"pip install 'gateway\[plots\]'"):
        place.run("replay", "--png", "flows.png")


def test_replay_without_a_decision_is_told_with_its_mend(place):
    """A log that holds none, and a folder without logs, are no empty success."""
    place.activate(POLICY)
    with pytest.raises(ConfigError, match="holds no log file; name one with --log FILE"):
        place.run("replay", "--log", str(place.folder))
    logged(place, load(place.config, place.folder), SECRET).write_text('{"time":"","event":"gateway.started"}\n')
    with pytest.raises(ConfigError, match=r'no route.decided line; .* logs.level is "info"'):
        place.run("replay")
