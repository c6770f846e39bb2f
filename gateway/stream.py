"""Answers of chat, completions and embeddings in motion: looking inside a copy, turning a stream into one object and back.

Knows these answers' shapes; knows nothing of where an answer came from or goes. Two modes: relay (bytes go as they came)
and rewrite, which may touch one thing only: the usage that we asked for and the client did not (see `Tap`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway import sse
from gateway.errors import ApiError
from gateway.ledger import Usage

T = TypeVar("T")


class _Said(Struct):
    """What one delta or message says. Its fields are `Any`, so that an unusual one never hides the others."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class Chunk(Struct):
    """What we read of a streamed event or of a whole answer; the rest of it is never touched."""

    choices: list[_Choice] | None = None
    usage: _Usage | UnsetType | None = UNSET
    """UNSET: the name does not stand there; None: it stands there as null."""
    error: Any = None

    @property
    def counted(self) -> _Usage | None:
        """The usage, when there is one."""
        return self.usage if isinstance(self.usage, _Usage) else None


class OddChunk(Chunk):
    """A chunk of which a part had another shape than OpenAI's and was not understood. Passed on, never stored."""


class _PlainDelta(Struct, gc=False):
    """A delta that says nothing but content: whatever else is not null is refused."""

    content: str | None = None
    refusal: None = None
    reasoning_content: None = None
    reasoning: None = None
    tool_calls: None = None
    function_call: None = None


class _PlainChoice(Struct, gc=False):
    delta: _PlainDelta
    index: int = 0
    message: None = None
    text: None = None
    finish_reason: str | None = None


class _PlainChunk(Struct, gc=False):
    choices: list[_PlainChoice]


_decoder = msgspec.json.Decoder(Chunk)
_plain_decoder = msgspec.json.Decoder(list[_PlainChunk])
_REFUSED = (msgspec.ValidationError, UnicodeEncodeError)
"""What msgspec says to another shape. To quote a string that holds a lone surrogate, it fails to encode it."""


def read_chunk(data: bytes) -> Chunk | None:
    """The typed view of one event's data or of a whole answer; None when it is not a JSON object."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError:
        pass
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return _odd_chunk(value) if isinstance(value, dict) else None


def _odd_chunk(value: dict[str, Any]) -> Chunk:
    """As much as can be read of what msgspec refuses: a field of another type, or a lone surrogate, which json accepts."""
    try:
        return msgspec.convert(value, Chunk)
    except _REFUSED:
        pass
    listed = value.get("choices")
    choices = [_part(item, _Choice) for item in listed] if isinstance(listed, list) else []
    usage = _part(value["usage"], _Usage) if "usage" in value else UNSET
    return OddChunk(choices=[choice for choice in choices if choice], usage=usage, error=value.get("error"))


def _part(value: Any, type_: type[T]) -> T | None:
    try:
        return msgspec.convert(value, type_)
    except _REFUSED:
        return None


def usage_of(chunk: Chunk) -> Usage | None:
    """Our Usage from the wire's."""
    usage = chunk.counted
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0, (details.cached_tokens if details else None) or 0)


def _words_of(value: Any) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _arguments_of(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else None
    return _words_of(function.get("arguments")) if isinstance(function, dict) else ""


def text_of(choice: _Choice) -> str:
    """Everything one choice says, in one string: answer, refusal, reasoning, arguments of calls."""
    if choice.text:
        return choice.text
    said = choice.delta or choice.message
    if said is None:
        return ""
    if said.tool_calls is said.function_call is said.refusal is said.reasoning_content is said.reasoning is None:
        # Nearly every event of nearly every stream.
        return _words_of(said.content)
    found = [_words_of(part) for part in (said.content, said.refusal, said.reasoning_content or said.reasoning)]
    calls = said.tool_calls if isinstance(said.tool_calls, list) else []
    found += [_arguments_of(call) for call in (*calls, said.function_call)]
    return "".join(found)


def texts_of(chunk: Chunk) -> tuple[tuple[int, str], ...]:
    """(choice, text) for every choice that says something."""
    return tuple((choice.index, text) for choice in chunk.choices or () if (text := text_of(choice)))


_LAST_NULL_USAGE = b',"usage":null}'
_LAST_EVENTS = 3
"""Finish reason, usage and end mark come at the end of a stream."""
_NULL_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')
_USAGE_KEY = re.compile(rb'"usage"\s*:')


def without_null_usage(data: bytes) -> bytes:
    """A chunk whose top-level usage is null, without it; unchanged when a key of that name also stands elsewhere.

    Inside a JSON string every quote is escaped, so what the pattern finds is always a key.
    """
    if data.endswith(_LAST_NULL_USAGE) and data.count(b'"usage"') == 1:
        return data[: -len(_LAST_NULL_USAGE)] + b"}"
    match = _NULL_USAGE.search(data)
    if match is None or len(_USAGE_KEY.findall(data)) != 1:
        return data
    return data[: match.start()] + data[match.end() :]


class Seen(Struct, frozen=True):
    """What one whole event was, and what of it goes to the client."""

    out: bytes
    """b"" when the event is ours alone (a usage chunk that the client did not ask for)."""
    texts: tuple[tuple[int, str], ...] = ()
    """(choice, text) of each choice that says something."""
    error: Any = None
    """An in-band error object."""
    done: bool = False
    """The end mark: whatever follows is not worth waiting for."""


class Burst(NamedTuple):
    """What several whole events were together, and what of them goes to the client."""

    out: bytes
    texts: list[tuple[int, str]]
    """(choice, text) of whatever says something, in order."""
    rest: list[bytes]
    """Events behind them, to be looked at one by one."""


def _unlike(datas: list[bytes]) -> list[bytes]:
    """The last ones that are not like those before: usage, end mark."""
    for place in range(max(0, len(datas) - _LAST_EVENTS), len(datas)):
        data = datas[place]
        if not data.startswith(b"{") or (b'"usage"' in data and not data.endswith(_LAST_NULL_USAGE)):
            return datas[place:]
    return []


class Pool:
    """Bytes that all answers under way may hold for the cache, together."""

    def __init__(self, max_bytes: int) -> None:
        self.left = max_bytes


class Room:
    """What one answer under way may hold: `max_bytes` at most, and no more than the pool has left."""

    __slots__ = ("_held", "_pool", "left")

    def __init__(self, max_bytes: int, pool: Pool) -> None:
        self.left = max_bytes
        """What it may hold beside."""
        self._pool = pool
        self._held = 0

    def take(self, n_bytes: int) -> bool:
        """Whether so many more fit; then they count as held until `give_back`."""
        if n_bytes > self.left or n_bytes > self._pool.left:
            return False
        self.left -= n_bytes
        self._pool.left -= n_bytes
        self._held += n_bytes
        return True

    def give_back(self) -> None:
        """Nothing is held any more. Safe to repeat."""
        self._pool.left += self._held
        self._held = 0


class Tap:
    """Reads a copy of every event of one stream: text for the log, usage, finish reasons, and the events for the cache.

    With `strip_usage` (rewrite mode) the usage chunk and the `"usage":null` of other chunks stay here. `choices` is how many
    choices the answer is to have.
    """

    def __init__(self, *, strip_usage: bool, room: Room | None, choices: int = 1) -> None:
        self._strip = strip_usage
        self._room = room
        self._wanted = choices
        self.usage: Usage | None = None
        self.finish_reasons: dict[int, str] = {}
        self.choices: set[int] = set()
        self.done = False
        self.error: Any = None
        """The last in-band error object."""
        self.kept: list[bytes] | None = None if room is None else []
        """The data of each chunk but [DONE], the usage chunk last; None once it is too large or holds what we cannot read."""
        self.id = ""
        """Chat answers are not asked for by id."""

    @property
    def finished(self) -> bool:
        """Whether as many choices as were asked for were seen, and each has its finish reason."""
        return len(self.choices) >= self._wanted and self.choices == set(self.finish_reasons)

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end: every choice has its finish reason, or the end mark came."""
        return self.done or self.finished

    def event(self, raw: bytes) -> Seen:
        """Look at one whole event."""
        data = sse.data_of(raw)
        if data is None:
            return Seen(raw)
        if data.startswith(b"[DONE]"):
            self.done = True
            return Seen(raw, done=True)
        chunk = read_chunk(data)
        if chunk is None or isinstance(chunk, OddChunk):
            self._let_go()
        if chunk is None:
            return Seen(raw)
        if chunk.error:
            self.error = chunk.error
            self._let_go()
            return Seen(raw, error=chunk.error)
        if type(chunk.usage) is _Usage:
            self.usage = usage_of(chunk)
            self._keep(data)
            return Seen(b"" if self._strip and not chunk.choices else raw, self._choices(chunk))
        if chunk.usage is None and (self._strip or self.kept is not None):
            edited = without_null_usage(data)
            self._keep(edited)
            # Comments, ids and line ends of the event stay as they came.
            return Seen(raw.replace(data, edited, 1) if self._strip else raw, self._choices(chunk))
        self._keep(data)
        return Seen(raw, self._choices(chunk))

    def burst(self, events: bytes) -> Burst | None:
        """As `event`, of whole events that came together, read in one go; None, and nothing is noted, unless all are plain.

        Plain is `data: {...}` and a blank line, deltas of content, without an error and with no usage but a null at the end. The
        last few may be of another kind: they are left to the caller.
        """
        if not events.startswith(b"data: {") or not events.endswith(b"\n\n"):
            return None
        datas = events[6:-2].split(b"\n\ndata: ")
        rest = _unlike(datas)
        if rest:
            del datas[-len(rest) :]
            events = events[: -sum([len(data) + 8 for data in rest])]
        # A line end inside an event would make it another one; a JSON string holds none.
        if not datas or b'"error"' in events or events.count(b"\n") != 2 * len(datas):
            return None
        bare = datas
        if n_usages := events.count(b'"usage"'):
            bare = [data[: -len(_LAST_NULL_USAGE)] + b"}" for data in datas if data.endswith(_LAST_NULL_USAGE)]
            if not len(bare) == n_usages == len(datas):
                return None
        try:
            chunks = _plain_decoder.decode(b"[%b]" % b",".join(datas))
        except msgspec.MsgspecError:
            return None
        if len(chunks) != len(datas):
            return None
        choices = [choice for chunk in chunks for choice in chunk.choices]
        self.choices.update([choice.index for choice in choices])
        self.finish_reasons.update([(one.index, one.finish_reason) for one in choices if one.finish_reason is not None])
        texts = [(choice.index, text) for choice in choices if (text := choice.delta.content)]
        self._keep(*bare)
        if self._strip and n_usages:
            events = b"data: %b\n\n" % b"\n\ndata: ".join(bare)
        return Burst(events, texts, [sse.event_of(data) for data in rest])

    def end_with(self, error: ApiError | None) -> bytes:
        """What ends a stream that broke: the error, unless the upstream has said it, and the end mark, unless that has come."""
        told = sse.event_of(error.body()) if error is not None else b""
        return told if self.done else told + sse.DONE

    def _choices(self, chunk: Chunk) -> tuple[tuple[int, str], ...]:
        texts: tuple[tuple[int, str], ...] = ()
        for choice in chunk.choices or ():
            index = choice.index
            self.choices.add(index)
            if choice.finish_reason is not None:
                self.finish_reasons[index] = choice.finish_reason
            if text := text_of(choice):
                texts += ((index, text),)
        return texts

    def _keep(self, *datas: bytes) -> None:
        if self.kept is None or self._room is None:
            return
        if self._room.take(sum(map(len, datas))):
            self.kept += datas
        else:
            self._let_go()

    def _let_go(self) -> None:
        """The answer is of no use to the cache."""
        self.kept = None
        if self._room is not None:
            self._room.give_back()


def is_usage(data: bytes) -> bool:
    """Whether a chunk is there for its usage only."""
    if b'"usage"' not in data:
        return False
    chunk = read_chunk(data)
    return chunk is not None and chunk.counted is not None and not chunk.choices


def collect(datas: Sequence[bytes]) -> bytes:
    """One whole answer from the data of a stream's chunks: the shape a client gets that did not ask to stream.

    Raises ValueError for data that is not a JSON object with OpenAI's shape of choices; a Tap keeps no such data.
    """
    head: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    usage: Any = None
    for data in datas:
        chunk = json.loads(data)
        usage = chunk.get("usage") or usage
        head |= {name: value for name, value in chunk.items() if name not in {"choices", "usage", "obfuscation"}}
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            _merge_choice(choices.setdefault(index, {"index": index}), choice)
    is_chat = head.get("object") != "text_completion"
    if is_chat:
        head["object"] = "chat.completion"
    whole = {**head, "choices": [_whole_choice(choices[index], is_chat=is_chat) for index in sorted(choices)]}
    if usage is not None:
        whole["usage"] = usage
    return _dump(whole)


def _whole_choice(choice: dict[str, Any], *, is_chat: bool) -> dict[str, Any]:
    choice.setdefault("logprobs", None)
    choice.setdefault("finish_reason", None)
    if is_chat:
        message = choice.setdefault("message", {})
        choice["message"] = {"role": "assistant", "content": None, "refusal": None} | message
        if isinstance(message.get("tool_calls"), list):
            ordered = sorted(message["tool_calls"], key=lambda call: call["index"])
            choice["message"]["tool_calls"] = [{name: call[name] for name in call if name != "index"} for call in ordered]
    return choice


def _merge_choice(into: dict[str, Any], choice: dict[str, Any]) -> None:
    for name, value in choice.items():
        if name == "delta" and isinstance(value, dict):
            _merge(into.setdefault("message", {}), value)
        elif name == "text":
            into["text"] = into.get("text", "") + (value or "")
        elif name == "logprobs" and isinstance(value, dict):
            if into.get("logprobs") is None:
                into["logprobs"] = {}
            _merge(into["logprobs"], value)
        elif value is not None or name not in into:
            into[name] = value


_NAMES = frozenset({"role", "id", "type", "name"})
"""Strings that come whole: a later one, in general empty or the same, adds nothing."""


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add one delta to what came before: strings and lists grow, tool calls are joined by their index."""
    for name, value in delta.items():
        known = into.get(name)
        if name == "tool_calls" and isinstance(value, list):
            _merge_tool_calls(into.setdefault("tool_calls", []), value)
        elif value is None or (known and name in _NAMES):
            into.setdefault(name, value)
        elif isinstance(value, str) and isinstance(known, str):  # noqa: SIM114 - joined, mypy loses which is which
            into[name] = known + value
        elif isinstance(value, list) and isinstance(known, list):
            into[name] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value)
        else:
            into[name] = dict(value) if isinstance(value, dict) else value


def _merge_tool_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    """A fragment without an index begins a new call when it has an id, and belongs to the last one when it has none."""
    for delta in (one for one in deltas if isinstance(one, dict)):
        last = max((call["index"] for call in calls), default=-1)
        index = delta.get("index")
        if not isinstance(index, int):
            index = last + 1 if delta.get("id") or last < 0 else last
        known = next((call for call in calls if call["index"] == index), None)
        if known is None:
            known = {"index": index}
            calls.append(known)
        _merge(known, {name: value for name, value in delta.items() if name != "index"})


_WORDS = re.compile(r"\S*\s*|\s+", re.DOTALL)


def chunks_of(body: bytes) -> Iterator[bytes]:
    """The data of the chunks that a whole answer makes when its client asked to stream, its usage last; without [DONE]."""
    whole = json.loads(body)
    is_chat = whole.get("object") != "text_completion"
    head = {name: value for name, value in whole.items() if name not in {"choices", "usage"}}
    head["object"] = "chat.completion.chunk" if is_chat else "text_completion"
    opening = _dump(head)[:-1] + b',"choices":['
    for choice in whole.get("choices") or ():
        own = {"index": choice.get("index", 0)}
        for part in _chat_parts(choice) if is_chat else _text_parts(choice):
            yield opening + _dump(own | part) + b"]}"
    if whole.get("usage") is not None:
        yield opening + b'],"usage":' + _dump(whole["usage"]) + b"}"


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _part_of(said: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {**said, "logprobs": logprobs, "finish_reason": None}


def _last_part(said: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """The part that ends a choice; what else the choice carries (a content filter's result) travels with it."""
    known = {"index", "message", "text", "logprobs", "finish_reason"}
    rest = {name: value for name, value in choice.items() if name not in known}
    return {**said, "logprobs": None, "finish_reason": choice.get("finish_reason"), **rest}


def _chat_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    message = dict(choice.get("message") or {})
    content, role = message.pop("content", None), message.pop("role", "assistant")
    calls = message.pop("tool_calls", None)
    logprobs = choice.get("logprobs")
    plain = isinstance(content, str)
    yield _part_of({"delta": {"role": role, "content": "" if plain else None}})
    rest = {name: value for name, value in message.items() if value is not None}
    if rest:
        yield _part_of({"delta": rest})
    if logprobs or (content and not plain):
        # Token texts and the words below need not align: with logprobs the content travels in one piece.
        yield _part_of({"delta": {"content": content} if content else {}}, logprobs)
    elif content:
        for word in _words(content):
            yield _part_of({"delta": {"content": word}})
    listed = calls if isinstance(calls, list) else []
    for index, call in enumerate(call for call in listed if isinstance(call, dict)):
        yield _part_of({"delta": {"tool_calls": [{**call, "index": index}]}})
    yield _last_part({"delta": {}}, choice)


def _text_parts(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if choice.get("logprobs"):
        yield _part_of({"text": choice.get("text", "")}, choice["logprobs"])
    else:
        for word in _words(choice.get("text") or ""):
            yield _part_of({"text": word})
    yield _last_part({"text": ""}, choice)


def _words(text: str) -> list[str]:
    return [word for word in _WORDS.findall(text) if word]


def with_null_usage(data: bytes) -> bytes:
    """A chunk as it goes to a client that asked for usage: `"usage":null` added when the key is not there."""
    return data if _USAGE_KEY.search(data) else data[: data.rindex(b"}")] + b',"usage":null}'
