"""Strings of a JSON document edited in place: all that is not edited keeps its bytes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway import literals

TEXTS = st.text(st.characters(codec=None), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def walked(value, path=()):
    """Every string of a value with its path, keys before what they name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key), key, True
            yield from walked(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from walked(inner, (*path, place))
    elif isinstance(value, str):
        yield path, value, False


def changed(value, edit):
    if isinstance(value, dict):
        return {edit(key): changed(inner, edit) for key, inner in value.items()}
    if isinstance(value, list):
        return [changed(inner, edit) for inner in value]
    return edit(value) if isinstance(value, str) else value


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_every_string_is_found_where_it_stands(value, ascii_only, indent):
    """Paths, texts and keys are those of the parsed document, however it is written."""
    document = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert [(one.path, one.text, one.is_key) for one in literals.strings(document)] == list(walked(value))
    assert literals.edited(document, lambda one: one.text) is document


@given(VALUES, st.booleans())
def test_an_edit_is_the_edit_of_the_value(value, ascii_only):
    """Editing the bytes and editing the parsed value come to the same, for any text."""
    document = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    edited = literals.edited(document, lambda one: one.text + '"\\é\n')
    assert json.loads(edited.decode("utf-8", "surrogatepass")) == changed(value, lambda text: text + '"\\é\n')


def test_what_stays_keeps_its_bytes():
    """Numbers, blanks and escapes beside an edited string are those of the document."""
    document = b'{ "a" : 1.0e5,"b":["\\u0041\\/", "x"], "c": 12345678901234567890123 }'
    edited = literals.edited(document, lambda one: "y" if one.text == "x" else one.text)
    assert edited == document.replace(b'"x"', b'"y"')
