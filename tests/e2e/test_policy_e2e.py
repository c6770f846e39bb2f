"""Policies of a running gateway: tried out, explained afterwards, applied and taken back; every process and log line real."""

import json
import threading

import httpx
import pytest
from gateways import Gateway, until

CONFIG = """
[upstreams.home]
kind = "echo"
zone = "local"
takes_up_to = "restricted"
[upstreams.far]
kind = "echo"
zone = "us"
takes_up_to = "restricted"
[models.echo]
candidates = [{ upstream = "home" }, { upstream = "far" }]
[cache]
semantic = false
"""
CLASSES = '[classes]\nconfidential = ["email"]\n'
ROUTE = '[[route]]\nname = "all"\nuse = ["far", "home"]\n'
LIMIT = '[[limit]]\nname = "mail stays"\nwhen = { class = ">= confidential" }\nnever = { zone = "us" }\n'
OPEN = 'policy = "cost"\n' + CLASSES + ROUTE
LIMITED = OPEN + LIMIT
MAIL = {"model": "echo", "messages": [{"role": "user", "content": "quicksilver for ada@example.org"}]}
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}


@pytest.fixture
def gateway(tmp_path):
    """A gateway that keeps mail addresses at home."""
    with Gateway(tmp_path, CONFIG, policies={"all.toml": LIMITED}) as gateway:
        yield gateway.until_up("home/echo").until_up("far/echo")


def route_of(gateway, asked=MAIL, **headers):
    """The upstream that answered."""
    return gateway.post("chat/completions", json=asked, headers=headers).headers["x-gateway-route"]


def explained(gateway, request_id):
    """What `gateway explain` makes of the log, once the line is written."""

    def done():
        said = gateway.cli("explain", request_id, "--json")
        return said.stdout if said.returncode == 0 else None

    return until(done, f"{request_id} explained")


def in_force(gateway):
    """Hashes of what was in force, oldest first."""
    return [row["hash"] for row in json.loads(gateway.cli("policy", "history", "--json").stdout)]


def test_a_dry_run_is_what_then_happens_and_what_the_log_tells_later(gateway):
    """Header, dry run and `gateway explain REQUEST_ID` tell one decision, also after the policy has changed; none tells text."""
    key = gateway.cli("keys", "new", "ops", "--scope", "admin").stdout.strip()
    dry = gateway.post("route", json=MAIL, headers={"authorization": f"Bearer {key}"})
    order = [(one["option"], one["place"], one["removed_by"]) for one in dry.json()["candidates"]]
    assert order == [("home/echo", 1, ""), ("far/echo", None, "limit")]
    sent = gateway.post("chat/completions", json=MAIL, headers={"x-gateway-explain": "1"})
    assert (sent.headers["x-gateway-route"], json.loads(sent.headers["x-gateway-explain"])["order"]) == (
        "home/echo",
        ["home/echo"],
    )
    (gateway.policies / "all.toml").write_text(LIMITED.replace('["far", "home"]', '["home"]'))
    until(lambda: len(in_force(gateway)) == 2, "the changed policy in force")
    told = explained(gateway, dry.headers["x-request-id"])
    assert json.loads(told) == dry.json()
    later = json.loads(explained(gateway, sent.headers["x-request-id"]))
    assert later["candidates"] == dry.json()["candidates"]
    assert later["decision"]["policy"] == sent.headers["x-gateway-policy"]
    shown = gateway.cli("explain", sent.headers["x-request-id"]).stdout
    assert 'limit "mail stays" (policies/all.toml:' in shown
    assert not [place for place in (dry.text, told, shown, str(sent.headers)) if "quicksilver" in place or "ada@" in place]
    unknown = gateway.cli("explain", "req_000000000000000000000000")
    assert (unknown.returncode, "no line has the request id" in unknown.stderr) == (2, True)


def test_a_replay_of_the_real_log_tells_a_new_flow_before_it_is_made(gateway, tmp_path):
    """Under the same policies every decision is the same; under looser ones the exit status is 2, with a picture of the flows."""
    for asked in (MAIL, HELLO, HELLO):
        gateway.post("chat/completions", json=asked)
    assert gateway.stop() == 0
    same = json.loads(gateway.cli("policy", "replay", "--json").stdout)
    assert (same["decisions"], same["same"], same["new_flows"], same["damaged"]) == (3, 3, [], 0)
    assert (same["estimated"], same["not_replayable"]) == (0, {})
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "all.toml").write_text(OPEN)
    found = gateway.cli("policy", "replay", "--policy", str(draft), "--png", str(tmp_path / "flows.png"))
    assert (found.returncode, found.stdout.startswith("NEW FLOWS")) == (2, True)
    assert (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")
    (request_id,) = {one["request_id"] for one in gateway.lines() if one["event"] == "route.decided" and one["facts"]["found"]}
    assert request_id in found.stdout


def test_apply_and_rollback_are_in_force_in_the_running_gateway_when_they_say_so(gateway):
    """Neither returns before the gateway has taken the change; no restart, and no request fails in between."""
    assert route_of(gateway) == "home/echo"
    (gateway.policies / "all.toml").write_text(OPEN)
    until(lambda: "would lose" in gateway.said, "the loss named")
    assert route_of(gateway) == "home/echo"
    applied = gateway.cli("policy", "apply", "--yes")
    assert (applied.returncode, "are in force\n" in applied.stdout, 'loses the limit "mail stays"' in applied.stdout) == (
        0,
        True,
        True,
    )
    until(lambda: route_of(gateway) == "far/echo", "the open policy in the front worker")
    assert "are in force already" in gateway.cli("policy", "apply", "--yes").stdout
    back = gateway.cli("policy", "rollback", "1", "--yes")
    assert (back.returncode, "policies/all.toml changed" in back.stdout, "are in force\n" in back.stdout) == (0, True, True)
    until(lambda: route_of(gateway) == "home/echo", "the first policy in the front worker")
    assert (gateway.policies / "all.toml").read_text() == LIMITED
    first, opened, again = in_force(gateway)
    assert (first, first != opened) == (again, True)
    assert {one["status"] for one in gateway.records()} == {200}


def test_a_rollback_that_loses_a_limit_asks_first(gateway):
    """To a running gateway too: without a yes nothing changes, and the status says so."""
    (gateway.policies / "all.toml").write_text(LIMITED + LIMIT.replace("mail stays", "twice"))
    until(lambda: len(in_force(gateway)) == 2, "the second limit in force")
    refused = gateway.cli("policy", "rollback", "1", stdin="n\n")
    assert (refused.returncode, 'loses the limit "twice"' in refused.stdout) == (130, True)
    assert "twice" in (gateway.policies / "all.toml").read_text()
    assert gateway.cli("policy", "rollback", "1", stdin="y\n").returncode == 0
    until(lambda: len(in_force(gateway)) == 3, "the first policies again")


def test_a_thousand_saves_fail_no_request(gateway):
    """While a policy is saved a thousand times, whole and in halves, every request is answered, and the last save comes into force."""
    statuses = set()
    over = threading.Event()

    def ask():
        with httpx.Client(headers={"authorization": f"Bearer {gateway.key}"}, timeout=60, verify=False) as client:
            while not over.is_set():
                statuses.add(client.post(f"{gateway.url}/v1/chat/completions", json=HELLO).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    file = gateway.policies / "all.toml"
    for number in range(999):
        text = LIMITED + f'[[limit]]\nname = "cap"\nmax_cost = {number}\n'
        file.write_text(text if number % 3 else text[: number % len(text)])
    file.write_text(LIMITED + '[[limit]]\nname = "the last"\ncache = "off"\n')
    key = gateway.cli("keys", "new", "ops", "--scope", "admin").stdout.strip()
    limits = lambda: gateway.post("route", json=HELLO, headers={"authorization": f"Bearer {key}"}).json()["decision"]["limits"]  # noqa: E731
    until(lambda: limits() == ["the last"], "the last save in force")
    over.set()
    asking.join(90)
    assert statuses == {200}
