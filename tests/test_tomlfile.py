"""TOML files read strictly: every fault has its place, cause and mend."""

import re
import tomllib
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from gateway.errors import ConfigError
from gateway.tomlfile import TomlFile


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    word: Literal["red", "green"] | None = None
    size: Annotated[int, Meta(ge=1)] = 1


class Apple(Struct, forbid_unknown_fields=True, tag_field="kind", tag="apple"):
    seeds: int = 0


class Pear(Struct, forbid_unknown_fields=True, tag_field="kind", tag="pear"):
    ripe: bool = False


class Outer(Struct, forbid_unknown_fields=True):
    name: str
    inner: Inner = Inner()
    rows: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    by_word: dict[Literal["red", "green"], int] = {}


def faults(text, type_=Outer, tags=()):
    file = TomlFile("f.toml", text)
    with pytest.raises(ConfigError) as caught:
        file.convert(file.data, type_, (), tags=tags)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", ['f.toml:1:1: unknown key "x"', 'f.toml:1:1: the key "name" is missing']),
        ("name = 1", ["f.toml:1:1: expected text in quotes, got a whole number"]),
        ('name = ""\n[inner]\nsiez = 1', ['f.toml:3:1: unknown key "siez"; did you mean "size"?']),
        ('name = ""\ninner.size = 0', ["f.toml:2:7: expected a whole number >= 1"]),
        ('name = ""\ninner = { word = "gren" }', ['f.toml:2:11: unknown value "gren"; did you mean "green"?']),
        ('name = ""\n\n[[rows]]\n[[rows]]\nsize = 0.5', ["f.toml:5:1: expected a whole number, got a number"]),
        ('name = ""\nwords = ["a",\n  2]', ["f.toml:3:3: expected text in quotes, got a whole number"]),
        ('name = ""\n[by_word]\nbleu = 1', ['f.toml:3:1: unknown value "bleu"; known: green, red']),
        ('name = ""\nrows = 1', ["f.toml:2:1: expected a list, got a whole number"]),
        ("name = 1\n[inner]\nsize = 0\nx = 1", ["f.toml:1:1: expected", "f.toml:3:1: expected", "f.toml:4:1: unknown key"]),
    ],
)
def test_every_fault_is_told_at_its_own_place(text, said):
    """All faults are told in one go, each at its key, in words of a TOML file."""
    found = faults(text)
    assert [one[: len(start)] for one, start in zip(found, said, strict=True)] == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = 1", 'f.toml:1:1: the key "kind" is missing; known: apple, pear'),
        ('kind = "aple"', 'f.toml:1:1: unknown kind "aple"; did you mean "apple"?'),
        ('kind = "pear"\nseeds = 1', 'f.toml:2:1: unknown key "seeds"; known: ripe'),
    ],
)
def test_a_table_with_a_kind_is_judged_by_that_kind(text, said):
    """What is unknown is said of the kind that the table names."""
    assert faults(text, Apple | Pear, ("apple", "pear")) == [said]


@pytest.mark.parametrize(
    ("text", "place"),
    [("a = ", "1:5"), ("a = 1\na = 2", "2:6"), ('a = """\nx', "2:2")],
)
def test_what_is_not_toml_is_told_with_line_and_column(text, place):
    """A syntax error stands at the place where reading stopped, also at the end of the file."""
    with pytest.raises(ConfigError, match=rf"^f\.toml:{place}: not valid TOML: "):
        TomlFile("f.toml", text)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read: No such file"), (b"a = \xff", "is not UTF-8 text")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, said):
    """A missing file and one of other bytes are named with the cause."""
    path = tmp_path / "f.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {said}")):
        TomlFile.read(path)


AWKWARD = '''\
# [not.a] table = 1
"quoted key" = 'x # no comment'
text = """
[fake]
fake = 1 """
raw = \'\'\'
"x" = {\'\'\'
when = 1979-05-27 07:32:00
dotted . "deep key" . end = [ 1, [ 2, # two
  3 ], { in = [ "]" , "}" ] } ]
[table.sub]   # trailing
a = { b = { c = "}" }, d = -1.5e3 }
[[list]]
[[list.inner]]
k = true
[list.inner.under]
z = 0
[[list]]
[[list.inner]]
[[list.inner]]
k = false
'''


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("quoted key",), "2:1"),
        (("text",), "3:1"),
        (("raw",), "6:1"),
        (("when",), "8:1"),
        (("dotted", "deep key", "end"), "9:23"),
        (("dotted", "deep key", "end", 1, 1), "10:3"),
        (("dotted", "deep key", "end", 2, "in"), "10:10"),
        (("table", "sub"), "11:8"),
        (("table", "sub", "a", "b", "c"), "12:13"),
        (("table", "sub", "a", "d"), "12:24"),
        (("list", 0, "inner", 0, "k"), "15:1"),
        (("list", 0, "inner", 0, "under", "z"), "17:1"),
        (("list", 1, "inner", 1, "k"), "21:1"),
        (("list", 1, "inner", 1, "missing"), "20:1"),
        (("nowhere",), "1:1"),
    ],
)
def test_every_key_of_an_awkward_file_is_found_where_it_stands(path, place):
    """Strings, comments, dotted keys and nested tables do not confuse the places."""
    assert TomlFile("f.toml", AWKWARD).place(path) == f"f.toml:{place}"


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=6)
VALUES = st.recursive(
    st.integers(-(2**60), 2**60) | st.booleans() | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def written(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{quoted(key)} = {written(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + " , ".join(written(one) for one in value) + " ]"
    return quoted(value) if isinstance(value, str) else str(value).lower()


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def paths(value, path=()):
    if path:
        yield path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in entries:
        yield from paths(one, (*path, key))


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_the_place_of_any_key_is_where_that_key_stands(data):
    """Whatever the file holds, each key's place points at that key's own text."""
    text = "".join(f"{quoted(key)} = {written(value)}\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    file = TomlFile("f.toml", text)
    for path, value in paths(data):
        line, column = (int(part) for part in file.place(path).rsplit(":", 2)[1:])
        here = text.split("\n")[line - 1][column - 1 :]
        assert here.startswith(quoted(path[-1]) if isinstance(path[-1], str) else written(value))
