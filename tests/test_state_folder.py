"""The state folder is its owner's alone, whichever part of the gateway is the first to need it."""

import stat

import pytest

from gateway import files, weights
from gateway.auth import KeyFile
from gateway.transfers.spool import Spool


def pulled(state, monkeypatch):
    monkeypatch.setattr(weights, "_build", lambda name, recipe, target, progress: None)
    weights.pull("smollm2-135m", state / "models", progress=lambda _: None)


FIRST = {
    "weights": pulled,
    "keys": lambda state, _: KeyFile(state / "keys.json").add("one"),
    "a key of ours": lambda state, _: files.own_key(state / "redaction.key"),
    "an upload": lambda state, _: Spool(state / "spool").close(),
    "policies": lambda state, _: files.write_atomically(state / "policies/active", b"x"),
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_it_is_made_for_its_owner(tmp_path, monkeypatch, first):
    """Also where it is made together with a folder inside it, and with one above it."""
    state = tmp_path / "var" / "state"
    first(state, monkeypatch)
    made = [folder for folder in (tmp_path / "var").rglob("*") if folder.is_dir()]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "var", *made)} == {0o700}
