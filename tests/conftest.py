"""Fixtures that tests of several folders share."""

import os

import pytest
from front import POLICY, World
from hypothesis import HealthCheck, settings
from named import made

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
def presidio_model(tmp_path_factory):
    """A spaCy pipeline that knows some names."""
    return made("presidio", tmp_path_factory.mktemp("spacy") / "names")


@pytest.fixture(scope="session")
def gliner_model(tmp_path_factory):
    """A GLiNER that takes every word for a name."""
    return made("gliner", tmp_path_factory.mktemp("gliner") / "names")
