"""The JSON Schema of policy files: it is current, takes what is right, and refuses what no config can mend."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from test_document import read_cases

from gateway.policy.schema import policy_schema

ROOT = Path(__file__).parents[2]
SCHEMA = jsonschema.Draft202012Validator(policy_schema())
CASES = {case.id: case.values[0] for case in read_cases()}
SEEN = ("no name", "unknown table", "unknown key in only", "unknown fact", "unknown class in when", "a bad comparison")
SEEN += ("a flag compared with a word", "a negative cost", "use and order_by", "within below one", "a test that demands nothing")


def test_the_shipped_schema_is_current():
    """docs/policy.schema.json is what the Structs say today; `gateway policy schema` makes it."""
    assert json.loads((ROOT / "docs/policy.schema.json").read_text()) == policy_schema()


@pytest.mark.parametrize("path", sorted((ROOT / "policies").glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_policy_is_valid(path):
    """An editor marks nothing in the shipped files."""
    assert list(SCHEMA.iter_errors(tomllib.loads(path.read_text()))) == []


@pytest.mark.parametrize("name", SEEN)
def test_an_editor_sees_a_broken_file(name):
    """What is wrong by itself, without any config, is refused by the schema too."""
    assert not SCHEMA.is_valid(tomllib.loads(CASES[name]))


def test_names_of_the_config_are_not_judged():
    """Upstreams and models are the config's business; the schema lets them pass."""
    assert SCHEMA.is_valid(tomllib.loads(CASES["unknown upstream in use"]))
