"""Small catalogues and random facts for the policy tests. Knows nothing of the shipped files."""

from hypothesis import strategies as st
from msgspec import UNSET

from gateway.config import CAPABILITIES, CLASSES
from gateway.facts import Facts
from gateway.policy.decision import Health, Option
from gateway.policy.document import KIND_NAMES
from gateway.policy.generation import Catalogue, Generation
from gateway.tasks import TASKS

LAST_ROUTE = '[[route]]\nname = "all"\norder_by = "listed"\n'


def option(upstream, model="m", **changes):
    plain = {
        "zone": "local",
        "retention": "none",
        "trains": False,
        "takes_up_to": "restricted",
        "capabilities": ("chat", "tools"),
        "context": 8000,
        "max_output": 1000,
        "input_usd_per_mtok": 1.0,
        "output_usd_per_mtok": 2.0,
    }
    return Option(upstream=upstream, model=model, **{**plain, **changes})


HOME = option("home", input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)
EU = option("eu-api", zone="eu", takes_up_to="confidential")
US = option("us-api", zone="us", retention="30d", trains=True, takes_up_to="internal", context=100_000, input_usd_per_mtok=0.1)
VAULT = option("vault", model="big", capabilities=("chat", "images"), context=200_000)
DARK = option("dark", zone="us", input_usd_per_mtok=None, output_usd_per_mtok=None, takes_up_to="public")


def catalogue(*options, **models):
    options = options or (HOME, EU, US)
    names = tuple(dict.fromkeys(one.upstream for one in options))
    return Catalogue(upstreams=names, models={"auto": options, **models}, substitutable=("auto",))


def generation(*texts, options=()):
    """Policies p0, p1, ... made of these texts; the first has a last route."""
    files = {f"p{index}.toml": f'policy = "p{index}"\n{text}' for index, text in enumerate(texts)}
    if texts and "[[route]]" not in texts[0]:
        files["p0.toml"] += "\n" + LAST_ROUTE
    return Generation(files, catalogue(*options))


def facts(**changes):
    size = changes.get("prompt_tokens", 100)
    plain = {
        "endpoint": "chat/completions",
        "model": "auto",
        "needs": ("chat",),
        "prompt_tokens": size,
        "prompt_tokens_high": size,
    }
    return Facts(**{**plain, **changes})


def names(decision):
    return [chosen.option.upstream for chosen in decision.candidates]


def all_facts(models=("auto",)):
    size = st.integers(0, 200_000)
    return st.builds(
        Facts,
        endpoint=st.sampled_from(["chat/completions", "completions", "embeddings"]),
        model=st.sampled_from(models),
        class_=st.sampled_from(CLASSES),
        found=st.lists(st.sampled_from(KIND_NAMES), unique=True).map(lambda kinds: tuple(sorted(kinds))),
        tenant=st.sampled_from(["", "a", "b"]),
        tags=st.lists(st.sampled_from(["x", "y"]), unique=True).map(tuple),
        stream=st.booleans(),
        tools=st.booleans(),
        images=st.booleans(),
        needs=st.lists(st.sampled_from(CAPABILITIES), max_size=2, unique=True).map(tuple),
        via_chat=st.sampled_from([(), ("chat",), ("chat", "images")]),
        stores=st.booleans(),
        prompt_tokens=size,
        prompt_tokens_high=size,
        max_output=st.none() | st.integers(0, 20_000),
        deadline_ms=st.none() | st.integers(1, 100_000),
        hour=st.integers(0, 23),
        choices=st.integers(1, 3),
        task=st.sampled_from([*TASKS]),
        key_label=st.sampled_from(["", "ci"]),
        json_mode=st.booleans(),
        seed=st.text(max_size=3),
    )


def all_health(options):
    one = st.builds(
        Health,
        up=st.booleans(),
        off=st.booleans(),
        reason=st.just("why"),
        ttft_ms=st.none() | st.floats(0, 1e5),
        in_flight=st.integers(0, 50),
        long_output=st.just(UNSET) | st.integers(1, 20_000),
    )
    return st.dictionaries(st.sampled_from([option.name for option in options]), one)


def whens():
    """Any `when` that a file may hold."""

    def some(words):
        return st.sampled_from(words) | st.lists(st.sampled_from(words), min_size=1, max_size=2)

    classes = [*CLASSES, ">= internal", "< restricted", "> public", "<= internal"]
    numbers = [0, 5, 500, "< 8", "<= 500", "> 500", ">= 3", "> 19"]
    hours = [3, "< 8", ">= 18", "> 7", "<= 20"]
    return st.fixed_dictionaries(
        {},
        optional={
            "class": some(classes),
            "found": some(KIND_NAMES[:4]),
            "tenant": some(["a", "b"]),
            "tags": some(["x", "y"]),
            "needs": some(CAPABILITIES[:3]),
            "task": some(list(TASKS)),
            "stream": st.booleans() | st.just([True, False]),
            "tools": st.booleans(),
            "prompt_tokens": some(numbers),
            "max_output": some(numbers),
            "hour": some(hours),
        },
    )


WHENS = st.sampled_from(
    [
        "",
        "when = { stream = true }",
        'when = { class = ">= confidential" }',
        'when = { prompt_tokens = "> 500" }',
        'when = { found = ["card", "email"], tools = false }',
        'when = { hour = ["< 8", ">= 18"] }',
        'when = { max_output = "> 1000" }',
        'when = { tenant = "a" }',
    ],
)
EFFECTS = st.sampled_from(
    [
        'only = { zone = ["local", "eu"] }',
        "only = { trains = false }",
        'never = { upstream = "home" }',
        'never = { zone = "us", trains = true }',
        "max_cost = 0.0005",
        "max_cost = 0.01",
        'cache = "exact"',
        'log = "no text"',
        'redact = "outside"',
    ],
)
LIMITS = st.lists(st.tuples(WHENS, EFFECTS), max_size=5)


def limit_texts(limits):
    return [f'[[limit]]\nname = "limit {index}"\n{when}\n{effect}\n' for index, (when, effect) in enumerate(limits)]
