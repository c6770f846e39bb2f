"""Token counts: exact with a vocabulary, bounded in error without one, and never from the network."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken_ext.openai_public as published
from hypothesis import given
from hypothesis import strategies as st
from policy.worlds import facts, generation, option

from gateway.errors import ConfigError
from gateway.policy import sizes
from gateway.policy.decide import decide
from gateway.tokens import _SHA256, _URL, TOKENS_PER_TEXT, Counter, size_estimate

ROOT = Path(__file__).parent.parent

# Text and its length in o200k_base, counted once with the published vocabulary.
COUNTED = {
    "english": (
        "The committee will meet again on Thursday to discuss the remaining proposals, and everyone is welcome. " * 3, 55),
    "code": (
        "def area(width: float) -> float:\n    if width < 0:\n        raise ValueError(width)\n    return width ** 2\n" * 3, 87),
    "digits": ("3141592653, 2718281828, 1414213562, 1618033988, 5772156649\n" * 3, 87),
    "chinese": ("委员会将于星期四再次开会、讨论其余提案、欢迎大家参加。" * 3, 57),
    "japanese": ("委員会は木曜日に再び会合を開き、残りの提案について話し合います。" * 3, 78),
    "russian": ("Комитет снова соберётся в четверг, чтобы обсудить оставшиеся предложения. " * 3, 55),
}  # fmt: skip

vocabulary = pytest.mark.skipif(
    not (Path(os.environ.get("TIKTOKEN_CACHE_DIR", "/nonexistent")) / "fb374d419588a4632f3f557e76b4b70aebbca790").exists(),
    reason="needs TIKTOKEN_CACHE_DIR with o200k_base",
)


def test_a_folder_without_the_vocabulary_is_refused(tmp_path):
    """A configured folder that lacks the default vocabulary stops the start and says which file belongs where."""
    with pytest.raises(ConfigError, match=r"fb374d419588a4632f3f557e76b4b70aebbca790: No such file.*put https://.*o200k_base"):
        Counter(tmp_path)


def test_a_wrong_vocabulary_is_refused_and_left_in_place(tmp_path):
    """A file with another hash, which tiktoken would delete and fetch anew, is refused before tiktoken sees it."""
    path = tmp_path / hashlib.sha1(_URL.format("o200k_base").encode()).hexdigest()
    path.write_text("aGVsbG8= 0\n")
    with pytest.raises(ConfigError, match="is not o200k_base"):
        Counter(tmp_path)
    assert path.read_text() == "aGVsbG8= 0\n"


def test_the_hashes_are_tiktokens_own():
    """The hashes checked here are those the installed tiktoken expects, so that it never finds a reason to fetch."""
    source = inspect.getsource(published)
    assert all(sha256 in source and _URL.format(name) in source for name, sha256 in _SHA256.items())


def test_without_a_folder_tiktoken_is_not_imported():
    """A front worker without a vocabulary does not pay for tiktoken."""
    script = (
        "import sys\nfrom gateway.tokens import Counter\nCounter(None).count('x', 'gpt-4o')\nprint('tiktoken' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("kind", COUNTED)
def test_the_estimate_is_near(kind):
    """Without a vocabulary a count is within 25 % on ordinary text of each kind, and says that it is an estimate."""
    text, exact = COUNTED[kind]
    tokens, estimated = Counter(None).count(text, "gpt-4o")
    assert estimated
    assert abs(tokens / exact - 1) <= 0.25


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("times", [1, 400])
def test_the_size_bounds_hold_the_true_size(kind, times):
    """The band of a size estimate holds the true count, also when a long text is only sampled."""
    text, exact = COUNTED[kind]
    estimate = size_estimate([text] * times)
    assert estimate.low <= exact * times <= estimate.high
    assert estimate.low <= estimate.tokens <= estimate.high


@given(st.lists(st.text(max_size=300), max_size=4))
def test_an_estimate_is_ordered_and_possible(texts):
    """For any texts: 0 <= low <= tokens <= high, and no more than a token a byte beside the messages' frame."""
    estimate = size_estimate(texts)
    assert 0 <= estimate.low <= estimate.tokens <= estimate.high
    size = len("\n".join(texts).encode("utf-8", "replace"))
    assert estimate.tokens <= 2.3 * size + 3 * len(texts)


@given(st.text())
def test_a_count_is_at_least_one_for_any_text(text):
    """Text that is not empty counts at least one token; lone surrogates do not break the count."""
    tokens, _ = Counter(None).count(text, "x")
    assert tokens >= bool(text)
    assert Counter(None).count(text + "\ud800", "x")[0] >= 1


@vocabulary
def test_counts_are_exact_for_known_models_only():
    """With the vocabulary OpenAI's models are counted exactly, also by route; others by o200k_base, as an estimate."""
    counter = Counter(Path(os.environ["TIKTOKEN_CACHE_DIR"]))
    for text, exact in COUNTED.values():
        assert counter.count(text, "gpt-4o") == counter.count(text, "openai/gpt-4o-2024-11-20") == (exact, False)
        assert counter.count(text, "local/smollm2") == (exact, True)
    assert counter.count("<|endoftext|>", "gpt-4o")[0] > 1
    assert counter.count("hello", "gpt2")[1]


@vocabulary
@pytest.mark.parametrize(("spare", "served"), [(0, True), (-1, False)])
def test_near_a_limit_a_prompt_is_counted_to_the_token(spare, served):
    """The estimate's band holds the limit, and the true count of OpenAI's models decides on which side of it a prompt is."""
    counter = Counter(Path(os.environ["TIKTOKEN_CACHE_DIR"]))
    for text, exact in COUNTED.values():
        tokens = exact + TOKENS_PER_TEXT
        limit = f'[[limit]]\nname = "s"\nwhen = {{ prompt_tokens = "> {tokens + spare}" }}\nnever = {{ zone = "local" }}\n'
        made = generation(limit, options=[option("up", "gpt-4o"), option("up", "gpt-4.1-mini")])
        size = size_estimate([text])
        asked = facts(prompt_tokens=size.tokens, prompt_tokens_low=size.low, prompt_tokens_high=size.high)
        assert sizes.near_a_limit(made, asked, dict)
        counted = sizes.exact(asked, [text], ["gpt-4o", "gpt-4.1-mini"], counter.count)
        assert counted.prompt_tokens_high == tokens
        assert bool(decide(made, "p0", counted, {}).candidates) is served
