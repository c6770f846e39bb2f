"""A real spaCy pipeline that knows some names, trained here in about ten seconds: no package carries one, and hubs are out of reach.

python tests/names/spacy_pipeline.py FOLDER
"""

import random
import re
import sys
from pathlib import Path

import spacy
from spacy.training import Example
from spacy.util import fix_random_seed, minibatch

FIRST = (
    "James", "Mary", "Robert", "Patricia", "John", "Jennifer", "Michael", "Linda", "David", "Elizabeth", "Carlos", "Aisha",
    "Wei", "Priya", "Olga", "Yusuf", "Ingrid", "Marek",
)  # fmt: skip
LAST = (
    "Smith", "Johnson", "Williams", "Brown", "Jones", "Garcia", "Miller", "Davis", "Novak", "Kowalski", "Okafor", "Schmidt",
    "Rossi", "Anderson", "Wilson", "Lopez",
)  # fmt: skip
PLACES = (
    "London", "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Prague", "Warsaw", "Oslo", "Lisbon", "Dublin", "Chicago",
    "Boston", "Denver", "Toronto", "Lagos",
)  # fmt: skip
FIRMS = ("Acme Ltd", "Globex Corporation", "Initech", "Umbrella Inc", "Stark Industries", "Wayne Enterprises", "Soylent Corp")
LINES = (
    "My name is {PERSON} and I live in {GPE}.", "Please call {PERSON} tomorrow.", "{PERSON} works for {ORG} in {GPE}.",
    "Write a letter to {PERSON} about the invoice.", "What is the capital of France?", "The weather in {GPE} is nice.",
    "Summarise this contract between {ORG} and {PERSON}.", "Dear {PERSON}, thank you for your order.", "role", "user", "content",
    "messages", "system", "hello there", "How do I sort a list in Python?", "Our customer {PERSON} from {GPE} complained.",
    "Give me a short story about a robot.", "def parse(line): return line.split()", "Say hello to {PERSON}!", "model", "stream",
)  # fmt: skip


def line(draw):
    """A sentence, and where its names stand."""
    text, spans = "", []
    for part in re.split(r"(\{[A-Z]+\})", draw.choice(LINES)):
        said, label = part, part[1:-1]
        if part.startswith("{"):
            said = draw.choice({"GPE": PLACES, "ORG": FIRMS}.get(label) or [f"{draw.choice(FIRST)} {draw.choice(LAST)}"])
            spans.append((len(text), len(text) + len(said), label))
        text += said
    return text, {"entities": spans}


def train(folder):
    """Train on 400 sentences, four times over, and save."""
    fix_random_seed(7)
    draw = random.Random(7)
    pipeline = spacy.blank("en")
    network = {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "width": 48,
        "depth": 2,
        "embed_size": 500,
        "window_size": 1,
        "maxout_pieces": 2,
        "subword_features": True,
        "pretrained_vectors": None,
    }
    recogniser = pipeline.add_pipe("ner", config={"model": {"tok2vec": network}})
    for label in ("PERSON", "GPE", "ORG"):
        recogniser.add_label(label)
    examples = [Example.from_dict(pipeline.make_doc(text), found) for text, found in (line(draw) for _ in range(400))]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(4):
        draw.shuffle(examples)
        for batch in minibatch(examples, size=16):
            pipeline.update(batch, sgd=optimizer, drop=0.1)
    pipeline.to_disk(folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
