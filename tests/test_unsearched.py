"""A request that could not be searched is restricted, and whoever is told so is told why: client, log and terminal. Never its text."""

import json

import pytest
from front import POLICY, Client, body
from msgspec.structs import replace
from shelf import shelf

from gateway import facts as facts_of
from gateway import privacy
from gateway.errors import WorkerGone
from gateway.explain import from_log
from gateway.names import NamesAway, NamesFailed, NamesLate, NamesTooLong
from gateway.pipeline import decided
from gateway.policy.decide import decide, pin
from gateway.policy.decision import Health
from gateway.policy.generation import Catalogue, Generation
from tests.http.test_transfers import form, part, send
from tests.test_explain import shown

SECRET = "quixotic zeppelin"
NAMED = POLICY + '[classes]\nconfidential = ["person"]\ninternal = ["unscannable"]\n'
LIMIT = '[[limit]]\nname = "masked"\nredact = "outside"\n'
CAUSES = {
    "Oversize": "it is longer than the text that is searched",
    "TooManyCandidates": "it holds too much that looks like sensitive data and is none",
    "NamesAway": "names could not be looked for: the names worker is away",
    "NamesLate": "names could not be looked for: the names worker did not answer in time",
    "NamesFailed": "names could not be looked for: the names worker failed on a text",
    "NamesTooLong": "names could not be looked for: too much of it is new",
    "RecursionError": "the search for sensitive text failed (RecursionError)",
}
RAISED = {
    error.__name__: error
    for error in (privacy.TooManyCandidates, NamesAway, NamesLate, NamesFailed, NamesTooLong, RecursionError)
}


class Failing:
    """A Finder that ends as it is told to, with the text in its words."""

    waits = False
    patterns = privacy.DETECTOR

    def __init__(self, error):
        self._error = error

    def kinds_of_all(self, texts):
        """Fails on a text of a client, whose names were asked for."""
        if self._error and any(SECRET in text for text in texts):
            raise self._error(" ".join(texts))
        return frozenset()

    def locate(self, text, *, before=""):
        raise self._error(text)


def front(world, cause, *, policy=NAMED, **upstreams):
    """A front worker whose search of SECRET ends for this cause."""
    made = world(policy=policy, server="max_scan_chars = 40" if cause == "Oversize" else "", **upstreams)
    set_up(made, cause)
    return made


def set_up(made, cause):
    finder = Failing(RAISED.get(cause))
    made.generation = Generation(made.policies, Catalogue.of(made.config), beside=lambda patterns, kinds: finder)


CAUSED = pytest.mark.parametrize("cause", CAUSES)
FAR = {"takes_up_to": "internal"}
SENT = body(SECRET * 3)


@CAUSED
async def test_who_is_refused_is_told_why(world, cause):
    """In the message, in the header, in the decision's line and in the record; one word for programs, a sentence for people."""
    made = front(world, cause, far=FAR)
    got = await Client(made, SENT, x_gateway_explain="1").answer()
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"]) == (403, "policy_forbidden")
    assert f"of class restricted (because {CAUSES[cause]}" in told["message"]
    reason = json.loads(got.headers["x-gateway-explain"])
    assert (reason["class"], reason["because"].startswith(CAUSES[cause])) == ("restricted", True)
    ((_, line),) = [event for event in made.events if event[0] == "route.decided"]
    assert (line["facts"]["unsearched"], made.records[0].unsearched) == (cause, cause)
    assert SECRET not in repr((got.body, got.headers, made.events, made.records))


@CAUSED
async def test_so_is_who_is_served_at_home(world, cause):
    """An answer says in its header why it did not come from elsewhere; what was searched says nothing of it."""
    made = front(world, cause, far=FAR, home={"takes_up_to": "restricted", "zone": "local"})
    got = await Client(made, SENT, x_gateway_explain="1").answer()
    assert (got.status, got.headers["x-gateway-route"], made.records[0].class_) == (200, "home/m", "restricted")
    assert json.loads(got.headers["x-gateway-explain"])["because"].startswith(CAUSES[cause])
    got = await Client(made, body("hm"), x_gateway_explain="1").answer()
    assert (got.headers["x-gateway-route"], made.records[1].unsearched) == ("far/m", "")
    assert "because" not in json.loads(got.headers["x-gateway-explain"])


@CAUSED
async def test_who_would_be_served_by_what_is_down_is_told_why_nobody_else_may(world, cause):
    """503: without the cause a client reads only that some upstream is down."""
    made = front(world, cause, far=FAR, home={"takes_up_to": "restricted", "zone": "local"})
    made.upstreams["home"].unavailable = lambda model: "loading"
    got = await Client(made, SENT).answer()
    assert got.status == 503
    assert f"of class restricted (because {CAUSES[cause]}" in json.loads(got.body)["error"]["message"]


@CAUSED
def test_a_request_that_goes_on_from_something_is_told_why_it_cannot(cause):
    """The upstream that keeps the earlier response may not have this one."""
    request = facts_of.Facts(endpoint="responses", model="m", class_="restricted", unsearched=cause)
    assert CAUSES[cause] in facts_of.because(request)
    assert facts_of.because(replace(request, unsearched="", found=("card",))) == " (card found)"
    assert facts_of.because(replace(request, found=("card",))).startswith(f" (card found; because {CAUSES[cause]}")
    assert facts_of.because(replace(request, unsearched="")) == ""


async def test_a_pinned_one_too(world):
    made = front(world, "NamesAway", far=FAR, home={"takes_up_to": "restricted", "zone": "local"})
    request = facts_of.Facts(endpoint="chat/completions", model="m", needs=("chat",), class_="restricted", unsearched="NamesAway")
    refusal = pin(decide(made.generation, "listed", request, {}), request, "far").refusal
    assert CAUSES["NamesAway"] in refusal.message
    health = {"home/m": Health(up=False, reason="loading")}
    assert CAUSES["NamesAway"] in pin(decide(made.generation, "listed", request, health), request, "home").refusal.message


@CAUSED
async def test_the_log_explains_it_later(world, cause):
    """`gateway explain REQUEST_ID`, as JSON and for a terminal."""
    made = front(world, cause, far=FAR)
    request = facts_of.Facts(endpoint="chat/completions", model="m", needs=("chat",), class_="restricted", unsearched=cause)
    decision = decide(made.generation, "listed", request, {})
    line = json.loads(json.dumps(decided(request, decision, {}))) | {"event": "route.decided"}
    found = from_log([line], lambda _: made.generation)
    assert found.as_json()["facts"]["unsearched"] == cause
    assert f"restricted (because {CAUSES[cause]}" in " ".join(shown(found).split())


async def test_a_response_that_must_not_be_kept_says_why(world):
    """The refusal of `store: true` is by class, and so has the cause."""
    made = front(world, "NamesAway", home={"takes_up_to": "restricted", "zone": "local"})
    payload = json.dumps({"model": "m", "input": SECRET, "store": True}).encode()
    got = await Client(made, payload, endpoint="responses").answer()
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"]) == (400, "store_forbidden")
    assert f"of class restricted (because {CAUSES['NamesAway']}" in told["message"]


@pytest.mark.parametrize("cause", RAISED)
async def test_what_cannot_be_masked_says_why(world, cause):
    """The detector fails only when places are asked for: the sentence is the same."""
    made = front(world, cause, policy=NAMED + LIMIT, far={"takes_up_to": "restricted", "zone": "us"})
    finder = made.generation.detector
    finder.kinds_of_all = lambda texts: frozenset({"person"} if any(SECRET in text for text in texts) else ())
    got = await Client(made, SENT).answer()
    told = json.loads(got.body)["error"]
    assert (got.status, told["code"]) == (403, "redaction_failed")
    assert (CAUSES[cause] if cause != "RecursionError" else "masking it failed (RecursionError)") in told["message"]
    assert SECRET not in repr((got.body, made.events, made.records))


@pytest.mark.parametrize("place", ["before", "behind"])
async def test_a_form_says_why(world, place):
    """Before its file, where the decision refuses it, and behind, where the upstream was already chosen."""
    model, file, prompt = part("model", b"m"), part("file", b"x" * 9, "a"), part("prompt", SECRET.encode())
    async with shelf() as server:
        made = front(world, "NamesAway", up={"base_url": server.base_url, "retries": 0, **FAR})
        sent = form(model, file, prompt) if place == "behind" else form(model, prompt, file)
        status, told = await send(made, "audio/transcriptions", sent)
        assert server.requests == []
    assert (status, told["error"]["code"]) == (403, "policy_forbidden")
    assert f"restricted (unscannable found; because {CAUSES['NamesAway']}" in told["error"]["message"]
    assert made.records[0].unsearched == "NamesAway"


async def test_a_batch_file_says_why_and_where(world):
    """The line that could not be searched is named."""
    made = front(world, "NamesAway", up={"base_url": "http://127.0.0.1:1/v1", "retries": 0, **FAR})
    line = '{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": %s}\n'
    lines = (line % (1, body("hm").decode()) + line % (2, SENT.decode())).encode()
    status, told = await send(made, "files", form(part("purpose", b"batch"), part("file", lines, "b.jsonl")))
    assert (status, told["error"]["code"]) == (403, "policy_forbidden"), told
    assert told["error"]["message"].startswith("Line 2 of the batch file: ")
    assert f"because {CAUSES['NamesAway']}" in told["error"]["message"]
    assert made.records[0].unsearched == "NamesAway"


def test_every_way_in_which_names_are_missed_has_its_words():
    """Each is a class of its own, told apart by its name alone; those that a worker is missed for are WorkerGone to whoever asks."""
    assert {NamesAway.__name__, NamesLate.__name__, NamesFailed.__name__, NamesTooLong.__name__} <= facts_of.UNSEARCHED.keys()
    assert all(issubclass(one, WorkerGone) for one in (NamesAway, NamesLate, NamesFailed))
    assert privacy.TooManyCandidates.__name__ in facts_of.UNSEARCHED
