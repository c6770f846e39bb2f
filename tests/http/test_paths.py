"""Which path is which endpoint."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import wire
from gateway.errors import MethodNotAllowed, NotFound
from gateway.http import paths

KNOWN = {
    "/v1/chat/completions": ("POST", "chat/completions", "", ""),
    "/v1/messages/": ("POST", "messages", "", ""),
    "/openai/v1/embeddings": ("POST", "embeddings", "", ""),
    "/openai/responses": ("POST", "responses", "", ""),
    "/openai/deployments/gpt-4o/embeddings": ("POST", "embeddings", "gpt-4o", ""),
    "/v1/responses/compact": ("POST", "responses/compact", "", ""),
    "/v1/responses/resp_1": ("DELETE", "responses/delete", "", "resp_1"),
    "/openai/v1/responses/resp_1/cancel": ("POST", "responses/cancel", "", "resp_1"),
    "/v1/responses/resp_1/input_items": ("GET", "responses/input_items", "", "resp_1"),
}


@pytest.mark.parametrize(("path", "meant"), KNOWN.items())
def test_a_path_is_one_endpoint(path, meant):
    """With its deployment or id, and by its method."""
    method, endpoint, deployment, id_ = meant
    target = paths.find(path)
    assert (target.endpoint(method), target.deployment, target.id) == (endpoint, deployment, id_)
    with pytest.raises(MethodNotAllowed):
        target.endpoint("PATCH")


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["v1", "openai", "responses", "deployments", "..", "", "m", "x%2f"]), max_size=6).map("/".join)
)
def test_no_path_is_a_crash(path):
    """Whatever is asked for is an endpoint or a 404 of ours."""
    target = paths.find("/" + path)
    assert target is not None or isinstance(paths.unknown("GET", "/" + path), NotFound)


def test_what_is_served_is_not_among_what_is_not():
    """Every endpoint is found under every prefix, and none is said not to be served."""
    for prefix in paths.PREFIXES:
        for name in wire.ENDPOINTS:
            assert paths.find(prefix + name).endpoint("POST") == name
    assert not set(wire.ENDPOINTS) & (set(paths.NOT_SERVED) - {"chat/completions"})


def test_a_router_gives_every_path():
    """What stands in no exact path begins with a mount."""
    assert all(path in paths.EXACT or path.startswith(paths.MOUNTS) for path in map(str.rstrip, KNOWN) if not path.endswith("/"))
