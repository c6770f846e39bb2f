"""Responses as a user of the official SDK sees them: the real local model and a chat-only API behind one real gateway."""

import openai
import pytest
from gateways import ECHO, ECHO_POLICY, Gateway, until

pytestmark = pytest.mark.weights

LOCAL = "smollm2-135m"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
STAY = {"cache-control": "no-store"}


@pytest.fixture
def client(demo):
    """The real SDK, pointed at the demo, its connections closed afterwards."""
    with demo.client() as made:
        yield made


def test_the_local_model_answers_whole_and_streamed(client):
    """The same words in either shape, with usage, in OpenAI's order of events."""
    asked = {
        "model": LOCAL,
        "input": "What is the capital of France?",
        "temperature": 0,
        "max_output_tokens": 20,
        "extra_headers": STAY,
    }
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    assert "Paris" in whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", f"response.{whole.status}")
    assert whole.usage.output_tokens > 0


def test_a_conversation_is_kept_read_listed_and_deleted(client):
    """Three turns by id, whole and streamed; then the response is read, its input listed, and it is forgotten."""
    first = client.responses.create(model=LOCAL, input="My name is Alice.", max_output_tokens=12, temperature=0)
    asked = {"model": LOCAL, "input": "What is my name?", "max_output_tokens": 12, "temperature": 0}
    *_, last = client.responses.create(**asked, previous_response_id=first.id, stream=True)
    second = last.response
    third = client.responses.create(model=LOCAL, input="Thanks.", previous_response_id=second.id, max_output_tokens=5)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert third.usage.input_tokens > second.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    (item,) = client.responses.input_items.list(second.id).data
    assert item.content[0].text == "What is my name?"
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as lost:
        client.responses.create(model=LOCAL, input="And?", previous_response_id=third.id)
    assert lost.value.code == "previous_response_not_found"


def test_the_record_and_the_tokens_are_in_the_log(demo, client):
    """One record under `responses`, with the local route, and a line for every token."""
    raw = client.responses.with_raw_response.create(
        model=LOCAL, input="Count to five.", max_output_tokens=8, temperature=0, extra_headers=STAY
    )
    id_ = raw.headers["x-request-id"]
    record = demo.record(id_)
    assert (record["endpoint"], record["ending"], record["route"]) == ("responses", "complete", f"local/{LOCAL}")
    tokens = until(lambda: [line for line in demo.lines(id_) if line["event"] == "token"], "the tokens")
    assert sum(line["n_tokens"] for line in tokens) == raw.parse().usage.output_tokens


def test_a_chat_answer_is_found_again_as_a_response(client):
    """The cache does not care which dialect asked first."""
    question = "Write one short sentence about rivers."
    chat = client.chat.completions.create(
        model=LOCAL, messages=[{"role": "user", "content": question}], temperature=0, max_completion_tokens=30
    )
    raw = client.responses.with_raw_response.create(model=LOCAL, input=question, temperature=0, max_output_tokens=30)
    assert raw.headers["x-gateway-cache"].startswith("hit-")
    assert raw.parse().output_text == chat.choices[0].message.content


REFUSED = {
    "tools": {"tools": [TOOL]},
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "background": {"background": True},
    "previous_response_id": {"previous_response_id": "resp_nobody"},
    "input[0].id": {"input": [{"type": "item_reference", "id": "msg_nobody"}]},
    "temperature": {"temperature": 3},
    "max_output_tokens": {"max_output_tokens": 0},
    "reasoning.effort": {"reasoning": {"effort": "high"}},
    "text.verbosity": {"text": {"verbosity": "low"}},
    "top_logprobs": {"top_logprobs": 2},
}


@pytest.mark.parametrize(("place", "fields"), REFUSED.items(), ids=REFUSED)
def test_what_the_local_model_cannot_do_is_refused_by_name(client, place, fields):
    """400 with the place, or with the capability that is lacking; never a silent drop."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": LOCAL, "input": "hello", **fields})
    error = caught.value
    assert "max_completion_tokens" not in error.message
    assert error.param == place or (error.code == "unsupported_by_model" and place.split("_")[-1] in error.message)


@pytest.mark.parametrize("store", [True, openai.omit])
def test_a_secret_is_never_stored(demo, client, store):
    """A card number: `store: true` is refused by name, and unsaid it is answered here, unstored."""
    asked = {"model": LOCAL, "input": "Is 4111 1111 1111 1111 a card?", "max_output_tokens": 5, "store": store}
    if store is True:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**asked)
        assert (caught.value.code, caught.value.param) == ("store_forbidden", "store")
        return
    told = client.responses.create(**asked)
    assert told.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(told.id)
    folder = demo.folder / "state"
    assert not any(b"4111 1111" in path.read_bytes() for path in folder.glob("stored_responses*"))


def test_a_codex_like_stream_through_a_chat_api(client):
    """Streamed, unstored, with tools and encrypted reasoning asked for; served by an API that speaks chat only."""
    events = list(
        client.responses.create(
            model="gpt-4o-mini",
            instructions="You are a coding agent.",
            input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "list my files"}]}],
            tools=[TOOL],
            tool_choice="auto",
            parallel_tool_calls=False,
            store=False,
            stream=True,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="session-1",
        )
    )
    assert (events[-1].type, events[-1].response.output_text) == ("response.completed", "list my files")
    assert events[-1].response.store is False


def test_input_tokens_are_counted_without_asking_a_model(client):
    """The SDK's own method, for a model that speaks chat only."""
    count = client.responses.input_tokens.count(model=LOCAL, input="How many tokens is this?")
    assert 3 < count.input_tokens < 30


def test_a_conversation_is_compacted_and_goes_on(client):
    """The SDK's `compact`, by the local model; its items are accepted back, and nobody can read them on the way."""
    talk = [
        {"role": "user", "content": "My dog is called Rex."},
        {"role": "assistant", "content": "What a fine name."},
        {"role": "user", "content": "He is brown."},
    ]
    compacted = client.responses.compact(model=LOCAL, input=talk)
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    # The SDK knows messages of the model only among output items; OpenAI's own example holds a user's.
    given = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
    asked = {"model": LOCAL, "max_output_tokens": 10, "temperature": 0}
    told = client.responses.create(**asked, input=[*given, {"role": "user", "content": "Who is Rex?"}])
    assert told.output_text
    changed = [*given[:-1], {**given[-1], "encrypted_content": given[-1]["encrypted_content"][:-4] + "AAA="}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=LOCAL, input=changed)
    assert caught.value.code == "invalid_encrypted_content"


@pytest.mark.redis
def test_two_gateways_continue_each_others_responses(tmp_path, redis_server):
    """With one Redis a response is stored for both: the other continues, reads and deletes it; without Redis 503 says what to do."""
    url, process = redis_server
    config = ECHO.replace("semantic = false", 'semantic = false\nredis_url_env = "TEST_REDIS_URL"')
    options = {"policies": {"all.toml": ECHO_POLICY}, "env": {"TEST_REDIS_URL": url}}
    with (
        Gateway(tmp_path / "a", config, **options) as first_gateway,
        Gateway(tmp_path / "b", config, **options) as second_gateway,
        first_gateway.client() as one,
        second_gateway.client() as other,
    ):
        first = one.responses.create(model="echo", input="hello")
        second = other.responses.create(model="echo", input="more", previous_response_id=first.id)
        assert one.responses.retrieve(second.id).output_text == "more"
        other.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            one.responses.retrieve(first.id)
        assert not list(tmp_path.rglob("stored_responses*"))
        process.kill()
        process.wait()
        with pytest.raises(openai.InternalServerError) as caught:
            one.responses.retrieve(second.id)
        assert (caught.value.status_code, caught.value.code) == (503, "state_unavailable")
        told = one.responses.create(model="echo", input="still here")
        assert (told.output_text, told.store) == ("still here", False)
