"""The models that know names: each an Engine. Heavy packages are imported when one is loaded, and only in the names worker.

Nothing here reaches for the network: a model that is not on this machine is an error with its mend.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from gateway.names.frames import Span
from gateway.weights import WeightsError

EngineName = Literal["presidio", "gliner"]

_PRESIDIO = {"PERSON": "person", "LOCATION": "location", "ORGANIZATION": "organization"}
_SPACY = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION", "ORG": "ORGANIZATION"}
"""Labels of spaCy's pipelines, English and others, by what Presidio calls them."""
_WINDOW_WORDS, _OVERLAP_WORDS = 150, 20
_WINDOW_TOKENS, _LABEL_TOKENS = 512, 40
"""GLiNER drops what stands behind its limits of words and of tokens, so a text is read in windows. Marks are words to it; its
labels take some of the tokens."""


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
        os.environ["HF_HUB_OFFLINE"] = "1"  # read on import; a folder that lacks a file would have it asked for by its name
        try:
            from gliner import GLiNER  # noqa: PLC0415 - heavy
        except ImportError as error:
            mend = 'pip install "gateway[gliner]" && pip install --no-deps gliner'
            raise WeightsError(f"{error.name} is missing; run: {mend}") from error
        try:
            self._model: Any = GLiNER.from_pretrained(model, local_files_only=True)
        except Exception as error:  # a folder may hold anything, and each of the libraries that read it has errors of its own
            raise WeightsError(f'GLiNER in "{model}" cannot be loaded: {type(error).__name__}: {error}') from error
        self._least_score = least_score
        self._most_words = min(_WINDOW_WORDS, self._model.config.max_len)
        self._most_tokens = min(_WINDOW_TOKENS, self._model.data_processor.transformer_tokenizer.model_max_length) - _LABEL_TOKENS

    def locate(self, text: str) -> list[Span]:
        """See `Engine`."""
        found: set[Span] = set()
        for begin, end in _windows(self._words(text), self._most_words, self._most_tokens):
            for one in self._model.predict_entities(text[begin:end], list(_PRESIDIO.values()), threshold=self._least_score):
                found.add((one["label"], begin + one["start"], begin + one["end"]))
        return sorted(found, key=lambda span: span[1:])

    def _words(self, text: str) -> list[_Word]:
        """The words as this model splits them."""
        words = list(self._model.data_processor.words_splitter(text))
        if not words:
            return []
        tokens = self._model.data_processor.transformer_tokenizer(
            [word for word, _, _ in words], add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        return [_Word(start, end, len(own)) for (_, start, end), own in zip(words, tokens, strict=True)]


class _Word(NamedTuple):
    """Where a word stands in its text, and how many tokens it is to the model."""

    start: int
    end: int
    tokens: int


def _windows(words: Sequence[_Word], most_words: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Where stretches of a text begin and end that overlap and miss no word, but one that alone is too much: that is no name."""
    first = 0
    while first < len(words):
        last, tokens = first, 0
        while last < min(len(words), first + most_words) and tokens + words[last].tokens <= most_tokens:
            tokens += words[last].tokens
            last += 1
        if last == first:
            first += 1
            continue
        yield words[first].start, words[last - 1].end
        if last == len(words):
            return
        overlap, tokens = min(_OVERLAP_WORDS, (last - first) // 4), words[last].tokens
        first = last
        while last - first < overlap and tokens + words[first - 1].tokens <= most_tokens:
            first -= 1
            tokens += words[first].tokens


def load(name: EngineName, model: str, *, language: str, least_score: float) -> Engine:
    """The engine of this name. Raises WeightsError with the mend when a package or the model is missing."""
    if name == "gliner":
        return Gliner(model, least_score=least_score)
    return Presidio(model, language=language, least_score=least_score)
