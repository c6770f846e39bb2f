"""A gateway whose front worker notes every pause that garbage collection makes. For the bench only: `growth` starts it.

`python -m tests.bench.pauses OUT serve --config FILE` is `gateway serve`, and OUT is written when it ends: a JSON list of
[monotonic start in s, generation, ms].
"""

from __future__ import annotations

import gc
import json
import runpy
import shlex
import sys
import time
from pathlib import Path

from gateway import cli


def watched(out: Path, words: list[str]) -> None:
    """Run the module that the supervisor asked for, and write down its collections."""
    found: list[tuple[float, int, float]] = []
    began = 0.0

    def note(phase: str, about: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        else:
            found.append((began, about["generation"], (time.monotonic() - began) * 1000))

    gc.callbacks.append(note)
    sys.argv = words[1:]
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    finally:
        gc.callbacks.remove(note)
        out.write_text(json.dumps(found))


def main() -> None:
    out, words = Path(sys.argv[1]), sys.argv[2:]
    if words[0] == "-m":
        watched(out, words)
        return
    # The supervisor starts its workers by the interpreter that it runs under: this script stands in for it.
    script = out.with_suffix(".sh")
    script.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-m", "tests.bench.pauses", str(out)])} "$@"\n')
    script.chmod(0o700)
    sys.executable, sys.argv = str(script), ["gateway", *words]
    cli.main()


if __name__ == "__main__":
    main()
