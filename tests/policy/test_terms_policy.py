"""What `[[terms]]` in a policy file promise."""

import json

import pytest
from worlds import LAST_ROUTE, catalogue, facts, generation

from gateway.errors import ConfigError
from gateway.pipeline import decided
from gateway.policy.decide import decide
from gateway.policy.generation import Generation, lost, policy_files, read_folder
from gateway.policy.proof import run_tests
from gateway.privacy import classify, scan

TERMS = '[[terms]]\nname = "projects"\nclass = "confidential"\nwords = ["Blue Heron", "Red Kite"]\n'
LISTED = TERMS.replace('words = ["Blue Heron", "Red Kite"]', 'file = "projects.txt"')
LIST = "# our projects\nBlue Heron\n\n  Red Kite  \n"


def listed(text=LIST, terms=LISTED):
    return Generation({"p.toml": f'policy = "p"\n{terms}{LAST_ROUTE}', "projects.txt": text}, catalogue())


def class_of(made, text):
    return classify(scan({"content": text}, max_chars=10**6, detector=made.detector), made.classes)


def test_a_term_raises_the_class_whatever_policy_routes():
    """A term of any file gives its class to a request that holds it, in any disguise; a higher class stays."""
    made = generation(LAST_ROUTE, TERMS)
    assert class_of(made, "the BLUE\u200b heron plan") == "confidential"
    assert class_of(made, "blue heron, card 4111 1111 1111 1111") == "restricted"
    assert class_of(made, "a heron is blue") == "public"


def test_words_of_a_file_are_terms_like_those_written_beside():
    """A list file has one word a line, without comments and blank lines."""
    assert listed().terms == generation(TERMS).terms == {"projects": ("Blue Heron", "Red Kite")}
    assert class_of(listed(), "red kite") == "confidential"


def test_a_fault_in_a_list_is_told_by_its_line_and_never_by_the_word():
    """Messages are logged, so they name the place alone."""
    with pytest.raises(ConfigError) as caught:
        listed(LIST + "$\n")
    assert [str(one) for one in caught.value.problems] == [
        "policies/projects.txt:5:1: a term has at least 2 letters or digits; this would be found in nearly every request"
    ]


def test_a_condition_can_name_terms_of_another_file():
    """`found` knows the terms of all files, so that a limit can keep one list at home."""
    made = generation('[[limit]]\nname = "l"\nwhen = { found = "projects" }\nonly = { zone = "local" }\n', TERMS)
    decision = decide(made, "p0", facts(found=("projects",), class_="confidential"), {})
    assert [chosen.option.zone for chosen in decision.candidates] == ["local"]


def test_every_word_counts_in_the_hash():
    """The hash changes with a word, in the file or in a list, and not with a comment in a list."""
    assert generation(TERMS).hash != generation(TERMS.replace("Red", "Black")).hash
    assert listed().hash != listed(LIST.replace("Red", "Black")).hash
    assert listed().hash == listed(LIST + "# more to come\n").hash


def test_a_generation_with_lists_is_archived_whole():
    """What is archived and handed to other processes opens to the same terms."""
    made = listed()
    again = Generation.from_source(made.source())
    assert (again.hash, again.terms) == (made.hash, made.terms)


def test_losing_terms_is_a_loss():
    """A list that vanishes, a word that is taken out and a class that is lowered wait for an operator; words are not told."""
    made = generation(TERMS)
    assert lost(made, generation("")) == ['the terms "projects"']
    assert lost(made, generation(TERMS.replace(', "Red Kite"', ""))) == ['1 of the words of the terms "projects"']
    assert lost(made, generation(TERMS.replace("confidential", "public"))) == [
        'the class of "projects": confidential, lowered to public'
    ]
    assert lost(generation(""), made) == []


def test_the_text_of_a_test_is_searched_for_terms():
    """`[[test]]` sees what the gateway would see."""
    test = '[[test]]\nname = "t"\ngiven = { text = "red kite" }\nexpect = { only_zone = ["local", "eu"] }\n'
    limit = '[[limit]]\nname = "l"\nwhen = { class = ">= confidential" }\nonly = { zone = ["local", "eu"] }\n'
    (result,) = run_tests(generation(limit, TERMS + LAST_ROUTE + test))
    assert result.passed
    assert result.decision.limits == ("l",)


def test_lists_are_read_and_watched_beside_the_policies(tmp_path):
    """The folder's text files belong to it; a folder of lists alone holds no policy."""
    (tmp_path / "projects.txt").write_text(LIST)
    with pytest.raises(ConfigError, match="holds no policy"):
        read_folder(tmp_path)
    (tmp_path / "p.toml").write_text('policy = "p"\n' + LISTED + LAST_ROUTE)
    assert [path.name for path in policy_files(tmp_path)] == ["p.toml", "projects.txt"]
    assert Generation(read_folder(tmp_path), catalogue()).terms["projects"] == ("Blue Heron", "Red Kite")


def test_no_word_stands_in_what_is_logged_of_a_decision():
    """Kinds are named in logs and explanations, words never."""
    made = generation(TERMS)
    decision = decide(made, "p0", facts(found=("projects",), class_="confidential"), {})
    assert "heron" not in json.dumps(decided(facts(), decision, {})).lower()
