"""Models that know names, made on the spot, and how a names worker, a gateway and its policies are told of one."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPTS = {"presidio": "spacy_pipeline.py", "gliner": "gliner_model.py"}
AT_HOME = '[classes]\nconfidential = ["person"]\npublic = ["email"]\n'
"""What a policy file says to keep names at home."""
MASKED = AT_HOME + '[[limit]]\nname = "masked"\nredact = "outside"\n'
"""What it says to let them leave masked."""


class Model(NamedTuple):
    """A folder that an engine loads."""

    engine: str
    folder: Path

    @property
    def least_score(self):
        """GLiNER's weights of chance take every word for a name when nothing is asked of its score."""
        return {"presidio": 0.5, "gliner": 0.0}[self.engine]

    def section(self, **settings):
        """The [names] of a config.toml."""
        said = {"engine": f'"{self.engine}"', "model": f'"{self.folder}"', "least_score": self.least_score, **settings}
        return "[names]\n" + "".join(f"{name} = {value}\n" for name, value in said.items())

    def command(self, socket):
        """Starts a names worker alone."""
        options = {"socket": socket, "engine": self.engine, "model": self.folder, "least-score": self.least_score}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "gateway.names.worker", *words]


def made(engine, folder):
    """A model of this engine; made in a process of its own, so that this one stays without what that takes."""
    if engine == "gliner" and importlib.util.find_spec("gliner") is None:
        pytest.skip("gliner is not installed; `make test` installs it")
    script = Path(__file__).parent / "names" / SCRIPTS[engine]
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=300, capture_output=True)
    return Model(engine, folder)
