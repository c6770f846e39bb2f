"""config.toml: what is refused and how, and that the example shows everything."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from gateway import config
from gateway.config import OpenAIUpstream, off_reason
from gateway.errors import ConfigError
from gateway.tomlfile import TomlFile

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "config.example.toml"
PARTS = (
    config.Server,
    *get_args(config.UpstreamConfig),
    *get_args(config.LocalModel),
    config.Candidate,
    config.Model,
    config.Cache,
    config.Logs,
    config.Key,
    config.Policies,
)


def parse(text):
    return config.parse(TomlFile("c.toml", text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sever]\n", 'c.toml:1:2: unknown section "sever"; did you mean "server"?'),
        ("[server]\nprot = 1\n", 'c.toml:2:1: unknown key "prot"; did you mean "port"?'),
        ('[server]\ncors_origins = ["https://a.example/x"]\n', 'c.toml:2:1: must be "*" or scheme://host[:port]'),
        ('[server]\ncors_origins = ["null"]\n', 'c.toml:2:1: must be "*" or scheme://host[:port]'),
        ("[server]\nport = 70000\n", "c.toml:2:1: expected a whole number <= 65535"),
        ('[server]\nhost = "0.0.0.0"\n', 'c.toml:2:1: "0.0.0.0" is not a loopback address: keys and prompts would travel'),
        ("[upstreams]\nx = 1\n", "c.toml:2:1: expected a table, got a whole number"),
        ("[upstreams.x]\n", 'c.toml:1:12: the key "kind" is missing; known: echo, local, openai'),
        ('[upstreams.x]\nkind = "opanai"\n', 'c.toml:2:1: unknown kind "opanai"; did you mean "openai"?'),
        ('[upstreams.x]\nkind = "openai"\n', 'c.toml:1:12: the key "base_url" is missing'),
        ('[upstreams.x]\nkind = "openai"\nbase_url = "api.example"\n', "c.toml:3:1: must begin with http:// or https://"),
        ('[upstreams.x]\nkind = "echo"\ntakes_up_to = "secret"\n', 'c.toml:3:1: unknown value "secret"; known: confidential'),
        ("[models.m]\n", "c.toml:1:9: has no candidates; add one, or set substitutable = true"),
        ('[[models.m.candidates]]\nupstream = "x"\n', 'c.toml:2:1: unknown upstream "x"'),
        ("[models]\nm = { candidates = [{ upstream = 1 }] }\n", "c.toml:2:23: expected text in quotes, got a whole number"),
        ("keys = 1\n", "c.toml:1:1: expected entries of the form [[keys]]"),
        ('[[keys]]\nlabel = "a"\n', 'c.toml:1:1: the key "key_env" is missing'),
        ('[cache]\nembedder = "e"\n', 'c.toml:2:1: no embedding model "e" in [local_models]'),
    ],
)
def test_a_wrong_config_is_refused_with_place_cause_and_mend(text, said):
    """What is wrong is told with file, line and column."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert any(str(problem).startswith(said) for problem in caught.value.problems), str(caught.value)


def test_all_faults_are_told_at_once():
    """An operator mends the whole file in one go."""
    with pytest.raises(ConfigError) as caught:
        parse('[server]\nport = -1\nworkers = 0\n[cache]\nttl = 1\n[upstreams.x]\nkind = "echo"\nfail = "ever"\n')
    assert [problem.place for problem in caught.value.problems] == ["c.toml:2:1", "c.toml:3:1", "c.toml:5:1", "c.toml:8:1"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_the_example_shows_every_setting(part):
    """Whatever can be set stands in config.example.toml, with its default or a value of the demo."""
    text = EXAMPLE.read_text()
    if part is config.EchoUpstream:
        text = text[text.index("[upstreams.echo]") :]
    shown = {match[1] for match in re.finditer(r"^(?:# )?(\w+) = ", text, re.MULTILINE)}
    shown |= {match[1] for match in re.finditer(r"^\[\[models\..*\.(\w+)\]\]", text, re.MULTILINE)}
    assert {field.encode_name for field in msgspec.structs.fields(part)} <= shown


def test_the_example_loads_and_shows_true_defaults():
    """Sections that the demo has no opinion on stand in the example as they are without it."""
    example = config.load(EXAMPLE)
    for section, default in (("server", config.Server()), ("cache", config.Cache()), ("logs", config.Logs())):
        assert getattr(example, section) == default
    assert example.policies == config.Policies()
    assert example.upstreams["local"] == config.LocalUpstream()
    assert example.local_models["smollm2-135m"] == config.ChatModel()


def test_the_part_that_is_commented_out_is_right_too():
    """The echo upstream in the example loads when its comment marks are taken away, and shows its defaults."""
    text = EXAMPLE.read_text()
    start = text.index("# [upstreams.echo]")
    block = text[start : text.index("\n\n", start)].replace("# ", "", 1).replace("\n# ", "\n")
    example = config.parse(TomlFile("c.toml", EXAMPLE.read_text() + "\n" + block))
    assert example.upstreams["echo"] == config.EchoUpstream()


def test_auto_may_be_served_by_every_candidate_of_every_other_name():
    """A bare substitutable name collects all candidates, named as their upstreams know them."""
    found = {(one.upstream, one.model) for one in config.load(EXAMPLE).candidates("auto")}
    assert found == {("local", "smollm2-135m"), ("local", "all-minilm-l6-v2"), ("openai", "gpt-4o-mini")}


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "K is not set"), ("gw-x", "holds a key of this gateway"), ("sk ü", "cannot stand in a header"), ("sk-x", None)],
)
def test_an_upstream_without_a_usable_key_is_off(monkeypatch, value, said):
    """A key that is missing, ours, or no header value switches its upstream off, with the reason and without the value."""
    monkeypatch.delenv("K", raising=False)
    if value is not None:
        monkeypatch.setenv("K", value)
    reason = off_reason(OpenAIUpstream(base_url="https://x", key_env="K"))
    assert (said in reason and str(value) not in reason) if said else reason is None
