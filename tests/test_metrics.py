"""Metrics: every closed request counted once, labels bounded, everything documented."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.ledger import Record, Usage
from gateway.metrics import Counts, Metrics, add_up, render

ROOT = Path(__file__).parent.parent


class Log:
    dropped = 2
    queued = 7


def make():
    return Metrics(routes=["openai/gpt-4o", "local/small"], upstreams=["openai", "local"], log=Log())


def record(**changes):
    fields = {
        "request_id": "r",
        "opened_at": 1.0,
        "endpoint": "chat/completions",
        "ending": "complete",
        "status": 200,
        "stream": False,
    }
    return Record(**fields | changes)


def samples(page):
    text = page.decode() if isinstance(page, bytes) else page
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page, name, **labels):
    return samples(page)[(name, *sorted(labels.items()))]


def test_unknown_names_do_not_become_labels():
    """A route that is not configured is `other`, and the hundred-and-first error kind too."""
    metrics = make()
    for number in range(150):
        metrics.observe(record(route=f"openai/made-up-{number}", error=f"code-{number}", ending="failed", status=502))
    page = render(metrics.counts())[0]
    assert "made-up" not in page.decode()
    assert value(page, "gateway_errors_total", kind="other") == 50
    labels = {"endpoint": "chat/completions", "route": "other", "status": "502", "ending": "failed"}
    assert value(page, "gateway_requests_total", **labels) == 150


def test_one_record_moves_every_sum_once():
    """Tokens, cost, times, cache outcome and open requests follow from one call."""
    metrics = make()
    metrics.opened()
    metrics.opened()
    usage = Usage(prompt_tokens=12, completion_tokens=30)
    metrics.observe(
        record(
            route="openai/gpt-4o",
            source="external",
            cache="miss",
            usage=usage,
            cost_usd=0.25,
            ttft_ms=30.0,
            duration_ms=700.0,
            overhead_ms=0.3,
        )
    )
    page, kind = render(metrics.counts())
    assert kind.startswith("text/plain")
    route = {"route": "openai/gpt-4o"}
    assert value(page, "gateway_tokens_total", direction="completion", source="external", **route) == 30
    assert value(page, "gateway_tokens_total", direction="prompt", source="external", **route) == 12
    assert value(page, "gateway_cost_usd_total", **route) == 0.25
    assert value(page, "gateway_cache_total", outcome="miss") == 1
    assert value(page, "gateway_in_flight") == 1
    assert value(page, "gateway_request_duration_seconds_bucket", le="0.5", **route) == 0
    assert value(page, "gateway_request_duration_seconds_bucket", le="1.0", **route) == 1
    assert value(page, "gateway_time_to_first_token_seconds_sum", **route) == 0.03
    assert value(page, "gateway_overhead_seconds_bucket", le="0.0005") == 1


def test_the_log_and_the_upstreams_are_shown():
    """What the log says of itself and whether an upstream is tried stand on the page; a stranger's state does not."""
    metrics = make()
    metrics.upstream_state("openai", up=False)
    metrics.upstream_state("stranger", up=True)
    page = render(metrics.counts())[0]
    assert (value(page, "gateway_log_dropped_total"), value(page, "gateway_log_queue")) == (2, 7)
    assert (value(page, "gateway_upstream_up", upstream="openai"), value(page, "gateway_upstream_up", upstream="local")) == (0, 1)
    assert b"stranger" not in page


def test_a_new_config_changes_the_names():
    """After a reload new routes have their own label and old upstreams are gone; sums stay."""
    metrics = make()
    metrics.observe(record(route="openai/gpt-4o"))
    metrics.configured(routes=["new/model"], upstreams=["new"])
    metrics.observe(record(route="new/model"))
    page = render(metrics.counts())[0]
    assert value(page, "gateway_request_duration_seconds_count", route="new/model") == 1
    assert value(page, "gateway_request_duration_seconds_count", route="openai/gpt-4o") == 1
    assert b'upstream="openai"' not in page


OUTCOMES = st.tuples(st.sampled_from(("local/small", "openai/gpt-4o", "")), st.sampled_from(("", "cut")), st.floats(0, 1e6))


@settings(max_examples=30)
@given(st.lists(st.lists(OUTCOMES, max_size=8), min_size=1, max_size=3))
def test_workers_add_up(workers):
    """The page of several workers, over their sockets' wire, is the page one worker would show that had seen everything."""
    together, parts = make(), []
    for outcomes in workers:
        worker = make()
        for route, error, duration_ms in outcomes:
            for metrics in (worker, together):
                metrics.observe(record(route=route, error=error, duration_ms=duration_ms, cost_usd=0.5))
        parts.append(msgspec.msgpack.decode(msgspec.msgpack.encode(worker.counts()), type=Counts))
    merged = samples(render(add_up(parts))[0])
    expected = samples(render(together.counts())[0])
    assert merged.keys() == expected.keys()
    for key, value_ in expected.items():
        times = len(workers) if "log" in key[0] else 1
        assert abs(merged[key] - times * value_) <= 1e-6 * abs(value_)


def test_an_upstream_is_up_when_any_worker_tries_it():
    """Adding up does not add up states, and leaves what it was given as it was."""
    first, second = make(), make()
    first.upstream_state("openai", up=False)
    page = render(add_up([first.counts(), second.counts()]))[0]
    assert value(page, "gateway_upstream_up", upstream="openai") == 1
    assert value(page, "gateway_log_queue") == 14
    assert value(render(first.counts())[0], "gateway_upstream_up", upstream="openai") == 0


def test_masks_are_counted_by_kind_over_all_workers():
    """Values that left masked and placeholders that came back altered, in one sum."""
    workers = make(), make()
    for metrics in workers:
        metrics.observe(record(redacted={"email": 2, "card": 1}, altered=3))
    page = render(add_up([metrics.counts() for metrics in workers]))[0]
    assert value(page, "gateway_redacted_total", kind="email") == 4
    assert value(page, "gateway_placeholders_altered_total") == 6


def test_every_metric_is_documented():
    """Each metric with each of its labels stands in docs/metrics.md, and nothing else does."""
    metrics = make()
    metrics.observe(record(route="local/small", error="x", redacted={"email": 2}))
    text = (ROOT / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(gateway_\w+)` \| \w+ \| ([^|]*)\|", text, re.MULTILINE))
    shown = {}
    for family in text_string_to_metric_families(render(metrics.counts())[0].decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        shown[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()} == shown
