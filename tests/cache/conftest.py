"""What the cache's tests share: a tiny embedder on disk, and requests with their scopes."""

import pytest
import tiny_embedder

from gateway.cache import Entry, Scope, key


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_embedder.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def scope_of():
    def make(text="how do i reset my password", *, tenant="acme", model="auto", **fields) -> Scope:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        found = key.scope(body, tenant=tenant, endpoint="chat/completions", model=model, policy_scope="p@1")
        assert found is not None
        return found

    return make


@pytest.fixture
def entry():
    return Entry(kind="json", body=b'{"answer":1}', finish_reason="stop", model="m", class_="public")
