"""Conversations made shorter: what users said stays, the rest travels sealed, and comes back as the model's own words."""

import base64
import json
import subprocess
import sys
from contextlib import ExitStack

import conformance
import pytest
from front import Client
from hostile import answer, completion, error, hostile
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import KeyFile
from gateway.errors import Unavailable
from gateway.responses import compact
from gateway.responses.seal import PREFIX, Seal

TALK = [
    {"role": "user", "content": "I want a blue roof."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "And a red door."},
]


@pytest.fixture
def seal(tmp_path):
    return Seal(tmp_path / "state/compaction.key")


@given(text=st.text(st.characters()), tenant=st.text(max_size=5))
def test_what_is_sealed_opens_for_its_tenant_only(tmp_path_factory, text, tenant):
    """Any text comes back whole with its class, under the same key; another tenant gets nothing."""
    path = tmp_path_factory.getbasetemp() / "compaction.key"
    sealed = Seal(path).close(text, tenant=tenant, class_="internal")
    assert Seal(path).open(sealed, tenant=tenant) == (text, "internal")
    assert Seal(path).open(sealed, tenant=tenant + "x") is None
    assert sealed.isascii()


def test_what_was_changed_does_not_open(seal):
    """Every byte counts: none can be changed, cut or added; and what is no seal at all is no crash."""
    sealed = seal.close("a secret plan", tenant="a", class_="public")
    assert b"secret" not in base64.urlsafe_b64decode(sealed.removeprefix(PREFIX))
    raw = base64.urlsafe_b64decode(sealed.removeprefix(PREFIX))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        assert seal.open(PREFIX + base64.urlsafe_b64encode(changed).decode(), tenant="a") is None
    for bad in ("", PREFIX, PREFIX + "AAAA", PREFIX + "\ud800", sealed[:-4], PREFIX + "!" * 50):
        assert seal.open(bad, tenant="a") is None


def test_the_key_is_the_operators_alone(seal, tmp_path):
    """Its file can be read by nobody else; another key opens nothing; a file that holds no key is named."""
    sealed = seal.close("x", tenant="a", class_="public")
    path = tmp_path / "state/compaction.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Seal(tmp_path / "other.key").open(sealed, tenant="a") is None
    path.write_bytes(b"short")
    with pytest.raises(Unavailable, match=r"compaction\.key"):
        Seal(path).close("x", tenant="a", class_="public")


SEALER = """
import sys
from pathlib import Path
from gateway.responses.seal import Seal

print(Seal(Path(sys.argv[1])).close("x", tenant="a", class_="public"))
"""


def test_processes_that_begin_together_share_one_key(tmp_path):
    """Several front workers may need the key at once: one makes it, and what any of them seals all can open."""
    path = tmp_path / "compaction.key"
    command = [sys.executable, "-c", SEALER, str(path)]
    with ExitStack() as stack:
        running = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(4)]
        made = [process.communicate(timeout=300)[0].strip() for process in running]
    assert all(Seal(path).open(sealed, tenant="a") == ("x", "public") for sealed in made)
    assert [one.name for one in tmp_path.iterdir()] == ["compaction.key"]


async def post(made, payload, endpoint="responses/compact", **headers):
    return await Client(made, json.dumps(payload).encode(), endpoint=endpoint, **headers).answer()


def code_of(got):
    return got.status, json.loads(got.body)["error"]["code"], json.loads(got.body)["error"]["param"]


@pytest.fixture
async def server():
    async with hostile() as one:
        yield one


@pytest.fixture
def made(world, server):
    one = world(up={"base_url": server.base_url, "retries": 0})
    one.set_capabilities(("chat",))
    return one


async def test_a_model_must_be_named(made, server):
    """As OpenAI's description has it; the refusal names the parameter, and nothing is sent."""
    got = await post(made, {"input": TALK})
    assert (code_of(got), server.requests) == ((400, "missing_required_parameter", "model"), [])


async def test_a_conversation_is_compacted_and_goes_on(made, server):
    """The answer is what OpenAI describes; handed back, the seal is opened as the model's words, before the new ones."""
    server.scripts = [[answer(200, completion("They want a blue roof and a red door."))], [answer(200, completion("Sure."))]]
    got = await post(made, {"model": "m", "input": TALK, "instructions": "Be kind."})
    told = json.loads(got.body)
    conformance.check(told, "CompactResource")
    assert [item["type"] for item in told["output"]] == ["message", "message", "compaction"]
    assert [item["content"][0]["text"] for item in told["output"][:2]] == ["I want a blue roof.", "And a red door."]
    assert told["usage"]["output_tokens"] == made.records[0].usage.completion_tokens == 2
    asked = json.loads(server.requests[0][1])
    assert [one["role"] for one in asked["messages"]] == ["system", "user", "assistant", "user", "user"]
    assert asked["messages"][-1]["content"] == compact.ASK
    got = await post(made, {"model": "m", "input": [*told["output"], {"role": "user", "content": "Begin."}]}, "responses")
    messages = json.loads(server.requests[1][1])["messages"]
    assert (got.status, messages[-2]) == (200, {"role": "assistant", "content": "They want a blue roof and a red door."})
    assert messages[-1] == {"role": "user", "content": "Begin."}


async def test_a_stored_conversation_is_compacted_and_listed(made, server):
    """By its id; what goes on from the seal is stored with the seal, not with its text, and can be continued again."""
    server.scripts = [[answer(200, completion(text))] for text in ("Yes.", "The summary.", "Go on.", "Again.")]
    first = json.loads((await post(made, {"model": "m", "input": "A roof?"}, "responses")).body)
    told = json.loads((await post(made, {"model": "m", "previous_response_id": first["id"]})).body)
    assert [one["content"] for one in json.loads(server.requests[1][1])["messages"]][:2] == ["A roof?", "Yes."]
    after = json.loads((await post(made, {"model": "m", "input": told["output"]}, "responses")).body)
    listed = json.loads((await Client(made, endpoint=f"responses/{after['id']}/input_items", method="GET").answer()).body)
    assert {item["type"] for item in listed["data"]} == {"message", "compaction"}
    assert "summary" not in json.dumps(listed)
    assert (await post(made, {"model": "m", "input": "More", "previous_response_id": after["id"]}, "responses")).status == 200
    assert "The summary." in [one["content"] for one in json.loads(server.requests[3][1])["messages"]]


async def test_a_reference_to_a_compaction_is_opened_too(made, server):
    """A stored compaction item that a later request names by its id stands there as its text."""
    server.scripts = [[answer(200, completion(text))] for text in ("The summary.", "Go on.", "Again.")]
    item = json.loads((await post(made, {"model": "m", "input": TALK})).body)["output"][-1]
    await post(made, {"model": "m", "input": [item, {"role": "user", "content": "hi"}]}, "responses")
    named = {"type": "item_reference", "id": item["id"]}
    assert (await post(made, {"model": "m", "input": [named, {"role": "user", "content": "yo"}]}, "responses")).status == 200
    assert [one["content"] for one in json.loads(server.requests[2][1])["messages"]] == ["The summary.", "yo"]


async def test_the_class_travels_in_the_seal(made, server):
    """What goes on from a compacted internal conversation is internal."""
    server.scripts = [[answer(200, completion("Harmless."))], [answer(200, completion("Fine."))]]
    told = json.loads((await post(made, {"model": "m", "input": TALK}, x_gateway_class="internal")).body)
    await post(made, {"model": "m", "input": [told["output"][-1], {"role": "user", "content": "hi"}]}, "responses")
    assert [record.class_ for record in made.records] == ["internal", "internal"]


async def test_a_seal_is_not_taken_for_a_secret(made, server):
    """What is judged is the text in it: a harmless one stays public, and one that holds a card number does not."""
    texts = ["They talk about roofs, doors and " + "nothing else " * n for n in range(20)] + ["The card is 4111 1111 1111 1111."]
    server.scripts = [[answer(200, completion(said))] for text in texts for said in (text, "Fine.")]
    for _ in texts:
        told = json.loads((await post(made, {"model": "m", "input": TALK})).body)
        await post(made, {"model": "m", "input": [told["output"][-1], {"role": "user", "content": "hi"}]}, "responses")
    classes = [record.class_ for record in made.records[1::2]]
    assert set(classes[:-1]) == {"public"}
    assert classes[-1] != "public"


async def test_another_tenants_seal_is_refused(made, server):
    """Nobody opens what another was given, nor a seal that was changed; nothing is sent then."""
    server.scripts = [[answer(200, completion("Harmless."))]]
    item = json.loads((await post(made, {"model": "m", "input": TALK})).body)["output"][-1]
    changed = {**item, "encrypted_content": item["encrypted_content"][:-8] + "AAAAAAA="}
    assert code_of(await post(made, {"model": "m", "input": [changed]}, "responses")) == (
        400,
        "invalid_encrypted_content",
        "input",
    )
    made.key = KeyFile(made.keys._file.path).add("stranger", tenant="other")
    assert code_of(await post(made, {"model": "m", "input": [item]}, "responses")) == (400, "invalid_encrypted_content", "input")
    assert len(server.requests) == 1


BAD = {
    "stream": {"stream": True},
    "tools": {"tools": [{"type": "function", "name": "f"}]},
    "store": {"store": True},
    "input[0].type": {"input": [{"type": "compaction", "encrypted_content": "from elsewhere"}]},
}


@pytest.mark.parametrize(("param", "fields"), BAD.items(), ids=BAD)
async def test_what_compaction_does_not_take_is_refused_by_name(made, server, param, fields):
    """Parameters that the API does not have, and a seal of another maker's."""
    got = await post(made, {"model": "m", "input": TALK, **fields})
    assert (code_of(got)[::2], server.requests) == ((400, param), [])


@pytest.mark.parametrize("broken", [error(500), answer(200, completion(""))], ids=["error", "empty"])
async def test_without_a_summary_there_is_no_compaction(made, server, broken):
    """An upstream that fails, or writes nothing, is told as such; there is one record."""
    server.scripts = [[broken]]
    got = await post(made, {"model": "m", "input": TALK})
    assert (got.status >= 500, len(made.records), made.records[0].ending, made.idle()) == (True, 1, "failed", True)
