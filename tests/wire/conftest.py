"""What several files of this folder ask."""

import pytest

from tests.e2e.gateways import MODELS, Gateway

LOCAL = f"""
[upstreams.local]
kind = "local"
[local_models.tiny]
kind = "chat"
weights = "{MODELS}/smollm2-135m"
threads = 1
[models.tiny]
candidates = [{{ upstream = "local", capabilities = ["chat", "completions"] }}]
[cache]
semantic = false
"""
POLICY = """
policy = "cost"
[classes]
internal = ["unscannable"]
[[route]]
name = "all"
order_by = "listed"
"""
"""Images cannot be scanned, and a response is stored unless it says otherwise: the class must allow that."""


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A real gateway with the real quantized model, loaded once for the whole run."""
    if not (MODELS / "smollm2-135m").is_dir():
        pytest.fail(f"the demo weights are not in {MODELS}; run: make weights")
    with Gateway(tmp_path_factory.mktemp("local"), LOCAL, policies={"all.toml": POLICY}) as made:
        yield made.until_up("local/tiny")
