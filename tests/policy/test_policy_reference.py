"""docs/policy.md: it says everything, and what it shows is true."""

import re
from pathlib import Path

import pytest
from worlds import catalogue, option

from gateway.policy.conditions import FACTS, UNAVAILABLE_FACTS
from gateway.policy.document import _ABSENT, KIND_NAMES, ExpectBlock, LimitBlock, RouteBlock, Target
from gateway.policy.generation import Generation
from gateway.policy.proof import run_tests

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "policy.md").read_text()


def section(title):
    return TEXT[TEXT.index(f"\n## {title}") :].split("\n## ")[1]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("`when`: the facts", FACTS),
        ("`[[limit]]`: the effects", LimitBlock.__struct_fields__),
        ("`[[route]]`: the order", RouteBlock.__struct_fields__),
        ("`[[test]]`", ExpectBlock.__struct_fields__),
    ],
)
def test_every_fact_and_key_has_its_row(title, words):
    """The tables of the reference list exactly what a file may hold."""
    assert set(re.findall(r"^\| `(\w+)` \|", section(title), re.MULTILINE)) == set(words)


@pytest.mark.parametrize("word", [*KIND_NAMES, *Target.__struct_fields__, *_ABSENT, *UNAVAILABLE_FACTS])
def test_every_word_of_the_format_is_mentioned(word):
    """Kinds, upstream tags and what is not available yet are named in the reference."""
    if word != "budgets":
        assert f"`{word}`" in TEXT


def test_every_message_in_the_table_is_one_that_is_said():
    """The messages that the reference explains occur among those that broken files get, or in the code."""
    said = Path(__file__).with_name("broken.txt").read_text()
    code = "".join(path.read_text() for path in (ROOT / "gateway" / "policy").glob("*.py"))
    for cell in re.findall(r"^\| (`.*?) \| ", section("Messages"), re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", cell):
            assert all(part in said or part in code for part in message.split("...")), message


def test_the_example_file_loads_and_keeps_its_own_test():
    """What the reference shows can be copied."""
    example = TEXT.split("```toml\n")[1].split("```")[0]
    made = Generation({"example.toml": example}, catalogue(option("local"), option("us", zone="us", takes_up_to="internal")))
    assert [result.problems for result in run_tests(made)] == [()]
