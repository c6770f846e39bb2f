"""The fact `task`: a guess that never fails, is always the same, and costs nothing where nobody asks."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import tasks, wire
from gateway.facts import Facts, judge

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "text", "input", "system", "prompt", "type"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def asked(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Write a Python function that merges two dictionaries.", "code"),
        ("What is 17 * 23?", "math"),
        ("Translate the following text into French: the shop opens at nine.", "translation"),
        (
            "Please summarize the following article in three sentences:\nThe council met. It rained. The plan was adopted.",
            "summary",
        ),
        ("Extract all names and dates as JSON: Ann met Bob on 3 May.", "extraction"),
        ("Write a short poem about the sea.", "writing"),
        ("Who invented the printing press?", "question"),
        ("hello, how are you?", "chat"),
        ("把下面的句子翻译成英文: 会议推迟了。", "translation"),
    ],
)
def test_plain_requests_are_told_apart(text, task):
    """What any reader would say of these, the model says too; docs/policy.md tells how often it is wrong."""
    assert tasks.task_of(asked(text)) == task


@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt", "system", "instructions"]), JSON))
@settings(max_examples=300, deadline=None)
def test_every_body_has_one_of_the_listed_tasks(data):
    """Whatever JSON a client sends, there is an answer out of the closed list, and the same answer twice."""
    assert tasks.task_of(data) in tasks.TASKS
    assert tasks.task_of(data) == tasks.task_of(json.loads(json.dumps(data)))


@pytest.mark.parametrize("data", [{}, {"input": [1, 2, 3]}, {"messages": []}, asked("")])
def test_without_words_of_a_user_it_is_other(data):
    """Token ids, files and empty messages tell nothing."""
    assert tasks.task_of(data) == "other"


def test_a_long_text_is_read_at_its_ends_only():
    """What is asked stands at one end; the middle changes neither the guess nor the time."""
    head, tail = "Summarize: " + "a b. " * 200, "c d. " * 100
    assert tasks.features(head + "x" * 10**6 + tail) == tasks.features(head + "secret " * 10 + tail)
    assert len(tasks.features("word%d " * 10**5)) < 600


def test_the_last_message_of_the_user_counts_and_the_system_prompt_beside_it():
    """Earlier turns do not; a system prompt may alone say what is to be done with a bare text."""
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "first"}, {"role": "assistant", "content": "a"}]
    parts = [{"type": "text", "text": "last"}, {"type": "image_url", "image_url": {"url": "u"}}]
    assert tasks.wording({"messages": [*turns, {"role": "user", "content": parts}]}) == ("last", "S")
    assert tasks.wording({"input": "now", "instructions": "S"}) == ("now", "S")
    assert tasks.wording({"prompt": ["one", "two"]}) == ("one\ntwo", "")


def test_the_task_is_worked_out_only_where_somebody_asks():
    """Otherwise it is empty, and no time is spent."""
    request = wire.read("chat/completions", json.dumps(asked("hello", model="m")).encode())
    common = {
        "classes": {},
        "max_scan_chars": 100,
        "tenant": "",
        "key_label": "",
        "class_floor": "public",
        "headers": {},
        "seed": "",
        "now": 0,
    }
    assert judge(request, **common).task == "" == Facts(endpoint="", model="").task
    assert judge(request, **common, with_task=True).task == "chat"


def test_a_damaged_model_is_refused(tmp_path, monkeypatch):
    """Weights that do not fit the code are never used."""
    monkeypatch.setattr(tasks, "FILE", tmp_path / "tasks.bin")
    (tmp_path / "tasks.bin").write_bytes(tasks.packed(("code",), b"\x80" * 5, (0,), 0))
    with pytest.raises(ValueError, match="another version"):
        tasks.load.__wrapped__()
