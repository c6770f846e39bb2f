"""Generations: what they are made of, how they are named, and what a change loses."""

import pytest
from worlds import EU, HOME, LAST_ROUTE, US, catalogue, generation, option

from gateway.errors import ConfigError
from gateway.policy.generation import Binding, Catalogue, Generation, lost, read_folder

LIMIT = '[[limit]]\nname = "l"\ncache = "off"\n'


def test_comments_order_and_tests_do_not_change_the_hash():
    """The hash names what decides, so an edit that decides nothing leaves it alone."""
    test = '[[test]]\nname = "t"\ngiven = {}\nexpect = { refused = false }\n'
    assert generation(LIMIT).hash == generation("# why\n" + LIMIT.replace(" = ", "=") + test).hash


@pytest.mark.parametrize(
    "other",
    [
        generation(LIMIT.replace("off", "exact")),
        generation(LIMIT, options=[EU, HOME, US]),
        generation(LIMIT, options=[HOME, EU, option("us-api", zone="eu", takes_up_to="internal")]),
    ],
)
def test_whatever_decides_changes_the_hash(other):
    """An effect, the order of candidates, a tag or a price: each makes another generation."""
    assert other.hash != generation(LIMIT).hash


def test_a_damaged_source_is_refused():
    """A document that is cut or was changed by hand is not opened under the hash it claims."""
    source = generation(LIMIT).source()
    for damaged in (source[:-10], source.replace(b'\\"off\\"', b'\\"exact\\"'), b"{}"):
        with pytest.raises(ConfigError, match="archived policies"):
            Generation.from_source(damaged)


def test_a_generation_opens_from_its_source_as_the_same():
    """What one process writes, another reads as the same generation."""
    before = generation(LIMIT)
    after = Generation.from_source(before.source())
    assert (after.hash, after.source(), after.options_for("auto")) == (before.hash, before.source(), before.options_for("auto"))


@pytest.mark.parametrize(
    ("old", "new", "losses"),
    [
        (generation("", LIMIT), generation(""), ['the policy "p1" (policies/p1.toml)', 'the limit "l" (policies/p1.toml:2)']),
        (generation(LIMIT), generation(""), ['the limit "l" (policies/p0.toml:2)']),
        (generation(""), generation('[classes]\ninternal = ["ssn"]'), ['the class of "ssn": restricted, lowered to internal']),
        (
            generation(""),
            generation('[log]\ntext_up_to = "public"'),
            ["text out of the log: text_up_to was nothing, raised to public"],
        ),
        (generation('[classes]\ninternal = ["person"]'), generation(""), ['the search for "person" by a model']),
        (generation(""), generation('[classes]\ninternal = ["person"]'), []),
        (generation('[log]\ntext_up_to = "public"'), generation(""), []),
        (generation(LIMIT), generation(LIMIT.replace("off", "exact")), []),
        (generation(""), generation(LIMIT), []),
        (generation(LIMIT, ""), generation("", LIMIT), []),
    ],
)
def test_what_a_change_loses_is_told(old, new, losses):
    """Files, limits, classes, the search for names and silence of the log cannot vanish unnoticed; gains and moves are no loss."""
    assert lost(old, new) == losses


@pytest.mark.parametrize(
    ("texts", "classes", "log"),
    [
        ([""], {"card": "restricted", "email": "restricted"}, None),
        (
            ['[classes]\npublic = ["card"]\n[log]\ntext_up_to = "confidential"', '[classes]\ninternal = ["card"]'],
            {"card": "internal", "email": "restricted"},
            "confidential",
        ),
        (['[log]\ntext_up_to = "internal"', '[log]\ntext_up_to = "public"'], {}, "public"),
    ],
)
def test_where_files_differ_the_stricter_word_counts(texts, classes, log):
    """The highest class of a kind and the lowest logging win; what nobody mentions is restricted and not logged."""
    made = generation(*texts)
    assert {kind: made.classes[kind] for kind in classes} == classes
    assert made.log_text_up_to == log


@pytest.mark.parametrize(("policy", "said"), [("p9", "which no file in policies/ has"), ("p1", "has no [[route]]")])
def test_a_policy_that_config_counts_on_must_exist_and_have_routes(policy, said):
    """A default or a key's policy that cannot route is refused before it is in force."""
    files = {"p0.toml": 'policy = "p0"\n' + LAST_ROUTE, "p1.toml": 'policy = "p1"\n' + LIMIT}
    bound = Catalogue(upstreams=("home",), models={}, substitutable=(), bindings=(Binding("c.toml", "the key", policy),))
    with pytest.raises(ConfigError) as caught:
        Generation(files, bound)
    assert said in str(caught.value)


def test_notes_tell_what_may_be_an_oversight():
    """A price that is missing under a cap, a class nobody takes, and a target nobody matches are shown, not refused."""
    text = '[[limit]]\nname = "cap"\nmax_cost = 1\n[[limit]]\nname = "n"\nnever = { zone = "mars" }\n'
    made = generation(text, options=[option("x", takes_up_to="confidential", input_usd_per_mtok=None)])
    assert [str(note) for note in made.notes] == [
        "config.toml: no upstream takes the class restricted: such requests are refused",
        'policies/p0.toml:2: x/m has no price, so it is never eligible under the limit "cap"',
        'policies/p0.toml:7:1: no upstream is meant by this "never" today',
    ]


def test_limits_that_close_a_class_only_together_are_found():
    """Two limits that each leave somebody but together nobody are a contradiction, too."""
    text = '[[limit]]\nname = "a"\nonly = { zone = "eu" }\n[[limit]]\nname = "b"\nnever = { upstream = "eu-api" }\n'
    with pytest.raises(ConfigError, match='the limit "b" leaves no upstream for requests of class public'):
        generation(text)


def test_a_folder_that_holds_no_policy_is_refused(tmp_path):
    """No folder, an empty one, and one with other files only: each says what is missing."""
    (tmp_path / ".#cost.toml").write_text("an editor's lock")
    (tmp_path / "cost.toml~").write_text("an editor's copy")
    for folder, said in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no policy")):
        with pytest.raises(ConfigError, match=said):
            read_folder(folder)


def test_what_cannot_be_read_is_named(tmp_path):
    """A file that is not UTF-8 text is named, and nothing of it is used."""
    (tmp_path / "a.toml").write_bytes(b"policy = \xff")
    with pytest.raises(ConfigError, match=r"a\.toml: is not UTF-8 text"):
        read_folder(tmp_path)


def test_the_same_options_serve_every_name_that_lists_them():
    """A name's options are its own; an unknown name has none."""
    made = Generation({"a.toml": 'policy = "a"\n' + LAST_ROUTE}, catalogue(HOME, EU, mini=(US,)))
    assert (made.options_for("mini"), made.options_for("who")) == ((US,), ())
