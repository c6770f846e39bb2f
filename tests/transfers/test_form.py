"""A form is read part by part, whatever pieces it comes in, and no byte of it is lost or changed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.transfers.form import Form, Head, boundary
from gateway.transfers.intake import Intake

CONTENT = st.binary(max_size=80).map(lambda data: data.replace(b"xyz", b"")) | st.sampled_from(
    [b"\r\n", b"\r\n--", b"\r\n\r\n", b"--xy"]
)


def written(parts):
    heads = [b'--xyz\r\nContent-Disposition: form-data; name="%b"; filename="f"\r\n\r\n' % name for name, _ in parts]
    return b"".join(head + content + b"\r\n" for head, (_, content) in zip(heads, parts, strict=True)) + b"--xyz--\r\n"


def read(data, cuts=()):
    form, intake, raw, heads = Form("xyz"), Intake(), b"", []
    bounds = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    for start, end in pairwise(bounds):
        for event in form.feed(data[start:end]):
            raw += intake.take(event)
            heads += [event] if isinstance(event, Head) else []
    form.end()
    return raw, heads


@given(
    st.lists(st.tuples(st.sampled_from([b"file", b"image[]"]), CONTENT), min_size=1, max_size=4),
    st.lists(st.integers(0, 999), max_size=9),
)
def test_its_bytes_are_what_came(parts, cuts):
    """Heads and contents put together are the form, wherever it was cut."""
    data = written(parts)
    raw, heads = read(data, cuts)
    assert (raw, [head.name.encode() for head in heads]) == (data, [name for name, _ in parts])


D = b"--xyz\r\nContent-Disposition: form-data; "
BAD = {
    "text in front": b"hello\r\n" + written([(b"a", b"x")]),
    "text behind": written([(b"a", b"x")]) + b"hello",
    "no end": written([(b"a", b"x")])[:-6],
    "no parts": b"--xyz--\r\n",
    "two names": D + b'name="a"; name="model"\r\n\r\nx\r\n--xyz--\r\n',
    "an escaped name": D + b'name="mode\\l"\r\n\r\nx\r\n--xyz--\r\n',
    "an encoding": D + b'name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n--xyz--\r\n',
    "a charset": D + b'name="a"\r\nContent-Type: text/plain; charset=utf-16\r\n\r\nx\r\n--xyz--\r\n',
    "a header twice": D + b'name="a"\r\nContent-Disposition: form-data; name="b"\r\n\r\nx\r\n--xyz--\r\n',
    "no UTF-8": D + b'name="a"\r\n\r\n\xff\r\n--xyz--\r\n',
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_two_readers_could_read_differently_is_refused(data):
    """With a param, and without a word of what was sent."""
    with pytest.raises(InvalidRequest) as caught:
        read(data)
    assert (caught.value.param, "hello" in str(caught.value)) == ("body", False)


@pytest.mark.parametrize(
    "media", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=a; boundary=b"]
)
def test_a_form_without_one_boundary_is_refused(media):
    """The header is named."""
    with pytest.raises(InvalidRequest) as caught:
        boundary(media)
    assert caught.value.param == "content-type"
