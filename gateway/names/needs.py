"""What the model that knows names needs on this machine. Looked for, not loaded: for whoever checks before the worker starts.

An engine that is loaded says the same of itself, with what only loading shows.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gateway.config import Config

_PACKAGES = {"presidio": ("presidio_analyzer", "spacy"), "gliner": ("gliner",)}
_MENDS = {
    "presidio": 'run: pip install "gateway[names]"',
    "gliner": 'run: pip install "gateway[gliner]" && pip install --no-deps gliner',
}
_DESCRIPTIONS = {"presidio": "meta.json", "gliner": "gliner_config.json"}
"""The file in a folder without which it holds no such model."""


def missing(config: Config) -> str | None:
    """Why the `[names]` of a config cannot be loaded, with the mend; None when nothing is missing, or none are set up."""
    if config.names is None:
        return None
    engine, model = config.names.engine, config.names_model()
    for package in _PACKAGES[engine]:
        if importlib.util.find_spec(package) is None:
            return f"{package} is missing; {_MENDS[engine]}"
    folder = Path(model)
    if folder.is_dir():
        what = _DESCRIPTIONS[engine]
        return None if (folder / what).is_file() else f'the folder "{model}" holds no model of {engine}: {what} is not there'
    if engine == "gliner" or "/" in model:
        return f'the folder "{model}" is not there; put the model there, or name another in [names] model'
    if importlib.util.find_spec(model.partition(".")[0]) is None:
        return (
            f'the spaCy pipeline "{model}" is missing; run: python -m spacy download {model}, or name a folder in [names] model'
        )
    return None
