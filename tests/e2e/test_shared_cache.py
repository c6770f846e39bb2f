"""Two gateways with one Redis: what one has answered, the other serves; what one purges, the other forgets."""

import pytest
from gateways import ECHO, ECHO_POLICY, Gateway, until

pytestmark = pytest.mark.redis

CONFIG = ECHO.replace("semantic = false", 'semantic = false\nredis_url_env = "TEST_REDIS_URL"')
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "shared between two"}]}


def state_of(gateway):
    return gateway.post("chat/completions", json=HELLO).headers["x-gateway-cache"]


def test_two_gateways_share_answers_and_purges_and_live_without_redis(tmp_path, redis_server):
    """The second gateway hits what the first stored, a purge reaches both, and a dead Redis costs hits, never requests."""
    url, process = redis_server
    env = {"TEST_REDIS_URL": url}
    policies = {"all.toml": ECHO_POLICY}
    with (
        Gateway(tmp_path / "a", CONFIG, policies=policies, env=env) as first,
        Gateway(tmp_path / "b", CONFIG, policies=policies, env=env) as second,
    ):
        assert state_of(first) == "miss"
        assert until(lambda: (state := state_of(second)) != "miss" and state, "the shared answer") in {
            "hit-shared",
            "hit-exact",
        }
        assert state_of(first) == "hit-exact"
        assert first.cli("purge", "--all").returncode == 0
        until(lambda: state_of(second) == "miss", "the purge at the other gateway")
        process.kill()
        process.wait()
        assert second.post("chat/completions", json={**HELLO, "temperature": 0.5}).status_code == 200
        until(lambda: any("Redis" in problem for problem in second.ready()["cache"]), "the dead Redis named in /ready")


def test_a_redis_url_that_is_not_set_is_named(tmp_path):
    """A variable that the config names and the environment lacks is an error at the start."""
    said = Gateway(tmp_path, CONFIG, policies={"all.toml": ECHO_POLICY}).cli("serve")
    assert said.returncode == 2
    assert "TEST_REDIS_URL is not set" in said.stderr
