"""Policy files that are refused, and what is said about them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import EU, HOME, LAST_ROUTE, US, all_facts, catalogue, whens

from gateway.errors import ConfigError
from gateway.policy.conditions import Matcher, covering, parse
from gateway.policy.generation import Generation


def read_cases():
    """Cases of broken.txt: `=== name`, the file, `---`, and one line for everything that is said about it."""
    for case in Path(__file__).with_name("broken.txt").read_text().split("=== ")[1:]:
        head, _, said = case.partition("\n---\n")
        name, _, text = head.partition("\n")
        yield pytest.param(text, said.split("\n\n")[0].strip().splitlines(), id=name)


@pytest.mark.parametrize(("text", "said"), list(read_cases()))
def test_a_broken_file_is_refused_with_place_cause_and_mend(text, said):
    """Every fault is told, with file, line and column, what is wrong, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        Generation({"x.toml": text}, catalogue(HOME, EU, US))
    assert [str(problem) for problem in caught.value.problems] == said


def test_the_faults_of_all_files_are_told_at_once():
    """One run of `gateway check` shows everything that has to be mended."""
    files = {"a.toml": 'policy = "a"\nx = 1\n', "b.toml": 'policy = "b"\ny = 1\n'}
    with pytest.raises(ConfigError) as caught:
        Generation(files, catalogue())
    assert [problem.place for problem in caught.value.problems] == ["policies/a.toml:2:1", "policies/b.toml:2:1"]


@pytest.mark.parametrize("what", ["policy", "limit"])
def test_names_are_unique_over_the_folder(what):
    """Two files cannot share a policy's or a limit's name, since logs and refusals speak by it."""
    limit = '[[limit]]\nname = "same"\ncache = "off"\n'
    names = ("same", "same") if what == "policy" else ("a", "b")
    files = {f"{index}.toml": f'policy = "{name}"\n{limit if what == "limit" else ""}' for index, name in enumerate(names)}
    with pytest.raises(ConfigError, match=rf'1.toml:\d:\d: the {what} "same" (is|stands at) policies/0.toml:\d:\d already'):
        Generation(files, catalogue())


def test_a_file_of_limits_needs_no_route():
    """A file may hold limits alone; they apply to every request."""
    files = {"a.toml": 'policy = "a"\n' + LAST_ROUTE, "b.toml": 'policy = "b"\n[[limit]]\nname = "l"\ncache = "off"\n'}
    assert [limit.name for limit in Generation(files, catalogue()).limits] == ["l"]


@given(st.lists(whens(), max_size=5), st.lists(all_facts(), min_size=20, max_size=20))
def test_a_route_that_is_called_unreachable_never_ranks(given_whens, requests):
    """No route is refused as never reached that is the first to hold for some request."""
    conditions = [{name: parse(name, value) for name, value in when.items()} for when in given_whens]
    matcher = Matcher([], given_whens)
    for place, when in enumerate(conditions):
        covers = covering(when, conditions[:place])
        for request in requests:
            held = matcher.held(request)
            if covers and held >> place & 1:
                assert any(held >> before & 1 for before in covers)
