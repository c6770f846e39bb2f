"""The models that know names: each an Engine. Heavy packages are imported when one is loaded, and only in the names worker.

Nothing here reaches for the network: a model that is not on this machine is an error with its mend.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from gateway.names.frames import Span
from gateway.weights import WeightsError

EngineName = Literal["presidio", "gliner"]

_PRESIDIO = {"PERSON": "person", "LOCATION": "location", "ORGANIZATION": "organization"}
_SPACY = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION", "ORG": "ORGANIZATION"}
"""Labels of spaCy's pipelines, English and others, by what Presidio calls them."""
_WINDOW_WORDS, _OVERLAP_WORDS = 150, 20
"""GLiNER drops what stands behind its 384 tokens without a word, so a text is read in windows."""
_WORD = re.compile(r"\S+")


class Engine(Protocol):
    """A loaded model."""

    def locate(self, text: str) -> list[Span]:
        """Every name in the text, in order. Takes milliseconds a line."""
        ...


class Presidio:
    """Microsoft Presidio's analyzer over a spaCy pipeline: a package (`en_core_web_sm`) or a folder."""

    def __init__(self, model: str, *, language: str, least_score: float) -> None:
        if not Path(model).is_dir() and importlib.util.find_spec(model.partition(".")[0]) is None:
            mend = f"install it (python -m spacy download {model}), or name a folder"
            raise WeightsError(f'the spaCy pipeline "{model}" is not on this machine; {mend} in [names] model')
        try:
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # noqa: PLC0415 - heavy
            from presidio_analyzer.nlp_engine import NlpEngineProvider  # noqa: PLC0415 - heavy
            from presidio_analyzer.predefined_recognizers import SpacyRecognizer  # noqa: PLC0415 - heavy
        except ImportError as error:
            raise WeightsError(f'{error.name} is missing; run: pip install "gateway[names]"') from error
        labels = {"model_to_presidio_entity_mapping": _SPACY, "labels_to_ignore": ["O"], "low_score_entity_names": []}
        configuration = {
            "nlp_engine_name": "spacy",
            "models": [{"lang_code": language, "model_name": model}],
            "ner_model_configuration": labels,
        }
        try:
            pipeline = NlpEngineProvider(nlp_configuration=configuration).create_engine()
        except (OSError, ValueError, ImportError) as error:
            raise WeightsError(f'the spaCy pipeline "{model}" cannot be loaded: {error}') from error
        registry = RecognizerRegistry(supported_languages=[language])
        registry.add_recognizer(SpacyRecognizer(supported_language=language, supported_entities=list(_PRESIDIO)))
        self._analyzer = AnalyzerEngine(registry=registry, nlp_engine=pipeline, supported_languages=[language])
        self._language = language
        self._least_score = least_score

    def locate(self, text: str) -> list[Span]:
        """See `Engine`."""
        found = self._analyzer.analyze(text, language=self._language, entities=list(_PRESIDIO), score_threshold=self._least_score)
        return sorted(((_PRESIDIO[one.entity_type], one.start, one.end) for one in found), key=lambda span: span[1:])


class Gliner:
    """GLiNER, from a folder with its weights."""

    def __init__(self, model: str, *, least_score: float) -> None:
        if not Path(model).is_dir():
            raise WeightsError(f'the folder "{model}" with the weights of GLiNER is not there; put them there, or name another')
        try:
            from gliner import GLiNER  # noqa: PLC0415 - heavy
        except ImportError as error:
            raise WeightsError(f"{error.name} is missing; run: pip install gliner") from error
        try:
            self._model: Any = GLiNER.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f'GLiNER in "{model}" cannot be loaded: {type(error).__name__}: {error}') from error
        self._least_score = least_score

    def locate(self, text: str) -> list[Span]:
        """See `Engine`."""
        found: set[Span] = set()
        for begin, window in _windows(text):
            for one in self._model.predict_entities(window, list(_PRESIDIO.values()), threshold=self._least_score):
                found.add((one["label"], begin + one["start"], begin + one["end"]))
        return sorted(found, key=lambda span: span[1:])


def _windows(text: str) -> Iterator[tuple[int, str]]:
    """Stretches of a text that overlap, each with where it begins."""
    words = [match.span() for match in _WORD.finditer(text)]
    for first in range(0, max(1, len(words) - _OVERLAP_WORDS), _WINDOW_WORDS - _OVERLAP_WORDS):
        window = words[first : first + _WINDOW_WORDS]
        if window:
            yield window[0][0], text[window[0][0] : window[-1][1]]


def load(name: EngineName, model: str, *, language: str, least_score: float) -> Engine:
    """The engine of this name. Raises WeightsError with the mend when a package or the model is missing."""
    if name == "gliner":
        return Gliner(model, least_score=least_score)
    return Presidio(model, language=language, least_score=least_score)
