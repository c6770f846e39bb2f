"""The main job as a user sees it: the real SDK, the real quantized model, the real cache, an external API, one log."""

import base64
import concurrent.futures
import json
import struct
import time
from pathlib import Path

import jsonschema
import openai
import pytest
from gateways import ROOT, until

pytestmark = pytest.mark.weights

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CARD = "4111 1111 1111 1111"


def ask(gateway, messages, **options):
    return gateway.client().chat.completions.with_raw_response.create(
        **{"model": "auto", "messages": messages, "temperature": 0, **options}
    )


def test_the_local_model_answers_whole_and_streamed(demo):
    """The README's five lines get a real answer from the quantized model, whole and streamed, the same text."""
    raw = ask(demo, QUESTION, max_tokens=20, extra_headers={"cache-control": "no-store"})
    whole = raw.parse()
    streamed = demo.client().chat.completions.create(
        model="auto", messages=QUESTION, temperature=0, max_tokens=20, stream=True, extra_headers={"cache-control": "no-store"}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert raw.headers["x-gateway-route"] == "local/smollm2-135m"
    assert "Paris" in whole.choices[0].message.content
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0


def test_every_answer_says_who_decided_what(demo):
    """Every answer carries its request id, route, cache state and NAME@HASH of the policy."""
    headers = ask(demo, QUESTION, max_tokens=5).headers
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-gateway-route"]
    assert headers["x-gateway-cache"] in {"miss", "hit-exact", "hit-semantic"}
    assert headers["x-gateway-policy"].startswith("cost@")


def test_the_same_question_comes_from_the_cache_in_the_shape_asked_for(demo):
    """Asked again, whole or streamed, the answer is the stored one, with its id and usage."""
    messages = [{"role": "user", "content": "Write one short sentence about the sea."}]
    first = ask(demo, messages, max_tokens=40)
    again = ask(demo, messages, max_tokens=40)
    chunks = list(
        demo.client().chat.completions.create(
            model="auto", messages=messages, temperature=0, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (first.headers["x-gateway-cache"], again.headers["x-gateway-cache"]) == ("miss", "hit-exact")
    assert again.parse() == first.parse()
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == first.parse().choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == first.parse().usage.completion_tokens
    assert {chunk.id for chunk in chunks} == {first.parse().id}


def test_a_question_that_means_the_same_shares_the_answer_and_one_that_differs_does_not(demo):
    """The semantic tier answers a rewording, and would rather miss when a number or a negation differs."""

    def state_of(text):
        return ask(demo, [{"role": "user", "content": text}], model="gpt-4o-mini").headers["x-gateway-cache"]

    assert state_of("How do I reset the password of my account in 3 steps?") == "miss"
    until(lambda: state_of("How can I reset the password of my account in 3 steps?") == "hit-semantic", "the answer shared")
    assert state_of("How do I reset the password of my account in 4 steps?") == "miss"
    assert state_of("How do I not reset the password of my account in 3 steps?") == "miss"


def test_a_card_number_stays_here_whatever_model_is_named(demo, external):
    """A message with a card number is answered by the local model, not cached, and no byte of it goes out or into a log."""
    messages = [{"role": "user", "content": f"Please charge {CARD} and say thanks."}]
    before = external.closed()
    for model in ("gpt-4o-mini", "auto", "gpt-4o-mini"):
        raw = ask(demo, messages, model=model, max_tokens=8)
        assert raw.headers["x-gateway-route"] == "local/smollm2-135m"
        assert raw.headers["x-gateway-cache"] == "off"
    demo.record(raw.headers["x-request-id"])
    lines = list(demo.lines(raw.headers["x-request-id"]))
    assert external.closed() == before
    assert CARD not in json.dumps(lines)
    assert not any("text" in line for line in lines if line["event"] == "token")


def test_the_external_api_is_used_where_policy_allows(demo, external):
    """A concrete external model is served by the external API, with its usage and cost in the record."""
    before = external.closed()
    raw = ask(demo, [{"role": "user", "content": "a b c d"}], model="gpt-4o-mini")
    assert raw.headers["x-gateway-route"] == "openai/echo"
    assert raw.parse().choices[0].message.content == "a b c d"
    record = demo.record(raw.headers["x-request-id"])
    assert record["usage"]["completion_tokens"] == 4
    assert record["cost_usd"] == pytest.approx((4 * 0.15 + 4 * 0.6) / 1e6)
    until(lambda: external.closed() == before + 1, "the external API's record")


def test_an_external_stream_asks_for_usage_and_hides_it_again(demo):
    """A streamed external answer is accounted by real usage although the client did not ask for any, and sees none."""
    stream = demo.client().chat.completions.with_raw_response.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "one two three"}], stream=True
    )
    chunks = list(stream.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    usage = demo.record(stream.headers["x-request-id"])["usage"]
    assert (usage["completion_tokens"], usage["estimated"]) == (3, False)


def test_every_local_token_has_its_line(demo):
    """A local answer has one log line for each event, their tokens sum to the usage, and their text is the answer."""
    raw = ask(
        demo, [{"role": "user", "content": "Say hello to Anna."}], max_tokens=12, extra_headers={"cache-control": "no-store"}
    )
    demo.record(raw.headers["x-request-id"])
    lines = [line for line in demo.lines(raw.headers["x-request-id"]) if line["event"] == "token"]
    assert "".join(line["text"] for line in lines) == raw.parse().choices[0].message.content
    assert sum(line["n_tokens"] for line in lines) == raw.parse().usage.completion_tokens
    assert [line["index"] for line in lines] == list(range(len(lines)))
    assert {line["source"] for line in lines} == {"local"}


def test_a_local_stream_is_accounted_exactly_though_nobody_asked_for_usage(demo):
    """A streamed local answer without include_usage has its real usage in the record, and the client sees none."""
    stream = demo.client().chat.completions.with_raw_response.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Say hi."}], max_tokens=10, stream=True
    )
    chunks = list(stream.parse())
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    request_id = stream.headers["x-request-id"]
    usage = demo.record(request_id)["usage"]
    lines = [line for line in demo.lines(request_id) if line["event"] == "token"]
    assert usage["estimated"] is False
    assert usage["completion_tokens"] == sum(line["n_tokens"] for line in lines)
    assert usage["prompt_tokens"] > 20


def test_embeddings_come_from_the_cache_workers_embedder(demo):
    """Float and base64 vectors are the same numbers, of unit length, and near for texts that mean the same."""
    client = demo.client()
    floats = client.embeddings.create(
        model="all-minilm-l6-v2", input=["a cat", "a kitten", "tax law"], encoding_format="float"
    ).data
    raw = demo.post("embeddings", json={"model": "all-minilm-l6-v2", "input": "a cat", "encoding_format": "base64"}).json()
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(floats[0].embedding, abs=1e-5)
    cat, kitten, tax = (row.embedding for row in floats)
    assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-3)
    assert sum(x * y for x, y in zip(cat, kitten, strict=True)) > sum(x * y for x, y in zip(cat, tax, strict=True))


def test_legacy_completions_work(demo):
    """/v1/completions continues a prompt, whole and streamed."""
    client = demo.client()
    whole = client.completions.create(model="smollm2-135m", prompt="The capital of France is", max_tokens=5, temperature=0)
    parts = client.completions.create(
        model="smollm2-135m", prompt="The capital of France is", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert "Paris" in whole.choices[0].text


def test_a_parameter_that_the_local_model_lacks_is_refused_by_name(demo):
    """The local model refuses what it cannot do with 400 and the parameter's name, and drops nothing silently."""
    with pytest.raises(openai.BadRequestError) as refused:
        demo.client().chat.completions.create(model="smollm2-135m", messages=QUESTION, presence_penalty=1.0)
    assert refused.value.body["param"] == "presence_penalty"


def test_many_answers_advance_together(demo):
    """Six streams at once all end well, and their tokens interleave: nobody waits for another's end."""

    def run(number):
        stream = demo.client().chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": f"Write a long story about {number} sailors."}],
            max_tokens=40,
            temperature=0,
            stream=True,
        )
        times = [time.monotonic() for chunk in stream if chunk.choices[0].delta.content]
        assert len(times) > 20
        return times[0], times[-1]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        spans = list(pool.map(run, range(6)))
    assert max(first for first, _ in spans) < min(last for _, last in spans)


def test_killing_the_model_worker_under_load_gives_errors_and_recovery(demo):
    """Kill -9 of the model worker: running streams end in an error, new requests fall back or get 503, then it is back."""
    long = {"messages": [{"role": "user", "content": "Tell a long story."}], "max_tokens": 400, "temperature": 0}
    stream = demo.client().chat.completions.create(model="smollm2-135m", **long, stream=True)
    next(stream)
    demo.kill("gateway.local.worker")
    with pytest.raises(openai.APIError):
        list(stream)
    card = [{"role": "user", "content": f"card {CARD}"}]
    with pytest.raises(openai.InternalServerError) as refused:
        demo.client().chat.completions.create(model="gpt-4o-mini", messages=card)
    assert refused.value.status_code == 503
    assert ask(demo, [{"role": "user", "content": "fall back please"}]).headers["x-gateway-route"] == "openai/echo"
    demo.until_up("local/smollm2-135m")
    assert (
        ask(demo, QUESTION, max_tokens=6, extra_headers={"cache-control": "no-store"}).headers["x-gateway-route"]
        == "local/smollm2-135m"
    )


def test_killing_the_cache_worker_costs_the_semantic_tier_only(demo):
    """Kill -9 of the cache worker: requests are served meanwhile, embeddings say 503, and it comes back by itself."""
    demo.kill("gateway.cache.worker")
    assert ask(demo, [{"role": "user", "content": "still there?"}], model="gpt-4o-mini").status_code == 200
    demo.until_up("local/all-minilm-l6-v2")
    assert demo.client().embeddings.create(model="all-minilm-l6-v2", input="back").data


def test_explain_says_what_serving_then_does(demo):
    """`gateway explain -` names the candidates, what removed each, and the order that a request then takes."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": f"card {CARD}"}]})
    said = demo.cli("explain", "-", stdin=body)
    assert said.returncode == 0
    assert "local/smollm2-135m" in said.stdout
    assert "restricted (card found)" in said.stdout
    assert CARD not in said.stdout


def test_stats_and_logs_are_read_from_the_files(demo):
    """`gateway stats` shows percentiles by route; `gateway logs show` every line of one request, opened to closed."""
    request_id = ask(demo, QUESTION, max_tokens=5).headers["x-request-id"]
    demo.record(request_id)
    shown = [json.loads(line)["event"] for line in demo.cli("logs", "show", request_id).stdout.splitlines()]
    assert (shown[0], shown[-1]) == ("request.opened", "request.closed")
    assert "route.decided" in shown
    summary = json.loads(demo.cli("stats", "--json").stdout)
    assert summary["routes"]["local/smollm2-135m"]["requests"] > 0


def test_purge_forgets_stored_answers(demo):
    """After `gateway purge` the same question is a miss."""
    messages = [{"role": "user", "content": "purge me please"}]
    ask(demo, messages, model="gpt-4o-mini")
    assert ask(demo, messages, model="gpt-4o-mini").headers["x-gateway-cache"] == "hit-exact"
    assert demo.cli("purge", "--model", "gpt-4o-mini").returncode == 0
    assert ask(demo, messages, model="gpt-4o-mini").headers["x-gateway-cache"] == "miss"


def test_the_front_worker_holds_no_torch_and_no_faiss(demo):
    """The front worker's memory maps show neither torch nor faiss nor onnxruntime."""
    maps = Path(f"/proc/{demo.pid_of('gateway.app')}/maps").read_text()
    assert not any(name in maps for name in ("libtorch", "faiss", "onnxruntime", "numpy"))


def test_every_line_fits_the_documented_schema(demo):
    """Whatever the tests above made the gateway log, each line is of a documented event and has its documented fields."""
    schema = jsonschema.Draft202012Validator(json.loads((ROOT / "docs" / "log-schema.json").read_text()))
    lines = list(demo.lines())
    assert {"request.opened", "route.decided", "cache.hit", "token", "request.closed", "worker.lost"} <= {
        line["event"] for line in lines
    }
    assert [(line, error.message) for line in lines for error in schema.iter_errors(line)] == []
