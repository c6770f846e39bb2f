"""Masks: nothing that the detector finds is left in a body, and the way back is exact; failures first."""

import json
import stat
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import privacy
from gateway.redact import Channel, Redactor, Unmaskable, Vault

MAIL, CARD = "ada@example.org", "4111 1111 1111 1111"
NONCE = "BCDF"


@pytest.fixture(scope="module")
def redactor(tmp_path_factory):
    return Redactor(tmp_path_factory.mktemp("key") / "redaction.key")


def body(*texts, **fields):
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def mask(redactor, payload, *, tenant="t", max_chars=1 << 20, **more):
    return redactor.mask(payload, tenant=tenant, max_chars=max_chars, **more)


def contents(masked):
    return [message["content"] for message in json.loads(masked.body)["messages"]]


BAD = {
    "a number": body(MAIL, metadata={"n": 4111111111111111}),
    "a number in arguments": body(MAIL, tools=[{"arguments": '{"card": 4111111111111111, "why": "x"}'}]),
    "two parts": body([{"type": "text", "text": "visa 41111111"}, {"type": "text", "text": "11111111"}]),
    "log probabilities": body(MAIL, logprobs=True),
    "log probabilities of a completion": json.dumps({"model": "m", "prompt": MAIL, "logprobs": 0}).encode(),
    "log probabilities of a response": json.dumps({"input": MAIL, "include": ["message.output_text.logprobs"]}).encode(),
    "tokens": json.dumps({"model": "m", "prompt": [[1, 2, 3]], "user": MAIL}).encode(),
    "an image": body([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_what_cannot_be_masked_is_refused_without_a_word_of_it(redactor, payload):
    """The refusal says why, and holds nothing of the text."""
    with pytest.raises(Unmaskable) as caught:
        mask(redactor, payload)
    assert not any(word in str(caught.value) for word in (MAIL, "4111", "visa"))


def test_what_is_too_long_is_refused(redactor):
    """Text that is not scanned does not leave."""
    with pytest.raises(Unmaskable, match="longer than"):
        mask(redactor, body(MAIL), max_chars=10)


def test_too_many_values_are_refused(redactor):
    """Each is sought in the whole text, so the work is bounded by refusing what is more; the mend is in the message."""
    with pytest.raises(Unmaskable, match=r"too many different values .* send it in parts"):
        mask(redactor, body(" ".join(f"user{number}@example.org" for number in range(11_000))))


def test_a_damaged_key_masks_nothing(tmp_path):
    """Nor does a key that can be guessed come in its place."""
    path = tmp_path / "redaction.key"
    path.write_bytes(b"short")
    with pytest.raises(Unmaskable, match=r"redaction\.key.*its operator must"):
        mask(Redactor(path), body(MAIL))


def test_a_detector_that_misses_on_the_way_back_is_noticed(tmp_path):
    """What `locate` leaves and a scan finds does not leave."""

    class Blind(privacy.Detector):
        def locate(self, text, *, before=""):
            return super().locate(text, before=before)[:1]

    with pytest.raises(Unmaskable, match="card would be left"):
        mask(Redactor(tmp_path / "key"), body(MAIL, CARD), detector=Blind())


def test_the_key_is_the_owners_alone_and_stays(tmp_path):
    """A second gateway on the same state folder makes the same placeholders."""
    path = tmp_path / "state" / "redaction.key"
    first = mask(Redactor(path), body(MAIL))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert mask(Redactor(path), body(MAIL)).body == first.body
    assert mask(Redactor(tmp_path / "other"), body(MAIL)).body != first.body


def test_every_place_is_masked_and_the_rest_stays(redactor):
    """System, history, names, keys, arguments, results and users; the arguments stay JSON, all else keeps its bytes."""
    arguments = json.dumps({"to": MAIL, "note": 'say "hi"'})
    payload = body(
        MAIL,
        system=f"you are {MAIL}",
        user=MAIL,
        metadata={MAIL: "x"},
        temperature=1.0e0,
        calls=[{"arguments": arguments}, {"result": arguments}],
    )
    masked = mask(redactor, payload)
    told = json.loads(masked.body)
    (placeholder,) = {told["user"], *told["metadata"], contents(masked)[0]}
    assert json.loads(told["calls"][0]["arguments"]) == {"to": placeholder, "note": 'say "hi"'}
    assert masked.body == payload.replace(MAIL.encode(), placeholder.encode())
    assert dict(masked.vault.counts) == {"email": 1}


def test_a_value_is_masked_wherever_it_stands(redactor):
    """Nine digits are an SSN beside a word alone; once they are known, they are masked without it, too."""
    assert not privacy.find("then 123456789 again")
    first, second = contents(mask(redactor, body("ssn 123456789", "then 123456789 again")))
    assert (first.removeprefix("ssn "), second) == (first[4:], f"then {first[4:]} again")


def test_the_models_name_is_ours(redactor):
    """It is told to the upstream that has it, whatever it looks like."""
    masked = mask(redactor, json.dumps({"model": "card 4111 1111 1111 1111", "prompt": MAIL}).encode())
    assert json.loads(masked.body)["model"] == "card 4111 1111 1111 1111"


def test_without_findings_the_body_is_the_same(redactor):
    """Also where text looks like a placeholder: nothing is restored then."""
    payload = body("hello [EMAIL_BCDF_1]")
    masked = mask(redactor, payload)
    assert (masked.body is payload, bool(masked.vault)) == (True, False)


def test_a_text_that_looks_like_a_placeholder_is_masked_too(redactor):
    """It would else come back as what the placeholder stands for."""
    nonce = mask(redactor, body("begin", MAIL)).vault.nonce
    masked = mask(redactor, body("begin", f"{MAIL} [EMAIL_{nonce}_1] [CARD_{nonce}_9]"))
    assert contents(masked)[1] == f"[EMAIL_{nonce}_1] [TEXT_{nonce}_2] [TEXT_{nonce}_3]"
    assert masked.vault.restore(contents(masked)[1]) == f"{MAIL} [EMAIL_{nonce}_1] [CARD_{nonce}_9]"
    assert dict(masked.vault.counts) == {"email": 1}


def test_a_conversation_keeps_its_placeholders(redactor):
    """Turn by turn the earlier bytes are the same, whatever comes after them in the body; other conversations differ."""
    tools = [{"type": "function", "function": {"name": "f", "description": "of eve@example.org"}}]
    one = mask(redactor, body(MAIL, tools=tools))
    two = mask(redactor, body(MAIL, "and bob@example.org", tools=tools))
    assert contents(two)[0] == contents(one)[0]
    assert json.loads(two.body)["tools"] == json.loads(one.body)["tools"]
    as_items = mask(redactor, json.dumps({"input": [{"role": "user", "content": [{"type": "text", "text": MAIL}]}]}).encode())
    assert as_items.vault.nonce == one.vault.nonce
    assert mask(redactor, body(MAIL), tenant="u").vault.nonce != one.vault.nonce
    assert mask(redactor, body("hello", MAIL)).vault.nonce != one.vault.nonce


def test_a_placeholder_says_nothing_of_its_value(redactor):
    """Other values in the same places make the same body."""
    same, other = (mask(redactor, body("begin", f"to {mail}, {mail}")) for mail in (MAIL, "bob@example.com"))
    assert same.body == other.body


def test_a_vault_shows_nothing():
    """Neither as text nor in a traceback's locals."""
    vault = Vault(NONCE, json_answer=False)
    vault.hide("email", MAIL)
    assert MAIL not in f"{vault!r} {vault}"


FRAGMENTS = st.sampled_from(
    [MAIL, CARD, "bob@example.com", "+1 202 555 0143", "192.0.2.44", " ", "[", "]", "[EMAIL_", "\u200b", "é", '"', "\\", "\n",
     "😀", "\ud800", "{", "}", '{"a": "b"}', "password: hunter2zQ", "card", ",", "a", "1"],
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=8).map("".join)
NESTED = st.recursive(TEXTS, lambda inner: st.dictionaries(TEXTS, inner, max_size=2).map(json.dumps) | inner, max_leaves=4)


@given(st.lists(NESTED, min_size=1, max_size=4), st.booleans())
@example([f"[EMAIL_{MAIL}_1]"], False)
@settings(max_examples=200)
def test_whatever_is_masked_is_gone_and_comes_back(redactor, texts, ascii_only):
    """Either a body is refused, or nothing is found in it any more and each of its texts comes back as it was."""
    messages = [{"role": "user", "content": text} for text in texts]
    payload = json.dumps({"model": "m", "messages": messages}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        payload.decode()
        masked = mask(redactor, payload)
    except (Unmaskable, UnicodeDecodeError):
        return
    assert privacy.scan(json.loads(masked.body), max_chars=1 << 20).kinds == set()
    everything = repr(json.loads(masked.body))
    assert not [value for value in masked.vault._values.values() if len(value) >= 6 and repr(value)[1:-1] in everything]
    for text, sent in zip(texts, contents(masked), strict=True):
        if not text.lstrip().startswith(("{", "[")):
            assert masked.vault.restore(sent) == text


def test_most_texts_can_be_masked(redactor):
    """The test above would also pass if every body were refused."""
    for text in (MAIL, CARD, f"{MAIL}\n{CARD}", f'{{"to": "{MAIL}"}}', f"[{MAIL}]", f"é {MAIL} \u200b", f"card: {CARD}."):
        assert mask(redactor, body(text)).vault


ALIVE = (f"[EMAIL_{NONCE}_1]", f"[CARD_{NONCE}_2]", f"[TEXT_{NONCE}_10]")
SPOKEN = st.lists(
    st.sampled_from(
        [
            *ALIVE,
            ALIVE[0].lower(),
            ALIVE[1][:-1],
            f"[EMAIL_{NONCE}_99]",
            f"[CARD_{NONCE}_",
            "0",
            "[",
            "[[",
            "[E",
            NONCE,
            "]",
            "a b",
            "ß",
            "",
        ]
    ),
    max_size=10,
).map("".join)


def alive():
    vault = Vault(NONCE, json_answer=False)
    for number in range(10):
        vault.hide(("email", "card", *["text"] * 8)[number], f'value "{number}"\n')
    return vault


@given(SPOKEN, st.lists(st.integers(0, 200), max_size=30), st.booleans())
def test_pieces_come_to_the_same_as_the_whole(text, cuts, quoted):
    """Wherever a text is cut, the same goes out and the same is counted; never more is held than a placeholder is long."""
    whole, pieces = alive(), alive()
    channel = Channel(pieces, quoted=quoted)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    out = ""
    for start, end in pairwise([*places, len(text)]):
        out += channel.feed(text[start:end])
        assert len(channel.held) <= len(f"[EMAIL_{NONCE}_10")
    out += channel.flush()
    assert (out, pieces.altered) == (whole.restore(text, quoted=quoted), whole.altered)
    known = sum(text.count(one) for one in ALIVE)
    assert out.count("value ") == known


def test_what_goes_into_json_is_escaped():
    """A value with quotes and line ends leaves the arguments JSON."""
    vault = alive()
    assert json.loads(vault.restore(f'{{"a": "{ALIVE[0]}"}}', quoted=True)) == {"a": 'value "0"\n'}
    assert vault.restore(ALIVE[0]) == 'value "0"\n'


PROSE = st.lists(
    st.sampled_from(['"', "\\", "\n", " ", "a", "é", "{", "[", "]", "}", "[1]", '{"', "[to]", ALIVE[0], ALIVE[1], "\\n"]),
    max_size=8,
).map("".join)


@st.composite
def nested(draw):
    """A value with JSON inside JSON, as deep as drawn, and prose in every string of it."""
    value = draw(PROSE.filter(lambda text: not text.lstrip().startswith(('{"', '["', "[[", "[{"))))
    for _ in range(draw(st.integers(0, 3))):
        other, indent = (
            draw(st.sampled_from(["x", ALIVE[2], 7, None, [ALIVE[0]], {"k": ALIVE[1]}])),
            draw(st.sampled_from([None, 1])),
        )
        value = {"first": other, "in": value} if draw(st.booleans()) else [value, other]
        value = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent)
    return {"before": ALIVE[0], "deep": value, "after": [ALIVE[1]]}


def inside(value, change):
    """The value with all its texts changed, in JSON inside strings too."""
    if isinstance(value, dict):
        return {inside(name, change): inside(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [inside(one, change) for one in value]
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except ValueError:
            read = None
        return change(value) if not isinstance(read, dict | list) else inside(read, change)
    return value


@settings(max_examples=400)
@given(nested(), st.booleans(), st.lists(st.integers(0, 600), max_size=20))
def test_json_in_json_is_restored_with_its_own_escapes(value, ascii_only, cuts):
    """However deep a placeholder stands, and wherever the text is cut, what is read from the text is the original."""
    vault, sent = alive(), json.dumps(value, ensure_ascii=ascii_only)
    channel, out = Channel(vault, quoted=True), ""
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]):
        out += channel.feed(sent[start:end])
    out += channel.flush()
    assert inside(json.loads(out), str) == inside(value, vault.restore)
    assert vault.restore(sent, quoted=True) == out
