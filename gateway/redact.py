"""Mask what the detector locates in a request's body, and put it back into the texts of the answer. Pure but for one key file.

A placeholder is `[KIND_NONCE_NUMBER]`, such as `[EMAIL_XKQM_1]`. The nonce is a keyed hash of how the conversation begins, and
values are numbered as they appear: who sends the conversation again, one turn longer, sends the same bytes again, and nothing
has to be kept in between. No placeholder is made of its value, so none can be looked up in a table. Text that looks like a
placeholder of this conversation is masked like a value, and so comes back as it was.

What stands for what is in the Vault of the request, in memory, and nowhere else. Knows nothing of upstreams and policies.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from gateway import literals, privacy
from gateway.files import own_key
from gateway.recognisers import SEPARATOR

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
"""Of nonces: no vowels, so that they make no words, and no digits, so that no number is found in a placeholder."""
_NONCE_CHARS = 4
PLACEHOLDER = re.compile(r"\[[A-Z0-9_]+_([A-Z0-9]+)_[0-9]+\]")
"""Any gateway's, with its nonce. One pattern for all: to compile one for each nonce would cost 0.1 ms."""
_NO_NAME = re.compile(r"[^A-Z0-9]")
_LOOKALIKE = "text"
"""The kind of what is masked only because it looks like a placeholder."""
_HEAD = frozenset({"system", "instructions", "tools", "functions", "response_format", "text"})
_MAIN = frozenset({"messages", "input", "prompt"})
_OPENING_CHARS = 256
_MOST_STEPS = 2_000_000_000
"""Values times characters that are gone through to find a value again: about a second, on a thread."""
_MIN_REPEATED = 6
"""Shorter values may be a part of any word."""
_MAX_NESTED = 4
"""JSON inside a JSON string is entered so many times; what is deeper is masked as text."""
ARGUMENTS = frozenset({"arguments", "partial_json"})
"""Keys of strings that are JSON themselves."""


class Unmaskable(Exception):
    """A body cannot be masked so that nothing is left in it; says why, without a word of its text."""


def _nobody(count: int) -> None:
    """Nobody wants to know."""


class Vault:
    """What stands for what in one request. Lives and ends with it, and is never shown."""

    def __init__(self, nonce: str, *, json_answer: bool) -> None:
        """`json_answer`: the client has asked for an answer that is JSON."""
        self.nonce = nonce
        self.json_answer = json_answer
        self.counts: Counter[str] = Counter()
        """Different values that were masked, by kind."""
        self.altered = 0
        """Placeholders in the answer that the model did not give back as they were, and that are therefore left as they came."""
        self.on_altered: Callable[[int], None] = _nobody
        self._placeholders: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        """By kind, what stands before the number."""

    def __bool__(self) -> bool:
        """Whether anything was masked."""
        return bool(self._values)

    def __contains__(self, placeholder: str) -> bool:
        """Whether it stands for something."""
        return placeholder in self._values

    def tell(self) -> None:
        """Tell whoever wants to know how many came back altered, once any did."""
        if self.altered:
            self.on_altered(self.altered)

    def hide(self, kind: str, value: str) -> str:
        """The placeholder for a value; the same for the same value."""
        known = self._placeholders.get(value)
        if known is None:
            stem = self._stems.get(kind)
            if stem is None:
                stem = self._stems[kind] = f"[{_NO_NAME.sub('_', kind.upper())}_{self.nonce}_"
            known = self._placeholders[value] = f"{stem}{len(self._values) + 1}]"
            self._values[known] = value
            if kind != _LOOKALIKE:
                self.counts[kind] += 1
        return known

    def value(self, placeholder: str, *, depth: int) -> str:
        """What a placeholder stands for, as it is written inside so many JSON strings."""
        value = self._values[placeholder]
        for _ in range(depth):
            value = json.dumps(value, ensure_ascii=False)[1:-1]
        return value

    def begins(self, text: str) -> bool:
        """Whether a placeholder may begin with this text and be longer."""
        for stem in self._stems.values():
            if stem.startswith(text):
                return True
            if text.startswith(stem):
                number = text[len(stem) :]
                return number.isdecimal() and len(number) <= len(str(len(self._values)))
        return False

    def undone(self, text: str) -> str:
        """The text that was masked so, where nobody has had it in between."""
        return PLACEHOLDER.sub(lambda match: self._values.get(match[0], match[0]), text) if self.nonce in text else text

    def may_be_in(self, document: bytes) -> bool:
        """Whether a placeholder may stand in a string of a JSON document, escaped or not: seldom yes where none does."""
        text = document.decode("utf-8", "surrogatepass")
        return self.nonce in text.upper() or "\\u00" in text

    def restore(self, text: str, *, quoted: bool = False) -> str:
        """A whole text with the originals in it."""
        if self.nonce not in text.upper():
            return text
        channel = Channel(self, quoted=quoted)
        return channel.feed(text) + channel.flush()


class Nesting:
    r"""In how many JSON strings, each inside the other, the next sign of a JSON text stands. Fed with the text in pieces.

    A quote opens or closes the string whose escapes stand before it: none for the outermost, `\` for the next, `\\\` for the
    third. A string is JSON itself when it begins like a list or an object of strings; in any other, quotes are mere signs.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        """What the open strings are known to be: "" nothing yet, "{" or "[" so far, "json", "text"."""
        self._slashes = 0

    @property
    def depth(self) -> int:
        """One at least: nothing is put back into JSON but inside a string."""
        return min(max(len(self._open), 1), _MOST_ESCAPED)

    def feed(self, text: str) -> None:
        """What comes next."""
        for match in _SIGNS.finditer(text):
            piece = match[0]
            if piece[0] == "\\":
                self._slashes += len(piece)
                continue
            if piece == '"':
                self._quote(self._slashes)
            elif self._open and self._open[-1] not in {"json", "text"}:
                if not self._slashes:
                    self._begin(piece)
                elif self._slashes == 1 << len(self._open) - 1 and piece[0] in "nrt":
                    self._begin(piece[1:])
                else:
                    self._open[-1] = "text"
            self._slashes = 0

    def _quote(self, slashes: int) -> None:
        for level, known in enumerate(self._open):
            if slashes % 2 == 0:
                del self._open[level:]
                return
            slashes //= 2
            if known != "json":
                self._open[level] = "json" if known in {"{", "["} and slashes == 0 else "text"
            if self._open[level] == "text":
                return
        if slashes == 0:
            self._open.append("")

    def _begin(self, piece: str) -> None:
        for sign in piece:
            if sign.isspace():
                continue
            known = self._open[-1]
            self._open[-1] = sign if known == "" and sign in "{[" else "json" if known == "[" and sign in "{[" else "text"
            if self._open[-1] in {"json", "text"}:
                return


_SIGNS = re.compile(r'\\+|"|[^\\"]+')
_MOST_ESCAPED = 8
"""Each level doubles what stands before a quote, and only who means harm has so many."""


class Channel:
    """One text of an answer that comes in pieces. Holds back only an end that may still become a placeholder."""

    def __init__(self, vault: Vault, *, quoted: bool) -> None:
        """`quoted`: the text is JSON, so that what is put back must be escaped."""
        self._vault = vault
        self._nesting = Nesting() if quoted else None
        self._carry = ""
        """The end of what was let go: a nonce may be cut in two."""
        self.held = ""

    def feed(self, text: str) -> str:
        """What of the text so far can go on."""
        text = self.held + text
        start = text.rfind("[")
        if start >= 0 and self._vault.begins(text[start:]):
            text, self.held = text[:start], text[start:]
        else:
            self.held = ""
        return self._restored(text) if text else ""

    def flush(self) -> str:
        """Nothing more comes: what was held, as it is."""
        text, self.held = self.held, ""
        return self._restored(text) if text else ""

    def _restored(self, text: str) -> str:
        vault, done = self._vault, 0
        out: list[str] = []
        for match in PLACEHOLDER.finditer(text):
            if match[0] in vault:
                self._look(text[done : match.start()])
                value = vault.value(match[0], depth=self._nesting.depth if self._nesting else 0)
                if self._nesting:
                    self._nesting.feed(match[0])
                self._carry = ""
                out += (text[done : match.start()], value)
                done = match.end()
        self._look(text[done:])
        return "".join((*out, text[done:])) if done else text

    def _look(self, text: str) -> None:
        """Count what is left of placeholders: whatever became of one, its nonce is in general still there."""
        if self._nesting:
            self._nesting.feed(text)
        seen = (self._carry + text).upper()
        self._vault.altered += seen.count(self._vault.nonce)
        # One letter less than a nonce: what was counted is not counted again.
        self._carry = seen[1 - _NONCE_CHARS :]


class Masked(NamedTuple):
    """A body that may leave, and what stands for what in it."""

    body: bytes
    vault: Vault


class Redactor:
    """Masks for one gateway. Another, with a key of its own, gives a conversation another nonce: that costs a cached prompt."""

    def __init__(self, path: Path) -> None:
        """`path` is the key's file; it is read, or made, when it is first needed."""
        self._path = path
        self._key = b""

    def mask(self, body: bytes, *, tenant: str, max_chars: int, detector: privacy.Finder = privacy.DETECTOR) -> Masked:
        """The body without anything that the detector finds; the same body where there is nothing.

        Raises Unmaskable where something would be left, the way back would not be exact, or the key cannot be had, and
        whatever the detector raises. Takes time with the body's length.
        """
        data = json.loads(body)
        _check_shape(data)
        vault = Vault(self._nonce(data, tenant), json_answer=_wants_json(data))
        nodes: list[_Node] = []
        strings: list[tuple[int, str]] = []
        _gather(body, nodes, strings)
        found = _located(strings, vault, detector, max_chars)
        # Numbered before anything is masked: what stays over all turns first, then the conversation, then the rest.
        for index in sorted((index for index, spans in enumerate(found) if spans), key=lambda index: strings[index][0]):
            for kind, start, end in found[index]:
                vault.hide(kind, strings[index][1][start:end])
        if not vault:
            _check_rest(data, max_chars, detector.patterns)
            return Masked(body, vault)
        texts = [_masked(text, spans, vault) if spans else text for (_, text), spans in zip(strings, found, strict=True)]
        masked = _replaced(body, nodes, texts)
        after = json.loads(masked)
        _check_arguments(after)
        # Read again with placeholders in it, a model may see other names than it saw.
        _check_rest(after, max_chars, detector.patterns)
        if _meaning(after, vault) != _meaning(data):
            raise Unmaskable("the way back would not be exact")
        return Masked(masked, vault)

    def _nonce(self, data: dict[str, Any], tenant: str) -> str:
        if not self._key:
            try:
                self._key = own_key(self._path)
            except (OSError, ValueError) as error:
                why = f"its key ({self._path.name}) cannot be used ({type(error).__name__}); its operator must mend or remove it"
                raise Unmaskable(why) from None
        said = json.dumps([tenant, _opening(data)]).encode()
        number = int.from_bytes(blake2b(said, key=self._key, digest_size=8, person=b"nonce").digest())
        letters = []
        for _ in range(_NONCE_CHARS):
            number, place = divmod(number, len(_LETTERS))
            letters.append(_LETTERS[place])
        return "".join(letters)


def _check_shape(data: dict[str, Any]) -> None:
    """Raise Unmaskable for what would say something about the text that no mask can mend."""
    include = data.get("include")
    listed = include if isinstance(include, list) else []
    logprobs = data.get("logprobs")
    if (logprobs is not None and logprobs is not False) or data.get("top_logprobs") or "message.output_text.logprobs" in listed:
        raise Unmaskable("log probabilities would be those of the masked text; leave out logprobs")
    prompt = data.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(one, str) for one in prompt):
        raise Unmaskable("a prompt of token ids cannot be looked into; send text")


def _wants_json(data: dict[str, Any]) -> bool:
    inner = [value.get("format") for name in ("text", "output_config") if isinstance(value := data.get(name), dict)]
    forms = (data.get("response_format"), data.get("output_format"), *inner)
    return any(isinstance(form, dict) and form.get("type", "text") != "text" for form in forms)


def _opening(data: dict[str, Any]) -> str:
    """The words that a conversation begins with, in whatever API it is held: they are the same in its every turn."""
    for name in ("messages", "input", "prompt"):
        given = data.get(name)
        if isinstance(given, str):
            return given[:_OPENING_CHARS]
        for item in given if isinstance(given, list) else ():
            if isinstance(item, str):
                return item[:_OPENING_CHARS]
            if isinstance(item, dict) and item.get("role") == "user":
                return _words(item.get("content"))[:_OPENING_CHARS]
    return ""


def _words(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


class _Node(NamedTuple):
    """One string of a document: text, or a document itself."""

    literal: literals.Literal
    place: int
    """Among all texts of the body; -1: it stays, or is a document."""
    inner: list[_Node] | None = None


def _gather(document: bytes, nodes: list[_Node], strings: list[tuple[int, str]], *, depth: int = 0, rank: int = 0) -> None:
    """The strings of a document as nodes, and all texts in their order, each with its rank; those of JSON inside a string too."""
    for literal in literals.strings(document):
        own = rank if depth else _rank(literal.path)
        if not literal.is_key and depth < _MAX_NESTED and _is_document(literal.text):
            inner: list[_Node] = []
            _gather(literal.text.encode("utf-8", "surrogatepass"), inner, strings, depth=depth + 1, rank=own)
            nodes.append(_Node(literal, -1, inner))
        elif depth == 0 and literal.path == ("model",) and not literal.is_key:
            # The model's name is ours, and not the client's text.
            nodes.append(_Node(literal, -1))
        else:
            nodes.append(_Node(literal, len(strings)))
            strings.append((own, literal.text))


def _replaced(document: bytes, nodes: Iterable[_Node], texts: Sequence[str]) -> bytes:
    """The document with other texts."""
    changes = []
    for literal, place, inner in nodes:
        if inner is not None:
            made = _replaced(literal.text.encode("utf-8", "surrogatepass"), inner, texts)
            changes.append((literal, made.decode("utf-8", "surrogatepass")))
        elif place >= 0:
            changes.append((literal, texts[place]))
    return literals.replaced(document, changes)


def _located(
    strings: Sequence[tuple[int, str]], vault: Vault, detector: privacy.Finder, max_chars: int
) -> list[Sequence[tuple[str, int, int]]]:
    """By text: kind, start and end of what is to be masked. Searched as one text, as `privacy.scan` does."""
    whole = SEPARATOR.join([text for _, text in strings])
    if len(whole) > max_chars:
        raise Unmaskable(f"it is longer than the {max_chars} characters that are scanned")
    findings = iter([*detector.locate(whole), None])
    finding = next(findings)
    located: list[list[tuple[str, int, int]]] = []
    begins: list[int] = []
    begin = 0
    for _, text in strings:
        end = begin + len(text)
        spans = []
        while finding is not None and finding.start < end:
            if finding.start < begin or finding.end > end:
                raise Unmaskable("something in it reaches over more than one string")
            spans.append((finding.kind, finding.start - begin, finding.end - begin))
            finding = next(findings)
        if vault.nonce in text:
            spans += [(_LOOKALIKE, *match.span()) for match in PLACEHOLDER.finditer(text) if match[1] == vault.nonce]
        located.append(spans)
        begins.append(begin)
        begin = end + len(SEPARATOR)
    _add_repeated(whole, strings, begins, located)
    return [_joined(spans) if spans else () for spans in located]


def _add_repeated(
    whole: str, strings: Sequence[tuple[int, str]], begins: Sequence[int], located: Sequence[list[tuple[str, int, int]]]
) -> None:
    """What was found once is masked wherever it stands, also where no word beside it says what it is."""
    pairs = zip(strings, located, strict=True)
    values = {text[start:end]: kind for (_, text), spans in pairs for kind, start, end in spans if end - start >= _MIN_REPEATED}
    if len(values) * len(whole) > _MOST_STEPS:
        raise Unmaskable(f"it holds too many different values ({len(values)}) for so long a text; send it in parts")
    for value, kind in values.items():
        place = whole.find(value)
        while place >= 0:
            index = bisect_right(begins, place) - 1
            located[index].append((kind, place - begins[index], place - begins[index] + len(value)))
            place = whole.find(value, place + len(value))


def _masked(text: str, spans: Iterable[tuple[str, int, int]], vault: Vault) -> str:
    out: list[str] = []
    done = 0
    for kind, start, end in spans:
        out += (text[done:start], vault.hide(kind, text[start:end]))
        done = end
    return "".join((*out, text[done:]))


def _joined(found: Sequence[tuple[str, int, int]]) -> tuple[tuple[str, int, int], ...]:
    """The same stretches without overlap, each of the kind that begins first."""
    joined: list[tuple[str, int, int]] = []
    for kind, start, end in sorted(found, key=lambda one: (one[1], -one[2])):
        if joined and start < joined[-1][2]:
            joined[-1] = (joined[-1][0], joined[-1][1], max(end, joined[-1][2]))
        elif end > start:
            joined.append((kind, start, end))
    return tuple(joined)


def _rank(path: literals.Path) -> int:
    top = path[0] if path else ""
    return 0 if top in _HEAD else 1 if top in _MAIN else 2


def _is_document(text: str) -> bool:
    """Whether a string is JSON whose text is all in strings: a long number can only be masked as text."""
    if '"' not in text or text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        return not any(_long_numbers(json.loads(text)))
    except (ValueError, RecursionError):
        return False


def _long_numbers(value: Any) -> Iterator[bool]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _long_numbers(one)
    elif isinstance(value, int | float) and abs(value) >= privacy.MIN_NUMBER:
        yield True


def _check_arguments(value: Any) -> None:
    """Raise Unmaskable where a call's arguments are no longer the JSON that they were."""
    if isinstance(value, list):
        for item in value:
            _check_arguments(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ARGUMENTS and isinstance(item, str) and "[" in item:
                try:
                    json.loads(item)
                except ValueError:
                    raise Unmaskable("a number in a tool's arguments is sensitive; send it as a string") from None
            else:
                _check_arguments(item)


def _check_rest(data: dict[str, Any], max_chars: int, detector: privacy.Finder) -> None:
    """Raise Unmaskable where a scan still finds something."""
    rest = privacy.scan({**data, "model": ""}, max_chars=max_chars, detector=detector)
    if rest.failed or rest.oversize:
        raise Unmaskable("it could not be scanned" if rest.failed else "it is longer than what is scanned")
    if privacy.UNSCANNABLE in rest.kinds:
        raise Unmaskable("files and images cannot be masked")
    if rest.kinds:
        raise Unmaskable(f"{', '.join(sorted(rest.kinds))} would be left, in a number or over more than one string")


def _meaning(value: Any, vault: Vault | None = None) -> Any:
    """A value with what is JSON inside a string read, for that may be escaped in more ways than one; restored with `vault`."""
    if isinstance(value, str):
        if _is_document(value):
            return ("json", _meaning(json.loads(value), vault))
        return value if vault is None else vault.undone(value)
    if isinstance(value, dict):
        return {name if vault is None else vault.undone(name): _meaning(one, vault) for name, one in value.items()}
    return [_meaning(one, vault) for one in value] if isinstance(value, list) else value
