"""`gateway bench` measures real processes, says what it cannot measure, and leaves nothing behind."""

import asyncio
import itertools
import json
import socket

import msgspec
import pytest
from click.testing import CliRunner

from gateway import cli
from gateway.bench import load, measure, upstream
from gateway.bench.load import BenchError, Target, chat


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A gateway with everything on, in front of the built-in upstream."""
    folder = tmp_path_factory.mktemp("bench")
    with measure.upstream(folder) as port, measure.started(folder, port) as started:
        yield started


def key_of(own):
    return own.gateway.headers[0][1].removeprefix("Bearer ")


def ask_url(own, *, key, model="burst"):
    state = own.config.parent / "state"
    return measure.measure_url(
        own.gateway.url.partition("/chat")[0], key=key, model=model, secs=0.1, state_dir=state, progress=lambda _: None
    )


def test_a_gateway_that_is_not_there_is_named():
    """When nothing listens, the message names the address and asks whether the gateway runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(BenchError, match=rf"127\.0\.0\.1:{port}.*running"):
            measure.measure_url(f"http://127.0.0.1:{port}", key="k", model="m", secs=0.1, state_dir=None, progress=lambda _: None)


def test_a_refusal_is_shown_in_the_gateways_own_words(own):
    """A wrong key ends the run with the status and the gateway's message, not with figures."""
    with pytest.raises(BenchError, match="401"):
        ask_url(own, key="gw-wrong")


def test_the_command_wants_a_model_with_a_url():
    """A URL without a model is a usage error before anything is asked."""
    done = CliRunner().invoke(cli.cli, ["bench", "http://127.0.0.1:1/v1"])
    assert done.exit_code == 2
    assert "--model" in done.output


async def test_answers_that_break_off_are_errors():
    """A connection that is closed in the middle of an answer counts as an error, never as an answer."""

    async def cut(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        target = Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/json/v1")
        tally = await load.saturate(target, itertools.repeat(b"{}"), connections=3, seconds=5)
    assert (tally.answers, tally.errors) == (0, 3)


async def test_every_chunk_of_a_paced_stream_carries_its_time(own):
    """The upstream's streams hold as many stamps as chunks, each sent before it came, none faster than its pace."""
    tally = await load.streams(own.straight("paced-1-20"), itertools.repeat(chat("m", "x", stream=True)), connections=2)
    assert (tally.answers, tally.errors) == (2, 0)
    assert len(tally.delay_us) == 40
    assert min(tally.delay_us) > 0
    assert tally.seconds >= 0.019


def test_a_running_gateway_is_measured_by_its_url(own):
    """Whole answers, streams and cache hits of a gateway that runs are timed, and its process gives its CPU."""
    rounds = []
    # A machine that stalls for the tenth of a second of a round spoils that round, and not every one.
    while len(rounds) < 3 and not (rounds and _is_measured(rounds[-1])):
        rounds.append({figure.name: figure.value for figure in ask_url(own, key=key_of(own)).figures})
    assert _is_measured(rounds[-1]), rounds


def _is_measured(found):
    wanted = [value for name, value in found.items() if name != "token_gap_p50"]
    return all(value is not None and value > 0 for value in wanted) and found["hit_p50"] < found["json_p95"]


def test_the_whole_measurement_runs_by_itself():
    """One call measures everything: no figure missing, no request failed, every stage with its price."""
    steps = []
    report = measure.measure_own(0.2, steps.append)
    assert tuple(steps) == measure.OWN_STEPS
    assert report.errors == 0
    missing = [figure.name for figure in report.figures if figure.value is None]
    assert missing == ([] if load.cpu_us(1) is not None else [figure.name for figure in report.figures if "cpu" in figure.name])
    named = {stage.name for stage in report.stages}
    assert named >= {"parse", "scan", "decide", "cache", "connect", "first byte", "relay", "log"}
    assert json.loads(msgspec.json.encode(report))["figures"]
    measure.render(report)


def test_nothing_is_left_behind(tmp_path):
    """When the run ends, by an error too, neither the gateway nor the upstream goes on."""
    seen = []

    def stopped():
        with measure.upstream(tmp_path) as port, measure.started(tmp_path, port) as started:
            seen.extend([port, *load.tree(started.pid)])
            raise BenchError("stopped")

    with pytest.raises(BenchError, match="stopped"):
        stopped()
    assert len(seen) > 2
    assert [pid for pid in seen[1:] if load.tree(pid)] == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", seen[0])) != 0


def test_the_fixed_answers_are_what_openai_sends():
    """The upstream's whole answer is a chat completion, and its burst ends as a stream must."""
    _, _, body = upstream.FIXED["json"].partition(b"\r\n\r\n")
    assert json.loads(body)["choices"][0]["finish_reason"] == "stop"
    assert upstream.FIXED["burst"].count(b" word") == upstream.CHUNKS
    assert b"data: [DONE]\n\n" in upstream.FIXED["burst"]
