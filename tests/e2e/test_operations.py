"""What ops does to a running gateway, and what goes wrong around it: no model needed, every process real."""

import concurrent.futures
import json
import re
import signal
import socket
from pathlib import Path

import httpx
import openai
import pytest
from gateways import ECHO, ECHO_POLICY, Gateway, small_disk, until

HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}

LIMITED = ECHO_POLICY + '[[limit]]\nname = "no tools"\nwhen = { tools = true }\nnever = { upstream = "echo" }\n'
TOOLS = {**HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}


def test_health_answers_at_once_and_ready_when_a_route_can_serve(common):
    """/health and /ready answer without a key."""
    assert common.get("health").json() == {"status": "ok"}
    assert common.get("ready").status_code == 200


def test_a_second_start_names_the_way_to_a_key_and_does_not_show_one(tmp_path):
    """The key is made and shown at the first start only; later starts name `gateway keys new`, and the first key still works."""
    with Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY}) as gateway:
        key = gateway.key
        assert gateway.stop() == 0
    again = Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY})
    with again:
        assert key not in again.said
        assert "gateway keys new" in again.said
        again.key = key
        assert again.post("chat/completions", json=HELLO).status_code == 200


def test_keys_are_made_and_revoked_while_it_runs(common):
    """A new key works at once, a revoked one is refused at once, and no key stands in the key file or the log."""
    key = common.cli("keys", "new", "second").stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    assert common.post("chat/completions", json=HELLO, headers=headers).status_code == 200
    assert common.cli("keys", "revoke", "second").returncode == 0
    assert common.post("chat/completions", json=HELLO, headers=headers).status_code == 401
    everything = b"".join(path.read_bytes() for path in (common.folder / "state").rglob("*.json*") if path.name != "server.json")
    assert key.encode() not in everything
    assert common.key.encode() not in everything


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer gw-00000000-wrong"}, {"authorization": "Basic x"}]
)
def test_no_key_and_a_wrong_key_are_401_in_the_envelope(common, headers):
    """Without a valid key there is an OpenAI error and a record, and nothing else."""
    answer = common.post("chat/completions", json=HELLO, headers=headers)
    assert answer.status_code == 401
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert common.record(answer.headers["x-request-id"])["status"] == 401


BAD_BODIES = {
    "malformed": b'{"model": "echo", ',
    "empty": b"",
    "array": b"[]",
    "twice": b'{"model":"echo","model":"other","messages":[]}',
    "deep": b'{"model":"echo","messages":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "nan": b'{"model":"echo","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "utf-16": '{"model":"echo"}'.encode("utf-16"),
    "model is a number": b'{"model":5,"messages":[{"role":"user","content":"x"}]}',
    "messages is text": b'{"model":"echo","messages":"hi"}',
    "stream is text": b'{"model":"echo","messages":[{"role":"user","content":"x"}],"stream":"yes"}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_is_400_in_the_envelope(common, body):
    """Whatever the body is, a client's mistake is a 400 with message, type, param and code."""
    answer = common.post("chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_mistakes_have_their_status_and_the_envelope(common):
    """Unknown path 404, unknown model 404, wrong method 405, wrong media 415, too large 413: all in OpenAI's shape."""
    auth = {"authorization": f"Bearer {common.key}"}
    answers = {
        404: common.get("v1/nothing", headers=auth),
        405: common.get("v1/chat/completions", headers=auth),
        413: common.post("chat/completions", content=b" " * (33 * 1024 * 1024), headers={"content-type": "application/json"}),
        415: common.post(
            "chat/completions", content=b"model=echo", headers={"content-type": "application/x-www-form-urlencoded"}
        ),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(openai.NotFoundError) as unknown:
        common.client().chat.completions.create(model="ecko", messages=HELLO["messages"])
    assert unknown.value.body["code"] == "model_not_found"
    assert 'did you mean "echo"' in unknown.value.body["message"]


def test_a_policy_change_takes_effect_without_restart_and_a_bad_one_never(echo):
    """A saved policy is in force within seconds; a broken one changes nothing and is named on the terminal with its place."""
    assert echo.post("chat/completions", json=TOOLS).status_code == 200
    (echo.policies / "all.toml").write_text(LIMITED)
    until(lambda: echo.post("chat/completions", json=TOOLS).status_code == 403, "the limit in force")
    (echo.policies / "all.toml").write_text(LIMITED.replace("when = { tools", "when = { tols"))
    until(lambda: "all.toml:9:" in echo.said, "the typo named")
    assert 'did you mean "tools"?' in echo.said
    assert echo.post("chat/completions", json=TOOLS).status_code == 403
    broken = until(lambda: (said := echo.ready())["policy_files"] != "ok" and said, "the broken file in /ready")
    assert broken["status"] == "ready"
    assert broken["policy_files"].startswith("broken at policies/all.toml:9:10; the last good ones stay in force")
    (echo.policies / "all.toml").write_text(LIMITED)
    until(lambda: echo.ready()["policy_files"] == "ok", "the mended file in /ready")


def test_losing_a_limit_waits_for_apply_even_over_a_restart(tmp_path):
    """A folder that loses a named limit, or a whole file, is not in force until `gateway policy apply`."""
    gateway = Gateway(tmp_path, ECHO, policies={"all.toml": LIMITED})
    with gateway:
        key = gateway.key
        (gateway.policies / "all.toml").write_text(ECHO_POLICY)
        until(lambda: "would lose" in gateway.said, "the loss named")
        until(lambda: "gateway policy apply" in gateway.ready()["policy_files"], "what waits in /ready")
        assert gateway.post("chat/completions", json=TOOLS).status_code == 403
    again = Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY})
    with again:
        again.key = key
        assert again.post("chat/completions", json=TOOLS).status_code == 403
        assert "would lose 1 of what limits, and waits for: gateway policy apply" in again.ready()["policy_files"]
        assert again.ready()["status"] == "ready"
        assert again.cli("policy", "apply", "--yes").returncode == 0
        until(lambda: again.post("chat/completions", json=TOOLS).status_code == 200, "the approved folder in force")
        until(lambda: again.ready()["policy_files"] == "ok", "nothing that waits in /ready")


def test_sigterm_drains(echo):
    """SIGTERM during a stream: the stream ends whole, the exit status is 0, and its record is in the log."""
    body = {**HELLO, "messages": [{"role": "user", "content": "word " * 300}], "stream": True}
    with httpx.stream(
        "POST", f"{echo.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {echo.key}"}
    ) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        echo.process.terminate()
        text += "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")
    assert echo.process.wait(60) == 0
    assert echo.record(answer.headers["x-request-id"])["ending"] == "complete"


def test_a_killed_front_worker_is_back_and_its_requests_fail_loudly(echo):
    """Kill -9 of the front worker: the client sees a cut connection, the next request is served by its successor."""
    pid = echo.kill("gateway.app")
    until(lambda: echo.pid_of("gateway.app") not in {None, pid}, "another front worker")
    assert until(lambda: _status(echo), "an answer") == 200


def _status(gateway):
    try:
        return gateway.post("chat/completions", json=HELLO).status_code
    except httpx.TransportError:
        return None


def test_workers_end_with_a_killed_supervisor(echo):
    """Kill -9 of the supervisor leaves no process behind."""
    pid = until(lambda: echo.pid_of("gateway.app"), "the front worker")
    echo.process.send_signal(signal.SIGKILL)
    until(lambda: not _alive(pid), "the front worker to end")


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_in_use_is_named(tmp_path):
    """A taken port: exit status 2 and a line that says how to mend it."""
    gateway = Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", gateway.port))
        taken.listen()
        said = gateway.cli("serve")
    assert said.returncode == 2
    assert "cannot listen on 127.0.0.1" in said.stderr
    assert "server.port" in said.stderr


def test_a_log_folder_that_cannot_be_written_is_named(tmp_path):
    """With a log folder that cannot be written the gateway does not start, and names the folder; nothing is served unlogged."""
    (tmp_path / "file").write_text("")
    config = ECHO + '[logs]\nfolder = "file/logs"\n'
    said = Gateway(tmp_path, config, policies={"all.toml": ECHO_POLICY}).cli("serve")
    assert said.returncode == 2
    assert "file/logs" in said.stderr


def test_missing_environment_and_typos_are_named_by_check(tmp_path):
    """`gateway check` names a missing key variable, a typo with its place, and leaves with status 2."""
    config = ECHO.replace("takes_up_to", "takes_up_too") + '[[keys]]\nlabel = "a"\nkey_env = "NOT_SET_ANYWHERE"\n'
    said = Gateway(tmp_path, config, policies={"all.toml": ECHO_POLICY}).cli("check")
    assert said.returncode == 2
    assert 'config.toml:9:1: unknown key "takes_up_too"; did you mean "takes_up_to"?' in said.stderr
    fixed = Gateway(tmp_path, config.replace("takes_up_too", "takes_up_to"), policies={"all.toml": ECHO_POLICY}).cli("check")
    assert "NOT_SET_ANYWHERE is not set" in fixed.stderr


def test_missing_weights_do_not_stop_the_gateway(tmp_path):
    """Without weights the server starts, says what to run, and a request that only the model may serve gets a 503 that says so too."""
    config = (
        ECHO
        + '[upstreams.local]\nkind = "local"\n[local_models.smollm2-135m]\nkind = "chat"\n[models.smollm2-135m]\ncandidates = [{ upstream = "local" }]\n'
    )
    with Gateway(tmp_path, config, policies={"all.toml": ECHO_POLICY}) as gateway:
        until(lambda: "gateway models pull smollm2-135m" in gateway.said, "the command to run")
        answer = gateway.post("chat/completions", json={**HELLO, "model": "smollm2-135m"})
        assert answer.status_code == 503
        assert "gateway models pull smollm2-135m" in answer.json()["error"]["message"]
        assert gateway.post("chat/completions", json=HELLO).status_code == 200


def test_an_upstream_key_of_ours_is_refused(tmp_path):
    """A gateway key in an upstream's variable means two variables were mixed up: the upstream is off and says why."""
    config = (
        ECHO
        + '[upstreams.openai]\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nkey_env = "MIXED_UP"\n[models.gpt-4o-mini]\ncandidates = [{ upstream = "openai" }]\n'
    )
    with Gateway(tmp_path, config, policies={"all.toml": ECHO_POLICY}, env={"MIXED_UP": "gw-12345678-ours"}) as gateway:
        assert "holds a key of this gateway" in gateway.said
        answer = gateway.post("chat/completions", json={**HELLO, "model": "gpt-4o-mini"})
        assert answer.status_code == 503
        assert "MIXED_UP" in answer.json()["error"]["message"]


def test_metrics_count_what_happened(common):
    """/metrics has requests, tokens, cache outcomes, latency and upstream health in Prometheus' words."""

    def hits():
        found = re.search(r'^gateway_cache_total\{outcome="hit-exact"\} (\S+)$', common.get("metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    asked = {**HELLO, "messages": [{"role": "user", "content": "counted"}]}
    assert common.post("chat/completions", json=asked).headers["x-gateway-cache"] == "miss"
    before = hits()
    assert common.post("chat/completions", json=asked).headers["x-gateway-cache"] == "hit-exact"
    assert hits() == before + 1
    page = common.get("metrics").text
    assert 'gateway_upstream_up{upstream="echo"} 1.0' in page
    for name in (
        "gateway_requests_total",
        "gateway_tokens_total",
        "gateway_time_to_first_token_seconds_bucket",
        "gateway_overhead_seconds_bucket",
    ):
        assert name in page


def test_concurrent_streams_do_not_mix(common):
    """64 streams at once each get their own words, whole."""
    client = common.client()

    def run(number):
        words = " ".join(f"s{number}w{index}" for index in range(40))
        messages = [{"role": "user", "content": words}]
        raw = client.chat.completions.with_raw_response.create(model="echo", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == words
        return raw.headers["x-request-id"]

    with client, concurrent.futures.ThreadPoolExecutor(64) as pool:
        ids = list(pool.map(run, range(64)))
    assert {common.record(id_)["ending"] for id_ in ids} == {"complete"}


def test_headers_can_be_hidden(tmp_path):
    """With expose_headers = false no x-gateway-* header goes out; x-request-id stays."""
    gateway = Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY})
    gateway.config.write_text(gateway.config.read_text().replace("drain_s = 10.0", "drain_s = 10.0\nexpose_headers = false"))
    with gateway:
        headers = gateway.post("chat/completions", json=HELLO).headers
        assert not [name for name in headers if name.startswith("x-gateway-")]
        assert headers["x-request-id"]


def test_the_log_can_go_to_standard_output(tmp_path):
    """With logs.stdout every line is JSON on standard output, and nothing else is there."""
    gateway = Gateway(tmp_path, ECHO + "[logs]\nstdout = true\n", policies={"all.toml": ECHO_POLICY})
    with (tmp_path / "out").open("wb") as out:
        gateway.stdout = out
        with gateway:
            request_id = gateway.post("chat/completions", json=HELLO).headers["x-request-id"]
    lines = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [line["event"] for line in lines if line.get("request_id") == request_id][-1] == "request.closed"


@pytest.mark.parametrize("running", [True, False])
def test_a_purge_reaches_every_place_whether_or_not_a_gateway_runs(tmp_path, running):
    """What a tenant said is gone from stored responses, cache and log, counted first by a dry run, with an audit line of no words."""
    with Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY}) as gateway:
        said = "the heron plan"
        id_ = gateway.client().responses.create(model="echo", input=said).id
        assert (
            gateway.post("chat/completions", json={**HELLO, "messages": [{"role": "user", "content": said}]}).status_code == 200
        )
        until(lambda: len(gateway.records()) == 2, "both records")
        if not running:
            gateway.stop()
        dry = gateway.cli("purge", "--tenant", "default", "--subject", "Heron", "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        count = json.loads(dry.stdout)
        done = gateway.cli("purge", "--tenant", "default", "--subject", "Heron", "--json")
        assert done.returncode == 0, done.stderr
        assert (done.returncode, json.loads(done.stdout)["counts"]) == (0, count["counts"])
        assert count["counts"]["responses"] == 1
        assert count["counts"]["log_lines"] > 0
        if running:
            assert gateway.post(f"responses/{id_}", json={}).status_code in {404, 405}
            assert gateway.post("chat/completions", json=HELLO).status_code == 200
            until(lambda: len(gateway.records()) == 4, "the later records")
    audits = [line for line in gateway.lines() if line["event"] == "data.purged"]
    assert {line["selector"]["subject"] for line in audits} == {True}
    assert len(audits) == (2 if running else 1)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert b"heron" not in kept.lower()


LONG = {"model": "echo", "messages": [{"role": "user", "content": "word " * 1000}], "stream": True}


def streams_until(gateway, over):
    """Streams, four at a time, until `over(answers)` says so; all (status, request id, text)."""
    answers = []

    def ask(number):
        while not over(answers):
            got = gateway.post("chat/completions", json={**LONG, "seed": number + 4 * len(answers), "temperature": 0.5})
            answers.append((got.status_code, got.headers["x-request-id"], got.text))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    return answers


def test_a_full_disk_under_streams_refuses_new_ones_and_loses_no_line(tmp_path):
    """With on_full = "refuse": what runs ends whole, what comes is told why; once there is room, every token stands in the log."""
    with small_disk(tmp_path / "state" / "logs", "1m") as resize:
        with Gateway(tmp_path, ECHO, policies={"all.toml": ECHO_POLICY}) as gateway:
            answers = streams_until(gateway, lambda answers: any(status == 503 for status, *_ in answers))
            served = {id_: text for status, id_, text in answers if status == 200}
            refused = [text for status, _, text in answers if status != 200]
            assert {json.loads(text)["error"]["code"] for text in refused} == {"log_unavailable"}
            assert all(text.endswith("data: [DONE]\n\n") for text in served.values())
            resize("64m")
            until(lambda: gateway.post("chat/completions", json=HELLO).status_code == 200, "served again")
        for id_ in served:
            lines = list(gateway.lines(id_))
            assert [line["index"] for line in lines if line["event"] == "token"] == list(range(1000))
            assert [line["ending"] for line in lines if line["event"] == "request.closed"] == ["complete"]
        assert "log.failed" in gateway.said
        assert "log.healed" in {line["event"] for line in gateway.lines()}


def test_a_full_disk_under_streams_is_served_through_where_lines_may_be_dropped(tmp_path):
    """With on_full = "drop": every stream ends whole, nobody is refused, and what was lost is counted and told."""
    config = ECHO + '[logs]\non_full = "drop"\nqueue_limit = 2000\n'

    def lost(gateway):
        found = re.search(r"^gateway_log_dropped_total (\S+)$", gateway.get("metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    with small_disk(tmp_path / "state" / "logs", "1m") as resize:
        with Gateway(tmp_path, config, policies={"all.toml": ECHO_POLICY}) as gateway:
            answers = streams_until(gateway, lambda answers: len(answers) > 3 and lost(gateway) > 0)
            assert {status for status, *_ in answers} == {200}
            assert all(text.endswith("data: [DONE]\n\n") for *_, text in answers)
            resize("64m")
            counted = lost(gateway)
            until(lambda: any(line["event"] == "log.dropped" for line in gateway.lines()), "the loss told")
            id_ = gateway.post("chat/completions", json=HELLO).headers["x-request-id"]
            assert gateway.record(id_)["ending"] == "complete"
        assert sum(line["count"] for line in gateway.lines() if line["event"] == "log.dropped") >= counted
