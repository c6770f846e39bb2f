"""A gateway with a names worker, started from its config: every process real, driven with OpenAI's SDK."""

import os
import signal

import psutil
import pytest
from gateways import Gateway, until

CONFIG = """
[names]
model = "{model}"
[upstreams.home]
kind = "echo"
zone = "local"
takes_up_to = "restricted"
[upstreams.far]
kind = "echo"
zone = "us"
takes_up_to = "internal"
[models.echo]
candidates = [{{ upstream = "far" }}, {{ upstream = "home" }}]
[cache]
semantic = false
"""
POLICY = """
policy = "cost"
[classes]
confidential = ["person"]
[[route]]
name = "listed"
order_by = "listed"
"""


def named(gateway):
    """How the names worker is, in the gateway's own words."""
    return gateway.ready()["workers"].get("names")


def route_of(gateway, text):
    asked = gateway.client().chat.completions.with_raw_response.create(model="echo", messages=[{"role": "user", "content": text}])
    return asked.headers["x-gateway-route"], gateway.record(asked.headers["x-request-id"])


def test_a_name_stays_at_home_whatever_becomes_of_the_worker(names_pipeline, tmp_path):
    """Found while it runs; restricted while it is away; found again when it has come back. The name is in no log line."""
    with Gateway(tmp_path, CONFIG.format(model=names_pipeline), policies={"all.toml": POLICY}) as gateway:
        until(lambda: named(gateway) == "ready", "the names worker")
        assert route_of(gateway, "How do I sort a list in Python?")[0] == "far/echo"
        route, record = route_of(gateway, "Say hello to Ingrid Okafor!")
        assert (route, record["class"], record["found"]) == ("home/echo", "confidential", ["person"])
        (worker,) = [
            child
            for child in psutil.Process(gateway.process.pid).children(recursive=True)
            if "gateway.names.worker" in child.cmdline()
        ]
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: named(gateway) != "ready", "its loss")
        route, record = route_of(gateway, "Write a letter to Marek Novak about the invoice.")
        assert (route, record["class"], record["found"], record["unsearched"]) == ("home/echo", "restricted", [], "NamesAway")
        until(lambda: named(gateway) == "ready", "its return")
        assert route_of(gateway, "The weather is nice.")[0] == "far/echo"
        written = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*.jsonl"))
    assert b"Okafor" not in written
    assert b"Novak" not in written


def test_a_pipeline_that_is_not_there_is_named(tmp_path):
    """On the terminal and in /ready, with what mends it; until then every request counts as restricted."""
    with Gateway(tmp_path, CONFIG.format(model="no_such_pipeline"), policies={"all.toml": POLICY}) as gateway:
        until(lambda: "no_such_pipeline" in (named(gateway) or ""), "the reason")
        assert "spacy download" in named(gateway)
        assert route_of(gateway, "hello")[0] == "home/echo"


def test_a_config_that_lost_its_model_sends_no_name_away(tmp_path):
    """The start tells the line that asks for names; the policies of before stay in force, and no request passes for searched."""
    set_up = CONFIG.format(model="no_such_pipeline")
    with Gateway(tmp_path, set_up, policies={"all.toml": POLICY}) as gateway:
        said = gateway.cli("check")
        assert "spacy download no_such_pipeline" in said.stdout
    with Gateway(tmp_path, set_up.replace('[names]\nmodel = "no_such_pipeline"\n', ""), policies={"all.toml": POLICY}) as without:
        without.key = gateway.key
        assert without.ready()["policy_files"].startswith("broken at policies/all.toml:4:17; the last good ones stay in force")
        assert 'policies/all.toml:4:17: "person" is found by a model only' in without.said
        route, record = route_of(without, "Say hello to Ingrid Okafor!")
        assert (route, record["class"], record["unsearched"]) == ("home/echo", "restricted", "NamesAway")
        assert 'policies/all.toml:4:17: "person"' in without.cli("check").stderr


@pytest.mark.parametrize("text", ['[names]\nmodle = "x"\n', "[names]\n", '[names]\nmodel = "x"\nengine = "presido"\n'])
def test_a_wrong_setting_is_told_with_its_place(tmp_path, text):
    gateway = Gateway(tmp_path, CONFIG.replace('[names]\nmodel = "{model}"\n', text).format(), policies={"all.toml": POLICY})
    said = gateway.cli("check")
    assert said.returncode != 0
    assert "config.toml:" in said.stdout + said.stderr
    assert "model" in said.stdout + said.stderr or 'did you mean "presidio"' in said.stdout + said.stderr
