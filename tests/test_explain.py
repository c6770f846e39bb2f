"""`gateway explain`: every candidate stands there, with its costs or with what removed it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gateway import config
from gateway.explain import explain
from gateway.facts import Facts
from gateway.policy.decision import Health
from gateway.policy.generation import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generation():
    return load(config.load(ROOT / "config.example.toml"), ROOT / "policies")


def shown(explanation):
    console = Console(width=200, file=io.StringIO())
    console.print(explanation.render())
    return console.file.getvalue()


def test_a_refusal_is_explained_by_the_rule_that_made_it(generation):
    """What removed a candidate stands beside it, with file and line."""
    request = Facts(endpoint="chat/completions", model="auto", needs=("chat", "tools"), class_="restricted", found=("card",))
    explanation = explain(generation, "cost", request, {})
    assert {line.option: line.removed_by for line in explanation.lines} == {
        "local/smollm2-135m": "capability",
        "local/all-minilm-l6-v2": "capability",
        "openai/gpt-4o-mini": "class",
    }
    text = shown(explanation)
    assert "restricted (card found)" in text
    assert "openai takes up to internal, this is restricted" in text
    assert "forbidden" in text


def test_the_order_of_trying_and_its_reasons_are_shown(generation):
    """Candidates stand in the order they are tried, with expected cost and time to first token."""
    request = Facts(endpoint="chat/completions", model="auto", needs=("chat",), prompt_tokens=100, prompt_tokens_high=100)
    explanation = explain(generation, "cost", request, {"local/smollm2-135m": Health(ttft_ms=40, in_flight=1)})
    assert [(line.option, line.place) for line in explanation.lines[:2]] == [("local/smollm2-135m", 1), ("openai/gpt-4o-mini", 2)]
    text = shown(explanation)
    assert "80 ms" in text
    assert "$0.000322" in text


def test_an_explanation_is_plain_json(generation):
    """The JSON form holds the facts, the decision and every candidate."""
    request = Facts(endpoint="embeddings", model="all-minilm-l6-v2", needs=("embeddings",))
    plain = json.loads(json.dumps(explain(generation, "cost", request, {}).as_json()))
    assert plain["facts"]["class"] == "public"
    assert plain["decision"]["policy"] == generation.label("cost")
    assert plain["candidates"][0]["option"] == "local/all-minilm-l6-v2"
