"""What a policy may know of a request: a closed list of facts, none of them its text. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway import national_ids, privacy, recognisers, tasks, terms
from gateway.config import CLASSES, Class
from gateway.errors import InvalidRequest, did_you_mean
from gateway.tasks import Task, task_of
from gateway.tokens import size_estimate
from gateway.wire import Request


class Facts(Struct, frozen=True, kw_only=True):
    """Everything `decide` looks at besides policy and health. Logged with every decision, so that it can be made again."""

    endpoint: str
    """A key of `wire.ENDPOINTS`."""
    model: str
    """As the client named it."""
    class_: Class = msgspec.field(name="class", default="public")
    found: tuple[str, ...] = ()
    """Kinds of sensitive text that were found, sorted."""
    unread: str = ""
    """Why the text could not be searched and so counts as restricted: `oversize`, or the type name of what failed."""
    class_floor: Class = "public"
    """What key, header and earlier response demanded, whatever was found: with it, other `[classes]` can be tried out later."""
    tenant: str = ""
    key_label: str = ""
    tags: tuple[str, ...] = ()
    """From the x-gateway-tags header, sorted; they are logged, so one that holds sensitive text is WITHHELD."""
    stream: bool = False
    tools: bool = False
    images: bool = False
    json_mode: bool = False
    needs: tuple[str, ...] = ()
    """Capabilities a model must have (`config.Capability`), the endpoint's own first."""
    via_chat: tuple[str, ...] = ()
    """Capabilities that do as well, because the request can be translated to chat; empty: it cannot."""
    stores: bool = False
    """Whether an upstream that speaks the endpoint itself would keep the answer."""
    prompt_tokens: int = 0
    """Estimate."""
    prompt_tokens_low: int = 0
    prompt_tokens_high: int = 0
    """Upper end of the estimate's error band; what a limit or a context window is compared with."""
    max_output: int | None = None
    """As the client limited it, for each answer."""
    choices: int = 1
    """How many answers are asked for: `n`, times the prompts of a body that has several."""
    deadline_ms: int | None = None
    """What the client is ready to wait for the first token, from its x-gateway-deadline-ms header."""
    hour: int = 0
    """UTC hour of the day when the request came."""
    task: Task = ""
    """What is asked for, as `tasks` guesses; empty where no policy in force asks for it."""
    seed: str = ""
    """The request id: whatever a decision draws by lot is drawn from it, so that it can be drawn again."""

    @property
    def why(self) -> str:
        """What made the class what it is, in brackets; empty when nothing was found."""
        told = [f"not searched: {self.unread}"] if self.unread else []
        told += [f"{', '.join(self.found)} found"] if self.found else []
        return f" ({'; '.join(told)})" if told else ""


MOST_TOKENS = 2**53
"""What a client allows beyond this is taken as this: it may have hundreds of digits, and sums and logs end sooner."""


def judge(
    request: Request,
    *,
    query: str = "",
    classes: Mapping[str, Class],
    detector: privacy.Finder = privacy.DETECTOR,
    max_scan_chars: int,
    tenant: str,
    key_label: str,
    class_floor: Class,
    headers: Mapping[str, str],
    seed: str,
    now: float,
    with_task: bool = False,
) -> Facts:
    """Scan a request and gather its facts. Its class is the highest of what was found, the key's floor and x-gateway-class.

    `query` is text of the URL that travels with the body; `classes` maps kinds of findings to classes; `now` is Unix seconds;
    `with_task`: whether anybody asks for the task.
    Long for a large body: then off the loop. Raises InvalidRequest for an x-gateway-class that names none.
    """
    scan = privacy.scan((request.data, query), max_chars=max_scan_chars, detector=detector)
    unread = scan.failed or ("oversize" if scan.oversize else "")
    clean = not (scan.kinds or unread)
    found_class = CLASSES[0] if clean else cast("Class", privacy.classify(scan, classes))
    size = size_estimate(texts(request))
    floor = _higher(class_floor, asked_class(headers)) if "x-gateway-class" in headers else class_floor
    return Facts(
        endpoint=request.endpoint,
        model=request.model,
        class_=_higher(found_class, floor),
        class_floor=floor,
        found=tuple(sorted(scan.kinds)) if scan.kinds else (),
        unread=unread,
        tenant=tenant,
        key_label=key_label,
        tags=_tags(headers["x-gateway-tags"], detector) if "x-gateway-tags" in headers else (),
        stream=request.stream,
        tools="tools" in request.needs,
        images="images" in request.needs,
        json_mode="json" in request.needs,
        needs=request.needs,
        stores=request.stores,
        prompt_tokens=size.tokens,
        prompt_tokens_low=size.low,
        prompt_tokens_high=size.high,
        max_output=request.max_output if request.max_output is None else min(request.max_output, MOST_TOKENS),
        choices=min(request.choices, MOST_TOKENS),
        deadline_ms=_milliseconds(headers["x-gateway-deadline-ms"]) if "x-gateway-deadline-ms" in headers else None,
        hour=hour(now),
        task=task_of(request.data) if with_task else "",
        seed=seed,
    )


def hour(now: float) -> int:
    """The UTC hour of the day at this Unix time."""
    return int(now) // 3600 % 24


@cache
def detector_version() -> str:
    """What finds sensitive text, as 8 digits: they change whenever its code does. Logged, since `found` hangs on it."""
    modules = (privacy, recognisers, national_ids, terms)
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(code).hexdigest()[:8]


def with_task(facts: Facts, request: Request) -> Facts:
    """The facts with the task of the request, also where no policy asks for it: for whoever looks on."""
    return facts if facts.task else replace(facts, task=task_of(request.data))


def classifier(facts: Facts) -> str:
    """What guessed the task, as 8 digits; empty where it was not worked out. Logged, since `task` hangs on it."""
    return tasks.version() if facts.task else ""


_RANK = {name: rank for rank, name in enumerate(CLASSES)}


def _higher(one: Class, other: Class) -> Class:
    return one if _RANK[one] >= _RANK[other] else other


def asked_class(headers: Mapping[str, str]) -> Class:
    """The class that the caller asks for; it can raise the request's class, never lower it."""
    if "x-gateway-class" not in headers:
        return "public"
    name = headers["x-gateway-class"].strip().lower()
    for known in CLASSES:
        if name == known:
            return known
    hint = did_you_mean(name, CLASSES)
    raise InvalidRequest(f"x-gateway-class does not name a class{hint}", param="x-gateway-class")


WITHHELD = "[withheld]"
"""Stands in the log for a word of the caller's in which sensitive text was found."""
MAX_TAGS = 64
"""Of more, those that come first in the header count."""


def loggable(word: str, detector: privacy.Finder = privacy.DETECTOR) -> str:
    """The word itself, or WITHHELD when anything sensitive is found in it: words about a request are logged whatever its class.

    About 4 µs a word; what is longer than any tag or id should be cut before.
    """
    try:
        return WITHHELD if word and detector.kinds_of_all([word]) else word
    except Exception:  # noqa: BLE001 - a detector that fails has not said that the word may be shown
        return WITHHELD


def _tags(header: str, detector: privacy.Finder) -> tuple[str, ...]:
    words = [word for part in header.split(",") if (word := part.strip())]
    return tuple(sorted({loggable(word, detector) for word in words[:MAX_TAGS]}))


def _milliseconds(text: str) -> int | None:
    return int(text) if text.isdigit() and 0 < len(text) < 10 and int(text) > 0 else None


def texts(request: Request) -> list[str]:
    """The texts that make up the prompt, for its size: contents, text parts, tool definitions and earlier calls."""
    data = request.data
    found: list[str] = []
    for name in ("prompt", "input", "instructions", "system"):
        if name in data:
            _gather(data[name], found)
    for message in data.get("messages") or ():
        content = message.get("content")
        if type(content) is str:
            found.append(content)
        else:
            _gather(content, found)
        if "tool_calls" in message:
            _gather(message["tool_calls"], found)
    if "tools" in data:
        _gather(data["tools"], found)
    return found


_NO_TEXT = frozenset({"image_url", "input_audio", "file", "file_data", "encrypted_content", "signature", "type"})
"""Keys of files, of what only the upstream reads, and of words that every part repeats."""


def _gather(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    elif isinstance(value, int):
        found.append("x ")  # a token id: one token
    elif isinstance(value, list):
        for item in value:
            _gather(item, found)
    elif isinstance(value, dict):
        if value.get("type") == "base64":  # an Anthropic image or document
            return
        for name, item in value.items():
            if name not in _NO_TEXT:
                _gather(item, found)
