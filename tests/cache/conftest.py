"""What the cache's tests share: a tiny embedder on disk, and one answer."""

import pytest
import tiny_embedder

from gateway.cache import Entry


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_embedder.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def entry():
    return Entry(kind="json", body=b'{"answer":1}', finish_reason="stop", model="m", class_="public")
