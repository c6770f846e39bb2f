"""Whatever a request is judged by, besides its body, is asked of each one anew, or is part of what it is known by.

Two gateways get the same requests; one of them never remembers any. A field of a principal or of a request, or a header that the
pipeline reads, without a line in the tables here fails: who adds one says what it may be.
"""

import re

import msgspec
import pytest
from front import POLICY, Client, body
from msgspec.structs import replace

from gateway.auth import Principal
from gateway.http import inference
from gateway.incoming import FORWARDED_HEADERS, Incoming
from gateway.policy.generation import Catalogue, Generation
from tests.test_again import told

WHO = Principal(key_id="k1", label="one", tenant="acme", scopes=("chat",), policies=("other",))
PRINCIPALS = {
    "key_id": ["k2"],
    "label": ["two"],
    "tenant": ["globex"],
    "scopes": [("audit",), ("chat", "admin")],
    "policy": ["other", "gone"],
    "policies": [()],
    "class_floor": ["internal", "confidential", "restricted"],
}
HEADERS = {
    "authorization": ["Basic x", None],
    "api-key": ["k"],
    "x-api-key": ["k"],
    "cache-control": ["no-cache", "no-store"],
    "content-encoding": ["gzip", "identity"],
    "content-length": ["9", "99999999999"],
    "content-type": ["text/plain", "application/vnd.api+json", None],
    "x-client-request-id": ["mine"],
    "x-gateway-class": ["internal", "restricted", "no class"],
    "x-gateway-deadline-ms": ["500"],
    "x-gateway-explain": ["1"],
    "x-gateway-policy": ["other", "listed@000000000000", "gone"],
    "x-gateway-tags": ["quiet", "a,b"],
} | {name: ["00-" + 32 * "1" + "-" + 16 * "2" + "-01"] for name in FORWARDED_HEADERS if name != "x-client-request-id"}
REQUESTS = {
    "body": [body("another text"), body() + b" "],
    "endpoint": ["completions", "embeddings"],
    "deployment": ["m", "n"],
    "query": ["api-version=1"],
}
ELSEWHERE = {"headers", "principal", "detector", "id", "method"}
"""Fields of a request that have tables of their own, or hang on the policies; with an id it is another pipeline's."""

LIMITS = """
[[limit]]
name = "two is not kept"
when = { key_label = "two" }
cache = "off"
[[limit]]
name = "globex is not kept"
when = { tenant = "globex" }
cache = "off"
[[limit]]
name = "quiet"
when = { tags = "quiet" }
log = "no text"
"""
OTHER = 'policy = "other"\n[[route]]\nname = "all"\norder_by = "cost"\n'
PRICES = [{"input_usd_per_mtok": usd, "output_usd_per_mtok": usd} for usd in (1.0, 0.0)]
"""Of both candidates."""
CAP = """
[[limit]]
name = "a tenth of a cent"
max_cost = 0.001
"""


def names(struct):
    return {field.name for field in msgspec.structs.fields(struct)}


class Gateways:
    """One that remembers what it has read, and one that does not."""

    def __init__(self, world, limits=LIMITS):
        self.both = [world(a={}, b={}), world(a={}, b={})]
        for made in self.both:
            texts = {"listed.toml": POLICY + limits, "other.toml": OTHER}
            model = made.config.models["m"]
            priced = (replace(one, **prices) for one, prices in zip(model.candidates, PRICES, strict=True))
            made.config.models["m"] = replace(model, candidates=tuple(priced))
            made.generation = Generation(texts, Catalogue.of(made.config))
        self.both[1].pipeline._again.keep = lambda *_, **__: None

    async def ask(self, who=WHO, payload=None, **options):
        """What both answer and log, without ids and times."""
        payload = body() if payload is None else payload
        return [await _asked(made, who, payload, options) for made in self.both]

    def knows(self):
        return len(self.both[0].pipeline._again._known)


async def _asked(made, who, payload, options):
    made.edge._keys.principal = lambda _: who
    got = await Client(made, payload, **options).answer()
    kept = {name: value for name, value in got.headers.items() if name not in {"x-request-id", "openai-processing-ms"}}
    record, events, tokens = told(made, made.records[-1])
    for _, fields in events:
        fields.pop("health", None)
    return got.status, kept, re.sub(rb"req_\w+", b"", got.body), record, events, tokens


@pytest.fixture
async def learned(world):
    """Two gateways that have answered the request from the cache; the next of its kind would be served unread by one of them."""
    made = Gateways(world)
    for _ in range(3):
        one, other = await made.ask()
        assert one == other
    assert one[1]["x-gateway-cache"] == "hit-exact"
    assert made.knows() == 1
    return made


async def alike(made, **changed):
    """The request in another way is served as by the gateway that reads, also the second time, and so is the first way after it."""
    for options in (changed, changed, {}):
        one, other = await made.ask(**options)
        assert one == other


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in PRINCIPALS.items() for value in values])
async def test_whoever_else_asks_is_served_as_if_it_was_read(learned, field, value):
    """Each field of the principal by itself."""
    await alike(learned, who=replace(WHO, **{field: value}))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HEADERS.items() for value in values])
async def test_whatever_a_header_says_is_served_as_if_it_was_read(learned, name, value):
    """Each header by itself; None: without it."""
    await alike(learned, **{name.replace("-", "_"): value})


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REQUESTS.items() for value in values])
async def test_whatever_else_is_asked_is_served_as_if_it_was_read(learned, field, value):
    """Each other field of the request by itself."""
    options = {
        "body": {"payload": value},
        "deployment": {"endpoint": f"/openai/deployments/{value}/chat/completions"},
    }.get(field, {field: value})
    await alike(learned, **options)


async def test_a_size_that_comes_near_a_cap_is_counted_as_if_it_was_read(world):
    """How long answers become is learned: with it, the estimate that was enough before may no longer tell what a cap allows."""
    made = Gateways(world, limits=CAP)
    for one in made.both:
        one.count = lambda _text, _model: (700, False)
    long = body("word " * 800)
    for _ in range(3):
        await made.ask(payload=long)
    assert made.knows() == 1
    for one in made.both:
        for _ in range(50):
            one.health.wrote("a/m", 10)
    one, other = await made.ask(payload=long)
    assert one == other
    decided = [fields for name, fields in other[4] if name == "route.decided"]
    assert decided[0]["order"] == ["a/m", "b/m"]


def test_every_field_of_a_principal_and_of_a_request_is_tried():
    """So a new one is."""
    assert names(Principal) == set(PRINCIPALS)
    assert names(Incoming) == set(REQUESTS) | ELSEWHERE


class Read(dict):
    """Headers that note which of them were asked for."""

    def __init__(self, of, asked):
        super().__init__(of)
        self.asked = asked

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)


async def test_every_header_that_is_read_is_tried(world, monkeypatch):
    """So a new one is: read, remembered and served unread, these are all that anybody looks for."""
    asked = set()
    header_map = inference.header_map
    monkeypatch.setattr(inference, "header_map", lambda scope: Read(header_map(scope), asked))
    made = Gateways(world)
    for options in ({}, {}, {}, {"cache_control": "no-cache"}, {"authorization": None}):
        await made.ask(**options)
    assert asked == set(HEADERS)
