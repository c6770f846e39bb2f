"""The structural guards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.verify import veto


@pytest.mark.parametrize(
    ("guard", "asked", "stored"),
    [
        ("numbers", "How far is 5 miles in metres?", "How far is 50 miles in metres?"),
        ("numbers", "Give me two tips for an interview", "Give me ten tips for an interview"),
        ("numbers", "What changed in Python 3.11?", "What changed in Python 3.12?"),
        ("negation", "Which foods are recommended in pregnancy?", "Which foods are not recommended in pregnancy?"),
        ("negation", "Is it legal to record a call?", "Is it illegal to record a call?"),
        ("negation", "Why does my card work abroad?", "Why doesn't my card work abroad?"),
        ("negation", "Which mushrooms are edible and harmless?", "Which mushrooms are edible and harmful?"),
        ("antonym", "How do I turn on two-factor login?", "How do I turn off two-factor login?"),
        ("antonym", "How do I enable the firewall?", "How do I disable the firewall?"),
        ("antonym", "Should I stretch before running?", "Should I stretch after running?"),
        ("antonym", "List the pros of remote work", "List the cons of remote work"),
        ("question", "Why was the wall built?", "When was the wall built?"),
        ("question", "How old is the king?", "How tall is the king?"),
        ("quoted", 'Translate "good morning" for me', 'Translate "good evening" for me'),
        ("code", "What does parse_args do?", "What does parse_known do?"),
        ("code", "Is B12 in milk?", "Is B6 in milk?"),
        ("kind", "How tall is Everest in feet?", "How tall is Everest in meters?"),
        ("kind", "Reverse a string in python", "Reverse a string in java"),
        ("kind", "What causes headaches in children?", "What causes headaches in adults?"),
        ("entity", "Who is the president of France?", "Who is the president of Finland?"),
        ("direction", "How to convert methane to ethane?", "How does one convert ethane to methane?"),
        ("direction", "Fly from Oslo to Rome", "What is a good flight from Rome to Oslo at night time"),
        ("order", "Does a cat eat a mouse?", "Does a mouse eat a cat?"),
    ],
)
def test_a_difference_in_structure_is_named(guard, asked, stored):
    """Each guard sees its difference from both sides, under its own name or that of an earlier guard."""
    assert veto(asked, stored) is not None
    assert veto(stored, asked) is not None
    if guard not in {"code", "direction"}:
        assert veto(asked, stored) == guard


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("How do I reset my password?", "How can I reset my password"),
        ("who is the president of finland", "Who is the president of Finland ??"),
        ("What is 5 miles in km?", "Convert 5 miles into kilometres for me"),
        ("Who earns more than 50k dollars?", "Tell me who is paid more than $50,000"),
        ("List the advantages of working remotely", "What are the advantages of remote work?"),
        ("What are the risks of two drugs?", "what are the risks of 2 drugs"),
        ("Why don\u2019t cats swim?", "Why do cats not swim?"),
    ],
)
def test_a_paraphrase_passes(asked, stored):
    """Other words for the same question meet no guard."""
    assert veto(asked, stored) is None
    assert veto(stored, asked) is None


TEXTS = st.text(alphabet=st.sampled_from("ab notNO 15,.'\"`$%ABto frmi\n"), max_size=40) | st.text(max_size=40)


@given(TEXTS, TEXTS)
def test_a_verdict_is_the_same_from_both_sides(one, other):
    """Whether two texts may share an answer does not depend on which was asked first."""
    assert (veto(one, other) is None) == (veto(other, one) is None)


@given(TEXTS)
def test_a_text_is_never_vetoed_against_itself(text):
    """The same text always passes, also with another case at its end and more space."""
    assert veto(text, text) is None
    assert veto(text, text + "  ") is None


@given(st.integers(2, 10_000), st.integers(2, 10_000))
def test_two_different_numbers_never_pass(one, other):
    """A question with another number is another question."""
    assert (veto(f"What is {one} plus x?", f"What is {other} plus x?") is None) == (one == other)
