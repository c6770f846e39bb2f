"""The detector finds the same whichever way google-re2 can be reached: by its inner search, by its wrapper, or not at all."""

import random
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given, settings

from gateway import privacy
from gateway.privacy import Detector, compile_with_re, compile_with_re2, re2
from gateway.recognisers import FAMILIES
from tests.test_privacy import GENERATED, MESSY, NO_CREDENTIALS, tokens

needs_re2 = pytest.mark.skipif(re2 is None, reason="google-re2 is not installed")
EXAMPLES = [
    text
    for seed in range(5)
    for text in (
        *tokens(random.Random(seed)).values(),
        *(f"my number is {made(random.Random(seed))}, please" for made in GENERATED.values()),
        *NO_CREDENTIALS,
        "call +1 202 555 0173, card 4111 1111 1111 1111; é 4111111111111111 \ud800 x@y.org",
        "",
    )
]


@contextmanager
def other_names(which):
    """What is compiled inside is compiled as where a release of google-re2 has another private name for this."""
    with pytest.MonkeyPatch.context() as patch:
        if which == "_Anchor":
            patch.delattr(re2, "_Anchor")
        else:
            compiled = re2.compile
            patch.setattr(re2, "compile", lambda *given: _Bare(compiled(*given)))
        patch.setattr(privacy, "_compiled_gates", privacy._Gates)
        yield


@pytest.fixture(scope="module", params=["_Anchor", "_regexp"])
def wrapped(request):
    """A detector over the engine's own patterns."""
    with other_names(request.param):
        assert not isinstance(compile_with_re2(b"a"), privacy._Direct)
        return Detector()


class _Bare:
    """A compiled pattern without what is inside it."""

    def __init__(self, pattern):
        self.search, self.finditer = pattern.search, pattern.finditer


def found(detector, text):
    return detector.find(text), detector.locate(text), detector.kinds(text)


@needs_re2
@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_other_private_names_find_the_same(wrapped, text):
    """Place by place."""
    assert found(wrapped, text) == found(Detector(), text)


@needs_re2
@settings(max_examples=150, deadline=None)
@given(text=MESSY)
def test_other_private_names_find_the_same_in_anything(wrapped, text):
    """Also where findings touch, or nothing is one."""
    assert found(wrapped, text) == found(Detector(), text)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_without_re2_the_same_is_found(text):
    """Place by place."""
    assert found(Detector(with_re2=False), text) == found(Detector(), text)


@needs_re2
@pytest.mark.parametrize("pattern", [b"a+", b"b", b"aa?b", rb"\ba|b"])
@pytest.mark.parametrize(("pos", "endpos"), [(0, 6), (0, 99), (2, 4), (3, 3), (6, 6), (7, 9)])
def test_the_inner_search_is_the_engines(pattern, pos, endpos):
    """The same first match, and the same matches in order, also at and beyond the ends of the text."""
    text = b"aabaab"
    inner = compile_with_re2(pattern)
    assert isinstance(inner, privacy._Direct)
    with other_names("_Anchor"):
        own = compile_with_re2(pattern)
    for other in (own, compile_with_re(pattern)):
        one, two = inner.search(text, pos, endpos), other.search(text, pos, endpos)
        assert (one and one.span()) == (two and two.span())
        assert [place.span() for place in inner.finditer(text, pos, endpos)] == [
            place.span() for place in other.finditer(text, pos, endpos)
        ]


def test_no_gate_matches_where_nothing_is():
    """Of empty matches the ways do not agree."""
    for family in FAMILIES:
        for compiled in (compile_with_re, compile_with_re2) if re2 else (compile_with_re,):
            assert compiled(family.gate + family.rest).search(b"", 0, 0) is None


def test_the_detector_works_where_re2_is_not_installed():
    """A process that cannot import it finds what another does."""
    code = "import sys; sys.modules['re2'] = None; from gateway import privacy; print(privacy.re2, privacy.find(sys.argv[1]))"
    text = EXAMPLES[-2].replace("\ud800", "")
    done = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"None {privacy.find(text)}"
