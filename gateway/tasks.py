"""What a request asks for, in one word, guessed from its wording by a small linear model. Knows no policy and keeps no text.

Whole numbers all through, so that the same text gives the same task on every machine. The model is `tasks.bin`, made by
`python -m tests.bench.tasks --train`; docs/policy.md has what it is worth.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

Task = Literal["", "code", "math", "translation", "summary", "extraction", "writing", "question", "chat", "other"]
"""Empty: nobody asked for it, so it was not worked out."""

TASKS: Mapping[Task, str] = {
    "code": "programs: write, mend, explain, convert, query, run",
    "math": "calculate, solve, prove; word problems",
    "translation": "from one human language to another",
    "summary": "make a given text shorter",
    "extraction": "take names, fields or labels out of a given text",
    "writing": "write, continue or reword a text: mails, stories, posts",
    "question": "asks for knowledge or an explanation",
    "chat": "small talk, role play, advice, requests to an assistant or a service desk",
    "other": "no text of a user, or none of these with any certainty",
}
"""The words that the fact `task` can be, and what is meant by each."""

HEAD_CHARS = 700
"""Of a long message so much of its beginning is looked at,"""
TAIL_CHARS = 300
"""and so much of its end: instructions stand before or after what they are about."""
HEAD_WORDS, TAIL_WORDS = 90, 40
"""Of what is looked at, so many words (or signs of a script without blanks) count."""
SYSTEM_CHARS = 200
"""Of the system prompt, its beginning."""
HASHED = 1 << 14
"""A power of two: words and pairs of words are hashed into so many buckets. Behind them stand the cues."""
FILE = Path(__file__).with_name("tasks.bin")

_STEM_CHARS = 6
_LANE_BITS = 20
"""Wide enough for 4,096 features of 8 bits."""
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+|\d+|[^\w\s]{1,3}|_")
_PAIR, _FIRST, _LAST, _SYSTEM = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F

_CUES = (
    # programs
    """
    python javasc typesc java kotlin rust golang php sql mysql postgr bash shell html css json regex api docker kubern git
    github functi code codes coding script progra algori array compil debug except traceb import def return const class
    method variab loop string boolea pointer query select databa refact unit pytest linux backen fronte server endpoi
    django react node numpy pandas librar framew syntax bug stack runtim binary sorted recurs implem funkti fonctio funció
    funzio função программ функци skript código codice
    """,
    # mathematics
    """
    calcul comput solve equati integr deriva differ probab percen fracti decima triang circle square root sum produc
    divide divisi multip plus minus equals ratio averag mean median matrix vector polyno prime factor theore prove proof
    algebr geomet area volume perime radius angle logari limit intege remain altoge left total each twice half times many
    much per cost costs earn earns spend spends buys sold sells hours miles berech löse gleich prozen fläche combie résous
    équati aire calcul cuánto resuel ecuaci porcen quanto área решите уравне скольк
    """,
    # translation
    """
    transl locali subtit interp render idioma versio übersi überse heißt heisst traduc tradui tradui traduz traduç traduz
    vertaa przetł перев переве çevir översä ترجم अनुवाद say says said mean means
    """,
    # names of human languages
    """
    englis german french spanis italia portug dutch polish russia turkis arabic hebrew hindi japane korean chines greek
    swedis danish norweg finnis czech ukrain vietna thai latin romani hungar mandar deutsc franzö spanis italie anglai
    allema espagn portug inglés español francé alemán inglês inglese franc tedesc engels duits frans англий немецк францу
    영어
    """,
    # summaries
    """
    summar synops tl tldr dr condens shorte recap gist takeaw conden distil overvi abstra brief bottom essent key points
    bullet reduce boil concis senten zusamm fasse fassen résum résumé resum résume essent resume resumen riassu resumo
    samenv кратко изложи özetle لخص minutes outcom highli short
    """,
    # extraction
    """
    extrac parse identi classi label catego tag entiti field fields named names mentio json csv table column schema list
    every all find pull return output count sentim positi negati extrah extrai extrae estrai извлек welche quels quelles
    relève aparec appear invoic transc structu spam
    """,
    # writing
    """
    write compos draft rewrit rephra paraph proofr polish reword edit improv story poem poetry haiku essay letter email
    mail blog post speech song lyrics slogan headli captio tagli tweet newsle invita script scene novel dialog gramma tone
    profes formal casual creati descri brains titles names pen invent finish contin schrei verfas formul écris rédige
    escrib redact scrivi escrev напиши gedich poème poema cuento poesia стихот yaz obitua announ article
    """,
    # questions
    """
    what why who whom whose when where which how explai define differ cause causes histor describ discus compar capita
    popula invent discov theory effect impact answer follow true false except best was warum wer wie erklär was pourqu
    commen quoi qui expliq qué quién por cómo cuál perché come cosa como почему что кто как nedir role process princi
    """,
    # chat
    """
    hi hello hey thanks thank bye good mornin you your yours my me i im am please want need feel help remind alarm play
    book call text cancel order card accoun passwo refund weathe joke like love sorry ok okay yes no bored today tomorr
    tonigh hallo danke merci salut gracia hola ciao grazie obriga oi привет спасиб act preten role imagin person let lets
    payment transf app top money charge
    """,
    # little doubt: programs
    """
    python javasc typesc kotlin rust golang sql mysql postgr bash html css regex api docker kubern git numpy pandas django
    react traceb functi funkti fonctio funció funzio функци def import const return algori compil
    """,
    # little doubt: mathematics
    """
    calcul solve equati integr deriva probab polyno theore prove löse gleich berech résous équati resuel ecuaci решите
    уравне
    """,
    # little doubt: translation
    """
    transl übersi überse traduc tradui traduz traduç vertaa przetł перев переве çevir översä ترجم अनुवाद
    """,
    # little doubt: summaries
    """
    summar synops tldr tl condens recap gist takeaw zusamm résum résume résumé resume resumo riassu samenv özetle لخص
    """,
    # little doubt: extraction
    """
    extrac classi catego label identi sentim entiti extrah extrai extrae estrai извлек
    """,
    # little doubt: writing
    """
    rewrit rephra paraph proofr reword compos poem haiku essay story lyrics slogan gedich poème poema cuento poesia стихот
    """,
)
"""Beginnings of words, of six letters at most, that speak for a task or against one; the model weighs them."""
_SIGNS = (
    "翻译", "翻訳", "번역", "总结", "概括", "要約", "요약", "提取", "抽出", "추출", "找出",
    "写一", "帮我写", "を書", "函数", "代码", "関数", "计算", "解方程", "什么是", "为什么",
    "とは", "你好", "谢谢", "ありがと", "翻成", "英文", "英語", "要点", "多少", "求", "诗",
    "詩", "中国語", "你",
)  # fmt: skip
_GROUPS = {cue: group for group, words in enumerate(_CUES) for cue in words.split()}
"""By cue; of one that stands twice, the later group."""
_SHAPES = len(_CUES) * 3 + len(_SIGNS)
BUCKETS = HASHED + _SHAPES + 16


class Model(Struct, frozen=True):
    """The weights, ready for use."""

    tasks: tuple[Task, ...]
    rows: list[int]
    """By bucket: the weights of all tasks in one whole number, so that one addition adds to every task."""
    bias: tuple[int, ...]
    margin: int
    """By so much the best must be above the next, or it is `other`."""


class _Head(Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of the file."""

    tasks: tuple[Task, ...]
    buckets: int
    bias: tuple[int, ...]
    margin: int


@cache
def load() -> Model:
    """The shipped model; about 30 ms and 2 MB the first time, so before it is needed on a loop."""
    head, _, packed = FILE.read_bytes().partition(b"\n")
    read = msgspec.json.decode(head, type=_Head)
    width = len(read.tasks)
    weights = zlib.decompress(packed)
    if read.buckets != BUCKETS or len(weights) != BUCKETS * width:
        raise ValueError(f"{FILE.name} was made for another version of tasks.py; python -m tests.bench.tasks --train")
    rows = [
        sum([weight << shift for weight, shift in zip(weights[at : at + width], _shifts(width), strict=True)])
        for at in range(0, len(weights), width)
    ]
    return Model(read.tasks, rows, read.bias, read.margin)


def _shifts(width: int) -> range:
    return range(0, _LANE_BITS * width, _LANE_BITS)


def packed(tasks: tuple[Task, ...], weights: bytes, bias: tuple[int, ...], margin: int) -> bytes:
    """A model as a file. `weights`: by bucket one byte a task, 128 for nothing."""
    head = json.dumps({"tasks": tasks, "buckets": BUCKETS, "bias": bias, "margin": margin}, separators=(",", ":"))
    return head.encode() + b"\n" + zlib.compress(weights, 9)


@cache
def version() -> str:
    """What guesses, as 8 digits: they change whenever code or weights do. Logged, since `task` hangs on it."""
    return hashlib.sha256(Path(__file__).read_bytes() + FILE.read_bytes()).hexdigest()[:8]


def task_of(data: Mapping[str, Any]) -> Task:
    """The task of a request by its parsed body. Never raises, whatever the body holds; about 60 us, 0.3 ms at most."""
    return classify(*wording(data))


def classify(text: str, system: str = "", model: Model | None = None) -> Task:
    """The task of the last message of a user under a system prompt."""
    found = features(text, system)
    if not found:
        return "other"
    model = model or load()
    rows = model.rows
    total = sum([rows[feature] for feature in found])
    # The model was fitted to vectors of length one; multiplied out, the bias grows with the root of their size.
    root = math.isqrt(len(found) << 16)
    lanes = [(total >> shift) & ((1 << _LANE_BITS) - 1) for shift in _shifts(len(model.tasks))]
    scores = [(lane << 8) + bias * root for lane, bias in zip(lanes, model.bias, strict=True)]
    best = max(scores)
    second = max([score for score in scores if score != best], default=best)
    if scores.count(best) > 1 or best - second < model.margin * root:
        return "other"
    return model.tasks[scores.index(best)]


def features(text: str, system: str = "") -> set[int]:
    """The buckets of a wording: its words and pairs of them, the first and the last few, the system prompt's, and its cues."""
    look = text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"
    words = [word[:_STEM_CHARS] for word in _TOKEN.findall(look.lower())]
    if len(words) > HEAD_WORDS + TAIL_WORDS:
        words = words[:HEAD_WORDS] + words[-TAIL_WORDS:]
    hashes = _hashes(words)
    found = set(hashes)
    found.update([first * _PAIR + second for first, second in pairwise(hashes)])
    found.update([one * _FIRST for one in hashes[:4]])
    found.update([one * _LAST for one in hashes[-3:]])
    asked: list[str] = []
    if system:
        asked = [word[:_STEM_CHARS] for word in _TOKEN.findall(system[:SYSTEM_CHARS].lower())]
        found.update([one * _SYSTEM for one in _hashes(asked)])
    # The upper bits of a product are the well mixed ones.
    return {(one >> 15) & (HASHED - 1) for one in found} | _cues(look, words, asked) if words else set()


def _hashes(words: list[str]) -> list[int]:
    crc32 = zlib.crc32
    return [crc32(word.encode("utf-8", "replace")) for word in words]


def _cues(text: str, words: list[str], system: list[str]) -> set[int]:
    """What kinds of words there are, where they stand, and what the text looks like."""
    width = len(_CUES)
    group = _GROUPS.get
    found = {HASHED + kind for word in words if (kind := group(word)) is not None}
    ends = words[:8] + words[-5:] if len(words) > 13 else words
    found.update([HASHED + width + kind for word in ends if (kind := group(word)) is not None])
    found.update([HASHED + 2 * width + kind for word in system if (kind := group(word)) is not None])
    if not text.isascii():
        found.update([HASHED + 3 * width + place for place, sign in enumerate(_SIGNS) if sign in text])
    digits = sum([word.isdigit() for word in words])
    marks = sum([not word.isalnum() for word in words])
    shape = HASHED + _SHAPES
    found.add(shape + min(len(words).bit_length(), 7))
    if digits:
        found.add(shape + 8 + min(digits, 3) - 1)
    if marks * 3 > len(words):
        found.add(shape + 11)
    if "```" in text or "    " in text or "\t" in text:
        found.add(shape + 12)
    if text.rstrip().endswith("?"):
        found.add(shape + 13)
    if "\n" in text:
        found.add(shape + 14)
    if not text.isascii():
        found.add(shape + 15)
    return found


def wording(data: Mapping[str, Any]) -> tuple[str, str]:
    """The last text of a user, and the system prompt; empty where a body has none. Takes any JSON."""
    messages = data.get("messages", data.get("input"))
    system = _text(data.get("system") or data.get("instructions"))
    if not isinstance(messages, list):
        return _text(messages or data.get("prompt")), system
    said = [message for message in messages if isinstance(message, dict)]
    if not system:
        system = next((_text(one.get("content")) for one in said if one.get("role") in ("system", "developer")), "")
    return next((text for one in reversed(said) if one.get("role") == "user" and (text := _text(one.get("content")))), ""), system


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(_parts(content))


def _parts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
