"""Fixtures that tests of several folders share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from front import POLICY, World
from hypothesis import HealthCheck, settings

# The same examples each time, so that a run fails for what was changed; `--hypothesis-profile=explore` draws others.
SLOW = {"deadline": None, "max_examples": 40, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("gateway", **SLOW, derandomize=True)
settings.register_profile("explore", **SLOW, derandomize=False)
settings.load_profile("gateway")


@pytest.fixture
async def world(tmp_path):
    """Make a World: `world(a={"fail": "connect"}, b={})`."""
    made = []

    def make(policy=POLICY, server="", **upstreams):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, upstreams or {"echo": {}}, policy, server))
        return made[-1]

    yield make
    for one in made:
        await one.affinity.aclose()
        await one.responses.aclose()
        for upstream in one.upstreams.values():
            await upstream.aclose()


@pytest.fixture
def upstream_key(monkeypatch):
    """A key for an external upstream: `key_env = "TEST_UPSTREAM"`."""
    monkeypatch.setitem(os.environ, "TEST_UPSTREAM", "sk-upstream-secret")
    return "sk-upstream-secret"


@pytest.fixture(scope="session")
def names_pipeline(tmp_path_factory):
    """A folder with a spaCy pipeline that knows some names; trained in a process of its own, so that this one stays without spaCy."""
    folder = tmp_path_factory.mktemp("spacy") / "names"
    script = Path(__file__).parent / "names" / "spacy_pipeline.py"
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=300, capture_output=True)
    return folder
