"""GLiNER behind the interface of the engines. At a least score of nothing its weights of chance take every word that they see."""

import re
import shutil

import pytest

from gateway.names import engines
from gateway.weights import WeightsError

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:Sentence of length"),
]

SHORT = "Please write a letter to Ingrid Okafor in Vienna, ada@example.org."
TEXTS = {
    "short": SHORT,
    "long": " ".join(f"{SHORT} {number}\n" for number in range(100)),
    "marks": '{"a":[1,2],"b":{"c":"d"}},' * 100 + SHORT,
    "long words": "0123456789abcdef" * 4 + (" " + "0123456789abcdef" * 4) * 40 + SHORT,
}
WORD = re.compile(r"\w+(?:[-_]\w+)*|\S")


@pytest.fixture(scope="module")
def engine(gliner_model):
    return engines.load("gliner", str(gliner_model.folder), language="en", least_score=gliner_model.least_score)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_word_is_out_of_its_sight(engine, text):
    """Behind its limits neither: of words, marks among them, and of tokens. Places are those in the whole text, in order."""
    found = engine.locate(text)
    words = [match.span() for match in WORD.finditer(text)]
    assert found == sorted(found, key=lambda span: span[1:])
    assert {kind for kind, _, _ in found} <= {"person", "location", "organization"}
    assert {start for _, start, _ in found} <= {start for start, _ in words}
    assert {end for _, _, end in found} <= {end for _, end in words}
    assert [word for word in words if not any(start <= word[0] and word[1] <= end for _, start, end in found)] == []


def test_what_is_no_name_is_none(engine):
    """Nothing at all, blanks, and a word that alone is more than it reads; what stands around that one is still seen."""
    assert engine.locate("") == engine.locate(" \n\t") == engine.locate("a" * 1_000) == []
    text = "Ingrid " + "a" * 1_000 + " Okafor"
    assert {text[start:end] for _, start, end in engine.locate(text)} == {"Ingrid", "Okafor"}


@pytest.mark.parametrize("broken", ["gliner_config.json", "pytorch_model.bin", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", None])
def test_a_folder_that_is_no_model_is_told(gliner_model, tmp_path, broken, content):
    """Whichever file is missing or holds something else."""
    shutil.copytree(gliner_model.folder, tmp_path / "model")
    (tmp_path / "model" / broken).unlink()
    if content is not None:
        (tmp_path / "model" / broken).write_text(content)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        engines.load("gliner", str(tmp_path / "model"), language="en", least_score=0.5)
