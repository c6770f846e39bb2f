"""What a policy and the log may know of a request beyond its body: the caller's own words about it."""

import pytest
from front import Client, body

from gateway import wire
from gateway.auth import Principal
from gateway.facts import MAX_TAGS, MOST_TOKENS, WITHHELD, judge, loggable
from gateway.incoming import Incoming
from gateway.privacy import with_terms

CARD = "4111111111111111"


def judged(content, header, **more):
    request = wire.read("chat/completions", b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % content.encode())
    common = {
        "classes": {},
        "max_scan_chars": 100,
        "tenant": "t",
        "key_label": "k",
        "class_floor": "public",
        "seed": "r",
        "now": 0,
    }
    return judge(request, headers={"x-gateway-tags": header}, **{**common, **more})


def tags(header):
    return judged("x", header).tags


@pytest.mark.parametrize("word", [CARD, "job-" + CARD, "ann@example.com", "for:ann@example.com"])
def test_a_tag_that_holds_sensitive_text_is_withheld(word):
    """It would stand in the log of every request, whatever the request's class."""
    assert tags(f"batch, {word} ,eu") == (WITHHELD, "batch", "eu")


def test_a_clean_tag_is_itself():
    """Sorted, each once, without blanks; no header, no tags."""
    assert tags(" eu,batch,,eu ") == ("batch", "eu")
    assert tags("") == ()


def test_a_header_without_end_does_not_take_the_loop():
    """Only so many tags are looked at."""
    assert len(tags(",".join(map(str, range(100_000))))) == MAX_TAGS


def test_no_number_of_a_client_is_too_large_to_reckon_with():
    """A bound may have hundreds of digits: it is taken as a lesser one, which sums and the log can hold."""
    huge = "1" + "0" * 400
    facts = judged(f'x"}}], "max_tokens": {huge}, "n": {huge}, "x": [{{"y": "', "")
    assert (facts.max_output, facts.choices) == (MOST_TOKENS, MOST_TOKENS)


@pytest.mark.parametrize(("sent", "kept"), [(CARD, WITHHELD), ("ann@example.com", WITHHELD), ("né", ""), ("job-7", "job-7")])
async def test_an_id_with_sensitive_text_is_withheld_from_the_record(world, sent, kept):
    """Also when nobody serves the request: the id is noted before anything is known of it."""
    made = world()
    for content in (body(), b"{"):
        await Client(made, content, x_client_request_id=sent).answer()
    assert {record.client_request_id for record in made.records} == {kept}


@pytest.mark.parametrize(
    "id_",
    [
        "3f2b8c1e-6c1f-4f5a-9d7e-2b8c1e6c1f4f", "01J9ZC1Y3Q5M8V7T6R4W2X0B9D", "00-dfd38d85c03a83f0417023c57bc7e6ae-153b04bf483171f1-01",
        "1795426690362667286", "req_29e5ace37a573be34e5cef9e", "job-865390/751",
    ],
)  # fmt: skip
def test_ids_as_they_are_made_stay_readable(id_):
    """They are what an operator looks for in the log."""
    assert loggable(id_) == id_


def test_a_customers_words_count_in_tags_and_headers():
    """What stands in the log whatever the class, and what travels as a header, is searched for the customer's words too."""
    detector = with_terms({"projects": ["Blue Heron"]})
    facts = judged("blue heron", "blue-heron,ci", classes={"projects": "confidential"}, detector=detector)
    assert (facts.class_, facts.found, facts.tags) == ("confidential", ("projects",), (WITHHELD, "ci"))
    key = Principal(key_id="k", label="k", tenant="t", scopes=("chat",))
    headers = {"idempotency-key": "blue heron 7", "openai-beta": "assistants=v2"}
    incoming = Incoming(endpoint="chat/completions", body=b"", headers=headers, principal=key, detector=detector)
    assert incoming.forwarded() == (("openai-beta", "assistants=v2"),)


def test_a_detector_that_fails_withholds_the_word():
    """What could not be searched is not shown, and costs no request its answer."""

    class Failing:
        def find(self, text):
            raise RuntimeError(text)

    assert loggable("ci", Failing()) == WITHHELD
