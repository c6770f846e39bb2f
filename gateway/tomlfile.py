"""A TOML file with the place of every key, read strictly into Structs. Knows nothing of what the keys mean.

`tomllib` gives values without positions, so a second pass over the (already valid) text notes where each key stands.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from gateway.errors import ConfigError, Problem, did_you_mean

T = TypeVar("T")
KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_STRING = re.compile(r'''"""(?:[^\\]|\\.)*?"""+|\'\'\'.*?\'\'\'+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''', re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]*")
_AT = re.compile(r"^(?P<text>.*?)(?: - at (?P<key>`key` in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_BAD_TYPE = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<given>[^`]*)`$")
_QUOTED = re.compile(r"`([^`]*)`")
_TYPE_NAMES = MappingProxyType(
    {
        "str": "text in quotes",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "array": "a list",
        "object": "a table",
    }
)
_BOUND = re.compile(r"(>=|<=) (-?[0-9.]+)$")
_ORDER = MappingProxyType({">=": "more", "<=": "less"})
_EXAMPLES = MappingProxyType(
    {"str": '"..."', "int": "10", "float": "0.05", "bool": "true or false", "array": '["..."]', "object": "{ ... }"}
)
_YES, _NO = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})
_BAD_WORD = re.compile(r"Invalid enum value '(?P<value>.*)'$", re.DOTALL)


class _Scanner:
    """Walks valid TOML once and notes the offset of every key and array element."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.offsets: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}

    def run(self) -> dict[KeyPath, int]:
        prefix: KeyPath = ()
        while self._blank() < len(self.text):
            start = self.at
            if self.text.startswith("[[", start):
                self.at += 2
                prefix = self._open(self._dotted(()), array=True, start=start)
                self.at += 2
            elif self.text[start] == "[":
                self.at += 1
                prefix = self._open(self._dotted(()), array=False, start=start)
                self.at += 1
            else:
                self._pair(prefix)
        return self.offsets

    def _blank(self) -> int:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _open(self, names: KeyPath, *, array: bool, start: int) -> KeyPath:
        path: KeyPath = ()
        for depth, name in enumerate(names):
            path = (*path, name)
            last = depth == len(names) - 1
            if array and last:
                self._tables[path] = self._tables.get(path, -1) + 1
            if path in self._tables:
                path = (*path, self._tables[path])
        self.offsets.setdefault(path, start)
        return path

    def _dotted(self, prefix: KeyPath) -> KeyPath:
        path = prefix
        while match := _KEY.match(self.text, self.at):
            raw = match.group(1)
            path = (*path, tomllib.loads(f"k={raw}")["k"] if raw[0] in "\"'" else raw)
            self.offsets.setdefault(path, match.start(1))
            self.at = match.end()
            if self.text[self.at : self.at + 1] != ".":
                break
            self.at += 1
        return path

    def _pair(self, prefix: KeyPath) -> None:
        before = self.at
        path = self._dotted(prefix)
        self.at += 1
        self._value(path)
        if self.at <= before + 1:
            self.at = len(self.text)

    def _value(self, path: KeyPath) -> None:
        self._blank()
        here = self.text[self.at : self.at + 1]
        if match := _STRING.match(self.text, self.at):
            self.at = match.end()
        elif here == "[":
            self._sequence(path, "]")
        elif here == "{":
            self._sequence(path, "}")
        elif match := _BARE.match(self.text, self.at):
            self.at = match.end()

    def _sequence(self, path: KeyPath, end: str) -> None:
        self.at += 1
        index = 0
        while self._blank() < len(self.text) and self.text[self.at] != end:
            before = self.at
            if end == "]":
                self.offsets.setdefault((*path, index), self.at)
                self._value((*path, index))
            else:
                self._pair(path)
            index += 1
            self._blank()
            if self.text[self.at : self.at + 1] == ",":
                self.at += 1
            if self.at == before:
                return
        self.at += 1


class TomlFile:
    """One parsed file: `data`, and `place(path)` for messages."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        try:
            self.data: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError([self._syntax_problem(str(error))]) from None
        self._offsets = _Scanner(text).run()

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """Read a file. Raises ConfigError when it cannot be read or is not TOML."""
        try:
            return cls(str(path), path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}")]) from None
        except UnicodeDecodeError:
            raise ConfigError([Problem(str(path), "is not UTF-8 text")]) from None

    def place(self, path: KeyPath) -> str:
        """`file:line:column` of a key, or of the nearest table above it."""
        for length in range(len(path), 0, -1):
            offset = self._offsets.get(path[:length])
            if offset is not None:
                return f"{self.name}:{self._line_column(offset)}"
        return f"{self.name}:1:1"

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A Problem at that key."""
        return Problem(self.place(path), message)

    def convert(self, value: Any, type_: type[T], path: KeyPath, *, tags: tuple[str, ...] = ()) -> T:
        """`value` (found at `path`) as `type_`. Raises ConfigError with every fault in it, each with place and mend.

        `tags` are the known kinds when `type_` is a tagged union.
        """
        try:
            return msgspec.convert(value, type_)
        except msgspec.ValidationError:
            raise ConfigError(self._faults(value, type_, path, tags)) from None

    def _faults(self, value: Any, type_: Any, path: KeyPath, tags: tuple[str, ...] = ()) -> list[Problem]:
        """What is wrong with `value`. msgspec stops at the first fault, so each key and element is tried alone."""
        options = [option for option in (get_args(type_) or (type_,)) if _is_struct(option)]
        if options and isinstance(value, dict):
            return self._table_faults(value, options, path, tags)
        if get_origin(type_) is tuple and isinstance(value, list):
            item = get_args(type_)[0]
            return [fault for index, one in enumerate(value) for fault in self._faults(one, item, (*path, index))]
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            return [self._leaf_fault(str(error), type_, path)]
        return []

    def _table_faults(self, value: dict[str, Any], options: list[Any], path: KeyPath, tags: tuple[str, ...]) -> list[Problem]:
        tag_field = options[0].__struct_config__.tag_field
        if tag_field is not None and tag_field not in value:
            return [self.problem(path, f'the key "{tag_field}" is missing{did_you_mean("", tags)}')]
        if tag_field is not None:
            kind = value[tag_field]
            options = [option for option in options if option.__struct_config__.tag == kind]
            if not options:
                return [self.problem((*path, tag_field), f'unknown {tag_field} "{kind}"{did_you_mean(str(kind), tags)}')]
        fields = {field.encode_name: field for field in msgspec.structs.fields(options[0])}
        found = []
        for name, one in value.items():
            if name in fields:
                found += self._faults(one, fields[name].type, (*path, name))
            elif name != tag_field:
                found.append(self.problem((*path, name), f'unknown key "{name}"{did_you_mean(name, fields)}'))
        missing = [name for name, field in fields.items() if field.required and name not in value]
        return found + [self.problem(path, _missing_text(name, fields[name].type)) for name in missing]

    def _leaf_fault(self, text: str, type_: Any, path: KeyPath) -> Problem:
        match = _AT.match(text)
        said, where = (match["text"], match["path"] or "") if match else (text, "")
        full = path + tuple(name or int(index) for name, index in _STEP.findall(where))
        if wrong := _BAD_WORD.match(said):
            word = wrong["value"]
            full = (*full, word) if match and match["key"] else full
            return self.problem(full, f'unknown value "{word}"{did_you_mean(word, _words(type_))}')
        if wrong := _BAD_TYPE.match(said):
            mend = _mend(wrong["wanted"], full, self._value(full))
            return self.problem(full, f"expected {_plain(wrong['wanted'])}, got {_plain(wrong['given'])}{mend}")
        plain = _QUOTED.sub(lambda name: _plain(name[1]), said[0].lower() + said[1:])
        if bound := _BOUND.search(said):
            plain += f", got {_shown(self._value(full))}; write {bound[2].removesuffix('.0')} or {_ORDER[bound[1]]}"
        return self.problem(full, plain)

    def _value(self, path: KeyPath) -> Any:
        """What stands at a path; None where nothing does."""
        value: Any = self.data
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def _line_column(self, offset: int) -> str:
        line = self.text.count("\n", 0, offset) + 1
        return f"{line}:{offset - (self.text.rfind(chr(10), 0, offset) + 1) + 1}"

    def _syntax_problem(self, text: str) -> Problem:
        match = re.search(r"^(?P<what>.*?) \(at line (?P<line>\d+), column (?P<column>\d+)\)$", text, re.DOTALL)
        if match:
            place = f"{self.name}:{match['line']}:{match['column']}"
            return Problem(place, f"not valid TOML: {match['what']}{_syntax_mend(match['what'])}")
        return Problem(f"{self.name}:{self._line_column(len(self.text))}", f"not valid TOML: {text}{_syntax_mend(text)}")


_SYNTAX_MENDS = (
    ("Invalid value", 'text stands in quotes ("..."), numbers, true and false do not'),
    ("Unterminated string", "close the quotes"),
    ("Illegal character", "close the quotes, or write the character as an escape"),
    ("Invalid statement", "a line is a [table], a [[list of tables]], or key = value"),
    ("after a key in a key/value", 'write key = value, with one "="'),
    ("Unclosed array", 'end the list with "]"'),
    ("Unclosed inline table", 'end it with "}", on the same line'),
    ("inline table", "an inline table, { ... }, stands on one line"),
    ("Cannot overwrite", "the key stands twice; keep one"),
    ("Duplicate inline table key", "the key stands twice; keep one"),
    ("Cannot declare", "the table stands twice; put its keys together"),
    ("after a statement", "begin a new line for what follows"),
)


def _syntax_mend(text: str) -> str:
    return next((f"; {mend}" for begins, mend in _SYNTAX_MENDS if begins in text), "")


def _plain(types: str) -> str:
    """The names that msgspec gives types, in an operator's words; null is not offered, since TOML has none."""
    names = [name for name in types.split(" | ") if name != "null"]
    return " or ".join(_TYPE_NAMES.get(name, name) for name in names)


def _mend(wanted: str, path: KeyPath, value: Any) -> str:
    """What to write instead: the same value in the wanted type where that can be told, else an example of it."""
    type_ = next((name for name in wanted.split(" | ") if name in _EXAMPLES), "")
    return f"; write {_key(path)} = {_instead(type_, value)}" if type_ else ""


def _key(path: KeyPath) -> str:
    return next((step for step in reversed(path) if isinstance(step, str)), "it")


def _instead(type_: str, value: Any) -> str:
    word = str(value).strip().lower()
    scalar = isinstance(value, str | int | float)
    if type_ in {"int", "float"} and re.fullmatch(r"-?\d+" if type_ == "int" else r"-?\d+(\.\d+)?", word):
        return word
    if type_ == "bool" and scalar and word in _YES | _NO:
        return "true" if word in _YES else "false"
    if type_ == "array" and scalar:
        return f"[{_shown(value)}]"
    if type_ == "str" and scalar:
        return _shown(word if isinstance(value, bool) else str(value))
    return _EXAMPLES[type_]


def _shown(value: Any) -> str:
    """As TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _missing_text(name: str, type_: Any) -> str:
    words = sorted(_words(type_))
    example = _shown(words[0]) if words else '"..."' if type_ is str else ""
    return f'the key "{name}" is missing' + (f"; add {name} = {example}" if example else "")


def _is_struct(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _words(type_: Any) -> set[str]:
    """The words that a type names by Literal, at any depth."""
    if get_origin(type_) is Literal:
        return {word for word in get_args(type_) if isinstance(word, str)}
    return {word for part in get_args(type_) for word in _words(part)}
