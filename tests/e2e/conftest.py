"""Gateways that several end-to-end tests share, and the Redis that gateways share."""

import pytest
from gateways import ECHO, ECHO_POLICY, MODELS, Gateway, demo_config, private_redis

EXTERNAL_KEY = "sk-test-of-the-external-api-000000"


@pytest.fixture(scope="session")
def external(tmp_path_factory):
    """A second real gateway that stands for an external API: it echoes, and asks for a key of its own."""
    key = '[[keys]]\nlabel = "caller"\nkey_env = "EXTERNAL_API_KEY"\n'
    folder = tmp_path_factory.mktemp("external")
    with Gateway(folder, ECHO + key, policies={"all.toml": ECHO_POLICY}, env={"EXTERNAL_API_KEY": EXTERNAL_KEY}) as gateway:
        yield gateway.until_up("echo/echo")


@pytest.fixture(scope="session")
def demo(tmp_path_factory, external):
    """The demo: the real quantized model and embedder here, and the external API; loaded once for the whole run."""
    if not (MODELS / "smollm2-135m").is_dir():
        pytest.fail(f"the demo weights are not in {MODELS}; run: make weights")
    config = demo_config(f"{external.url}/v1")
    with Gateway(tmp_path_factory.mktemp("demo"), config, env={"TEST_UPSTREAM_KEY": EXTERNAL_KEY}) as gateway:
        gateway.until_up("local/smollm2-135m").until_up("local/all-minilm-l6-v2").until_up("openai/echo")
        yield gateway


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """A gateway without any model that many tests ask; whoever stops or changes one takes `echo`."""
    with Gateway(tmp_path_factory.mktemp("common"), ECHO, policies={"all.toml": ECHO_POLICY}) as gateway:
        yield gateway.until_up("echo/echo")


@pytest.fixture
def echo(tmp_path):
    """A gateway of its own for one test, without any model."""
    with Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY}) as gateway:
        yield gateway.until_up("echo/echo")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A private redis-server: its URL and its process."""
    with private_redis(tmp_path_factory.mktemp("redis")) as made:
        yield made
