"""Two front workers on one address with a real Redis: they answer as one gateway, and one of them may die."""

import json
import re
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import httpx
import psutil
import pytest
from gateways import ECHO, ECHO_POLICY, Gateway, seconds_until, until

pytestmark = pytest.mark.redis

CONFIG = ECHO.replace("semantic = false", 'semantic = false\nredis_url_env = "TEST_REDIS_URL"')
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
TOOLS = {**HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}
LIMITED = ECHO_POLICY + '[[limit]]\nname = "no tools"\nwhen = { tools = true }\nnever = { upstream = "echo" }\n'
FRONTS = ("front0", "front1")


def two_workers(folder, redis_url, config=CONFIG, **options):
    """A gateway with two front workers that is not started yet."""
    gateway = Gateway(folder, config, policies={"all.toml": ECHO_POLICY}, env={"TEST_REDIS_URL": redis_url}, **options)
    gateway.config.write_text(gateway.config.read_text().replace("drain_s", "workers = 2\ndrain_s"))
    return gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, redis_server):
    """Two front workers that both serve; after each test here they do so again, under the same policies."""
    with two_workers(tmp_path_factory.mktemp("two"), redis_server[0]) as gateway:
        yield until_both_serve(gateway)


@pytest.fixture
def own(tmp_path, redis_server):
    """Two front workers for one test, which need not leave them as they were."""
    with two_workers(tmp_path, redis_server[0]) as gateway:
        yield until_both_serve(gateway)


def until_both_serve(gateway):
    states = dict.fromkeys(FRONTS, "ready")
    until(lambda: _workers(gateway) == states, f"both workers: {gateway.said}")
    return gateway


def _workers(gateway):
    try:
        return gateway.ready()["workers"]
    except (httpx.TransportError, KeyError):
        return None


def fronts(gateway):
    """The front workers as processes."""
    children = psutil.Process(gateway.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE and "gateway.app" in child.cmdline()]


def worker_of(gateway, request_id):
    """The front worker that wrote this request's record, by its log segment."""

    def find():
        for path in (gateway.folder / "state" / "logs").glob("*.jsonl"):
            for line in path.read_bytes().splitlines():
                if request_id.encode() in line and b"request.closed" in line:
                    return path.name.partition("-")[0]
        return None

    return until(find, f"the record of {request_id}")


class Connection(httpx.Client):
    """One connection that stays open, and so stays with one front worker."""

    def __init__(self, gateway):
        super().__init__(
            base_url=gateway.url,
            headers={"authorization": f"Bearer {gateway.key}"},
            limits=httpx.Limits(max_connections=1),
            timeout=60,
            verify=False,
        )
        self.worker = worker_of(gateway, self.ask().headers["x-request-id"])

    def ask(self, body=HELLO, **options):
        return self.post("/v1/chat/completions", json=body, **options)


@pytest.fixture
def both(gateway):
    """A connection to each front worker, by its name."""
    with connected(gateway) as found:
        yield found


@pytest.fixture
def own_both(own):
    """A connection to each front worker of `own`, by its name."""
    with connected(own) as found:
        yield found


@contextmanager
def connected(gateway):
    found, rest = {}, []
    while set(found) != set(FRONTS):
        assert len(rest) < 60, "sixty connections in a row came to the same worker"
        connection = Connection(gateway)
        if found.setdefault(connection.worker, connection) is not connection:
            rest.append(connection)
    yield found
    for connection in (*found.values(), *rest):
        connection.close()


def counted(connection):
    """The requests that the metrics page has counted, as this connection's worker shows it."""
    page = until(lambda: (got := connection.get("/metrics")).status_code == 200 and got.text, "the page of metrics")
    return sum(float(value) for value in re.findall(r"^gateway_requests_total\{.*\} (\S+)$", page, re.MULTILINE))


def test_whichever_worker_is_asked_speaks_for_both(gateway, both):
    """Metrics of each worker are the sum of all requests sent, /ready names both, stats and logs read both workers' files."""
    before = gateway.closed()
    for connection in both.values():
        for _ in range(7):
            assert connection.ask().status_code == 200
    assert before >= 2
    for connection in both.values():
        until(lambda c=connection: counted(c) == before + 14, "all requests counted")
        assert connection.get("/ready").json()["workers"] == dict.fromkeys(FRONTS, "ready")
    until(lambda: len(gateway.records()) == before + 14, "all records")
    assert json.loads(gateway.cli("stats", "--json").stdout)["total"]["requests"] == before + 14
    for connection in both.values():
        id_ = connection.ask().headers["x-request-id"]
        worker_of(gateway, id_)
        assert "request.closed" in gateway.cli("logs", "show", id_).stdout


def test_a_saved_policy_and_an_applied_loss_are_in_force_in_both_within_two_seconds(gateway, both):
    """A saved limit, and later the approved loss of it, reach each worker as one generation with one number."""

    def statuses():
        return {connection.ask(TOOLS).status_code for connection in both.values()}

    def save():
        (gateway.policies / "all.toml").write_text(LIMITED)
        return seconds_until(lambda: statuses() == {403}, "the limit in force")

    def lose():
        warned = gateway.said.count("would lose")
        (gateway.policies / "all.toml").write_text(ECHO_POLICY)
        until(lambda: gateway.said.count("would lose") > warned, "the loss named")
        assert statuses() == {403}
        assert gateway.cli("policy", "apply", "--yes").returncode == 0
        return seconds_until(lambda: statuses() == {200}, "the approved folder in force")

    took_s = []
    # A machine that stalls delays one round, a gateway that is late every one.
    while len(took_s) < 3 and (not took_s or took_s[-1] > 2):
        took_s.append(max(save(), lose()))
    assert min(took_s) <= 2
    told = [(line["number"], line["policy"]) for line in gateway.lines() if line["event"] == "policy.activated"]
    assert set(Counter(told).values()) == {2}
    assert len(set(told)) == len({number for number, _ in told}) >= 2


def test_a_revoked_key_is_refused_by_both_at_once(gateway, both):
    """After `gateway keys revoke` has returned no worker takes the key again."""
    key = gateway.cli("keys", "new", "second").stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    assert [connection.ask(headers=headers).status_code for connection in both.values()] == [200, 200]
    assert gateway.cli("keys", "revoke", "second").returncode == 0
    assert [connection.ask(headers=headers).status_code for connection in both.values()] == [401, 401]


def test_a_purge_reaches_the_memory_of_both(gateway, both):
    """What each worker holds in its own memory is forgotten after one `gateway purge`, whichever worker that came to."""
    asked = {name: {**HELLO, "messages": [{"role": "user", "content": f"only {name} was asked this"}]} for name in FRONTS}
    for name, connection in both.items():
        assert connection.ask(asked[name]).headers["x-gateway-cache"] == "miss"
        assert connection.ask(asked[name]).headers["x-gateway-cache"] == "hit-exact"
    assert gateway.cli("purge", "--all").returncode == 0
    for name, connection in both.items():
        until(lambda c=connection, body=asked[name]: c.ask(body).headers["x-gateway-cache"] == "miss", "a miss")


def test_a_stored_response_is_found_through_either(gateway, both):
    """What one worker stored the other gives back, and what one deleted is gone for both."""
    id_ = both["front0"].post("/v1/responses", json={"model": "echo", "input": "keep this"}).json()["id"]
    assert [connection.get(f"/v1/responses/{id_}").status_code for connection in both.values()] == [200, 200]
    assert both["front1"].delete(f"/v1/responses/{id_}").status_code == 200
    assert [connection.get(f"/v1/responses/{id_}").status_code for connection in both.values()] == [404, 404]


def asked_as_clients_ask(gateway):
    """SDKs try again where a connection is reset, as the kernel does to those that wait for a worker whose listener closes."""
    try:
        return gateway.post("chat/completions", json=HELLO).status_code
    except httpx.TransportError:
        return gateway.post("chat/completions", json=HELLO).status_code


def test_a_worker_that_is_told_to_end_is_replaced_without_a_failure(gateway, both):
    """SIGTERM of one worker in the middle of a stream: the stream ends whole, new connections are served, nothing is uncounted."""
    body = {**HELLO, "messages": [{"role": "user", "content": "word " * 3000}], "stream": True}
    process = process_of(gateway, both["front1"])
    with both["front1"].stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_text()
        text = next(pieces)
        process.terminate()
        until(lambda: "front1: finishes its requests" in gateway.said, "the end begun")
        assert [asked_as_clients_ask(gateway) for _ in range(20)] == [200] * 20
        text += "".join(pieces)
    assert text.endswith("data: [DONE]\n\n")
    process.wait(60)
    until_both_serve(gateway)
    until(lambda: counted(both["front0"]) == len(gateway.records()), "as many records as were counted")


def test_a_port_that_another_gateway_shares_among_its_workers_is_taken(gateway, tmp_path):
    """A second gateway on the same port is refused, and does not silently get half of the first one's connections."""
    second = two_workers(tmp_path / "second", gateway.env["TEST_REDIS_URL"])
    second.config.write_text(second.config.read_text().replace(f"port = {second.port}", f"port = {gateway.port}"))
    said = second.cli("serve")
    assert said.returncode == 2
    assert "cannot listen on 127.0.0.1" in said.stderr


LOST_S = 1.0
"""What the log may lose of a killed process: its writer takes what came every 20 ms (docs/logs.md); the rest is the kill, and this
test's own threads, which note the time of an answer when they have their turn."""


def test_a_killed_worker_costs_its_own_requests_only(gateway, both):
    """Kill -9 of one worker under load: what else was asked is answered and recorded, no sum falls, and it comes back."""
    answered, failed, stop = {}, [], threading.Event()

    def load(number):
        while not stop.is_set():
            try:
                answer = gateway.post("chat/completions", json={**HELLO, "seed": number})
                answered[answer.headers["x-request-id"]] = time.monotonic()
            except httpx.TransportError as error:
                failed.append(error)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answered) > 20 and min(answered.values()) + LOST_S < time.monotonic(), "answers that must be in the log")
    before = counted(both["front0"])
    victim = process_of(gateway, both["front1"])
    victim.kill()
    killed_at = time.monotonic()
    assert both["front0"].ask().status_code == 200
    until(lambda: "front1: killed by signal 9" in gateway.said, "the death noticed")
    assert counted(both["front0"]) >= before
    at_death = len(answered)
    until(lambda: len(answered) > at_death + 20, "load after the death")
    until_both_serve(gateway)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(failed) <= len(threads)
    sure = {id_ for id_, at in answered.items() if not killed_at - LOST_S < at < killed_at + LOST_S}
    assert min(answered.values()) < killed_at - LOST_S
    until(lambda: sure <= {record["request_id"] for record in gateway.records()}, "every record")
    until(lambda: before <= counted(both["front0"]) <= len(gateway.records()), "as many records as were counted")


def process_of(gateway, connection):
    """The front worker that holds the other end of a connection."""
    _, port = connection.get("/health").extensions["network_stream"].get_extra_info("client_addr")
    return next(one for one in fronts(gateway) if any(tcp.raddr and tcp.raddr.port == port for tcp in one.net_connections("tcp")))


def test_new_connections_do_not_wait_for_a_worker_that_is_stuck_or_ends_again_and_again(own, own_both):
    """While one worker is stopped, and while it is killed at each start, the other serves every new connection."""
    process = process_of(own, own_both["front1"])
    process.suspend()
    until(lambda: "front1: does not answer" in own.said, "the silence noticed")
    assert [own.post("chat/completions", json=HELLO).status_code for _ in range(20)] == [200] * 20
    assert own_both["front0"].get("/ready").json()["workers"]["front1"].startswith("does not answer")
    process.resume()
    until_both_serve(own)
    other = process_of(own, own_both["front0"])
    for _ in range(3):
        victim = until(lambda: next((one for one in fronts(own) if one.pid != other.pid), None), "a successor")
        victim.kill()
        assert own.post("chat/completions", json=HELLO).status_code == 200
    assert "starting again in 0.8 s" in until(lambda: "0.8 s" in own.said and own.said, "back-off")
    assert own_both["front0"].ask().status_code == 200


def test_sigterm_drains_both(own, own_both):
    """SIGTERM during a stream of each worker: both streams end whole, the status is 0, and each has its record."""
    body = {**HELLO, "messages": [{"role": "user", "content": "word " * 300}], "stream": True, "seed": 7}
    with (
        own_both["front0"].stream("POST", "/v1/chat/completions", json=body) as first,
        own_both["front1"].stream("POST", "/v1/chat/completions", json={**body, "seed": 8}) as second,
    ):
        pieces = [first.iter_text(), second.iter_text()]
        texts = [next(piece) for piece in pieces]
        own.process.send_signal(signal.SIGTERM)
        texts = [text + "".join(piece) for text, piece in zip(texts, pieces, strict=True)]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert own.process.wait(60) == 0
    for answer in (first, second):
        assert own.record(answer.headers["x-request-id"])["ending"] == "complete"


def test_several_workers_without_redis_are_refused_with_the_mend(tmp_path):
    """`gateway check` and `gateway serve` name the line, the reason and both ways out, and start nothing."""
    gateway = two_workers(tmp_path, "", ECHO)
    for command in ("check", "serve"):
        said = gateway.cli(command)
        assert said.returncode == 2
        assert "config.toml:4:1: 2 front workers need Redis" in said.stderr
        assert "cache.redis_url_env" in said.stderr
        assert "workers = 1" in said.stderr
    mixed = two_workers(tmp_path / "mixed", "redis://127.0.0.1:1", CONFIG + "[logs]\nstdout = true\n").cli("check")
    assert "would mix on standard output" in mixed.stderr
