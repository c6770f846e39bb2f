"""The command line: reads arguments, calls one function, prints. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from gateway import __version__
from gateway.config import CLASSES, Config
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.policy_cli import load_policies, policy
from gateway.purge_cli import purge
from gateway.terminal import load_config, show, with_config, with_json
from gateway.wire import ENDPOINTS

if TYPE_CHECKING:
    from gateway.auth import KeyFile
    from gateway.explain import Explanation
    from gateway.policy.generation import Generation


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def cli() -> None:
    """An OpenAI-compatible caching and routing gateway.

    Start with `gateway serve`; see what a policy does with `gateway explain`; read what happened with `gateway logs` and
    `gateway stats`.
    """


@cli.command()
@with_config
def serve(path: Path | None) -> None:
    """Run the gateway in the foreground, until SIGTERM or Ctrl-C."""
    from gateway.supervisor import serve as run

    sys.exit(run(load_config(path)))


@cli.command()
@with_config
def check(path: Path | None) -> None:
    """Check the config, the policies and their tests, without starting anything.

    Exit status 2 when something is wrong; notes alone leave it 0.
    """
    from gateway.auth import KeyFile, configured_keys
    from gateway.config import OpenAIUpstream, off_reason, redis_url
    from gateway.policy.proof import run_tests, untouched

    config = load_config(path)
    problems: list[Problem] = []
    generation: Generation | None = None
    for step in (configured_keys, redis_url, lambda found: KeyFile(found.state_dir / "keys.json").read()):
        try:
            step(config)
        except ConfigError as error:
            problems += error.problems
    try:
        generation = load_policies(config)
    except ConfigError as error:
        problems += error.problems
    notes: list[str] = []
    if generation is not None:
        results = run_tests(generation)
        for result in results:
            problems += [Problem(result.place, f'test "{result.name}": {problem}') for problem in result.problems]
        notes += [str(note) for note in generation.notes] + [f"{place} is in no test" for place in untouched(generation, results)]
        click.echo(f"{config.path}: {len(config.upstreams)} upstreams, {len(config.models)} model names")
        passed = sum(result.passed for result in results)
        click.echo(
            f"{config.policies_folder}: {len(generation.policies)} policies @{generation.hash}, "
            f"{passed} of {len(results)} tests pass"
        )
    notes += [f"{name}: off, {reason}" for name, upstream in config.upstreams.items() if (reason := off_reason(upstream))]
    notes += [
        f"{name}: base_url ends without a path; most APIs stand under /v1"
        for name, upstream in config.upstreams.items()
        if isinstance(upstream, OpenAIUpstream) and not urlsplit(upstream.base_url).path.strip("/")
    ]
    notes += _missing_weights(config)
    notes += _names_notes(config, generation)
    for note in notes:
        click.echo(f"note: {note}")
    if problems:
        raise ConfigError(problems)
    click.echo("ok")


def _names_notes(config: Config, generation: Generation | None) -> list[str]:
    """Says on the way that nothing is missing."""
    from gateway.names.needs import missing

    if config.names is None:
        return []
    what = f"[names]: {config.names.engine} with {config.names_model()}"
    reason = missing(config)
    if reason is None:
        click.echo(f"{what} is on this machine")
    notes = [f"{what} cannot be loaded: {reason}"] if reason else []
    if generation is not None and not generation.named:
        notes.append("[names]: no policy maps person, location or organization to a class, so no name is looked for")
    return notes


def _missing_weights(config: Config) -> list[str]:
    from gateway.weights import missing

    return [reason for name in config.local_models if (reason := missing(config, name))]


@cli.command()
@with_config
@with_json
@click.argument("asked", metavar="REQUEST_ID|FILE|-")
@click.option("--endpoint", type=click.Choice(list(ENDPOINTS)), default="chat/completions")
@click.option("--policy", default="", help="Route policy; default: the key's, else the config's.")
@click.option("--tenant", default="", help="As if a key of this tenant asked. Default: the key's, else `default`.")
@click.option("--key-label", default="", help="As if the key of this label asked: with its tenant, policy and class floor.")
@click.option("--class", "class_", type=click.Choice(CLASSES), default="public", help="As if x-gateway-class said so.")
def explain(
    path: Path | None,
    as_json: bool,
    asked: str,
    endpoint: str,
    policy: str,
    tenant: str,
    key_label: str,
    class_: str,
) -> None:
    """Show where a request would go and why: every candidate, what removed it, and the order. Calls nobody.

    A REQUEST_ID (the answer's x-request-id) is looked up in the log and explained by the policies that were in force then.
    FILE is the JSON body of a request, or - for standard input:

        echo '{"model":"auto","messages":[{"role":"user","content":"hi"}]}' | gateway explain -
    """
    config = load_config(path)
    if asked.startswith("req_") and not Path(asked).exists():
        explanation = _explained_before(config, asked)
    else:
        explanation = _explained_now(
            config, _body(asked), endpoint=endpoint, policy=policy, tenant=tenant, key_label=key_label, class_=class_
        )
    if as_json:
        click.echo(json.dumps(explanation.as_json(), indent=1))
    else:
        show(explanation.render())


def _body(file: str) -> bytes:
    try:
        with click.open_file(file, "rb") as opened:
            body: bytes = opened.read()
    except OSError as error:
        message = f"cannot be read: {error.strerror}; give a file, a request id, or - for standard input"
        raise ConfigError([Problem(file, message)]) from None
    return body


def _explained_before(config: Config, request_id: str) -> Explanation:
    from gateway import stats
    from gateway.explain import from_log
    from gateway.policy.store import Store

    folder = _log_folder(config)
    lines, _ = stats.show(folder, request_id)
    if not lines:
        raise ConfigError([Problem(str(folder), f"no line has the request id {request_id}")])

    return from_log(lines, Store(config.state_dir / "policies").open)


def _explained_now(
    config: Config, body: bytes, *, endpoint: str, policy: str, tenant: str, key_label: str, class_: str
) -> Explanation:
    from msgspec.structs import replace

    from gateway import facts, wire
    from gateway.auth import KeyFile, Principal, as_if, labelled
    from gateway.config import off_reason
    from gateway.errors import NotFound, did_you_mean
    from gateway.explain import explain as explain_
    from gateway.policy.decision import Health
    from gateway.responses.serve import NOTHING, ways

    generation = load_policies(config)
    anybody = Principal(key_id="", label="", tenant="default", scopes=())
    found = labelled(config, KeyFile(config.state_dir / "keys.json"), key_label) if key_label else None
    principal = as_if(found, anybody, label=key_label, tenant=tenant, policy=policy)
    policy = principal.policy or config.policies.default
    if policy not in generation.policies:
        raise NotFound(f'there is no policy "{policy}"{did_you_mean(policy, generation.policies)}')
    request = wire.read(endpoint, body)
    if request.model not in config.models:
        raise NotFound(f'there is no model "{ascii(request.model)[1:-1]}"{did_you_mean(request.model, config.models)}')
    judged = facts.judge(
        request,
        classes=generation.classes,
        detector=generation.detector,
        max_scan_chars=config.server.max_scan_chars,
        tenant=principal.tenant,
        key_label=principal.label,
        class_floor=principal.class_floor,
        headers={"x-gateway-class": class_},
        seed="explain",
        now=time.time(),
        with_task=True,
    )
    asked = replace(judged, via_chat=ways(request, NOTHING).via_chat)
    health = {}
    for option in generation.catalogue.options():
        reason = off_reason(config.upstreams[option.upstream])
        off = reason is not None
        if reason is None and config.upstreams[option.upstream].zone == "local" and option.model in config.local_models:
            from gateway.weights import missing

            reason = missing(config, option.model)
        health[option.name] = Health(up=reason is None, off=off, reason=reason or "")
    return explain_(generation, policy, asked, health)


@cli.group()
def keys() -> None:
    """Make, list and revoke API keys."""


def _key_file(path: Path | None) -> tuple[Config, KeyFile]:
    from gateway.auth import KeyFile

    config = load_config(path)
    return config, KeyFile(config.state_dir / "keys.json")


@keys.command("new")
@with_config
@click.argument("label")
@click.option("--tenant", default="default", show_default=True, help="Answers are cached and limited by tenant.")
@click.option(
    "--scope", "scopes", type=click.Choice(["chat", "admin", "audit"]), multiple=True, default=("chat",), show_default=True
)
@click.option("--policy", default="", help="Route policy of this key; default: the config's.")
@click.option("--may-choose", multiple=True, help="Another policy it may name in the x-gateway-policy header.")
@click.option(
    "--class-floor", type=click.Choice(CLASSES), default="public", show_default=True, help="Least class of its requests."
)
def keys_new(
    path: Path | None,
    label: str,
    tenant: str,
    scopes: tuple[str, ...],
    policy: str,
    may_choose: tuple[str, ...],
    class_floor: str,
) -> None:
    """Make a key called LABEL. It is shown this once; only its hash is stored. A running gateway takes it at once."""
    config, file = _key_file(path)
    _known_policies(config, [policy, *may_choose])
    key = file.add(label, tenant=tenant, scopes=scopes, policy=policy, policies=may_choose, class_floor=class_floor)
    click.echo(key)
    click.echo("This key is shown this once.", err=True)


def _known_policies(config: Config, names: list[str]) -> None:
    from gateway.errors import did_you_mean

    known = load_policies(config).policies
    for name in names:
        if name and name not in known:
            place = str(config.policies_folder)
            raise ConfigError([Problem(place, f'there is no policy "{name}"{did_you_mean(name, known)}')])


@keys.command("list")
@with_config
@with_json
def keys_list(path: Path | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    from rich.table import Table

    config, file = _key_file(path)
    rows = [
        {
            "id": key.id,
            "label": key.label,
            "tenant": key.tenant,
            "scopes": ",".join(key.scopes),
            "policy": key.policy or config.policies.default,
            "class_floor": key.class_floor,
            "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created_at)),
            "state": "revoked" if key.revoked_at is not None else "live",
        }
        for key in file.read()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table("id", "label", "tenant", "scopes", "policy", "class floor", "created (UTC)", "state", box=None)
    for row in rows:
        table.add_row(*row.values())
    show(table if rows else "There are no keys; make one: gateway keys new LABEL")


@keys.command("revoke")
@with_config
@click.argument("label")
def keys_revoke(path: Path | None, label: str) -> None:
    """Revoke a key by its label or id. A running gateway refuses it from its next request on."""
    from gateway.errors import did_you_mean

    _, file = _key_file(path)
    if not file.revoke(label):
        live = [key.label for key in file.read() if key.revoked_at is None]
        raise ConfigError([Problem(str(file.path), f'there is no live key "{label}"{did_you_mean(label, live)}')])
    click.echo(f"{label} is revoked")


@cli.group()
def logs() -> None:
    """Read the token log."""


@logs.command("show")
@with_config
@click.argument("request_id")
def logs_show(path: Path | None, request_id: str) -> None:
    """Print every line of one request, in order. REQUEST_ID is the answer's x-request-id."""
    from gateway import stats

    folder = _log_folder(load_config(path))
    lines, damaged = stats.show(folder, request_id)
    for line in lines:
        click.echo(json.dumps(line, ensure_ascii=False))
    _tell_damaged(damaged)
    if not lines:
        raise ConfigError([Problem(str(folder), f"no line has the request id {request_id}")])


def _known_event(_context: click.Context, _parameter: click.Parameter, given: str) -> str:
    """An event of the log, or the first word of some. Raises BadParameter."""
    from gateway.errors import did_you_mean
    from gateway.events import EVENTS

    known = sorted({*EVENTS, *(name.partition(".")[0] for name in EVENTS)})
    if given and given not in known:
        hint = did_you_mean(given, known) or f"; known: {', '.join(sorted(EVENTS))}"
        raise click.BadParameter(f'no event is called "{given}"{hint}')
    return given


@logs.command("tail")
@with_config
@click.option("--follow", "-f", is_flag=True, help="Go on with every new line, until Ctrl-C.")
@click.option(
    "--event",
    default="",
    callback=_known_event,
    help="Only lines of this event; a first word takes all of its kind: cache, upstream.",
)
@click.option("--request", "request_id", default="", help="Only lines of this request.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=20, show_default=True, help="How many of the last lines to begin with."
)
def logs_tail(path: Path | None, follow: bool, event: str, request_id: str, lines: int) -> None:
    """Print the last lines of the log, oldest first."""
    from gateway import stats

    shown = 0

    def out(line: bytes) -> None:
        nonlocal shown
        shown += 1
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    folder = _log_folder(load_config(path))
    _tell_damaged(stats.tail(folder, out=out, follow=follow, event=event, request_id=request_id, last=lines))
    if lines and not shown and not follow:
        asked = [f"event {event}"] if event else []
        asked += [f"request id {request_id}"] if request_id else []
        click.echo(f"{folder}: no line{' with ' + ' and '.join(asked) if asked else ''}", err=True)


def _log_folder(config: Config) -> Path:
    folder = config.logs_folder
    if not folder.is_dir():
        where = "the log goes to standard output" if config.logs.stdout else "nothing was logged yet"
        raise ConfigError([Problem(str(folder), f"there is no such folder: {where}")])
    return folder


def _tell_damaged(count: int) -> None:
    if count:
        click.echo(f"{count} damaged lines were skipped", err=True)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@cli.command()
@with_config
@with_json
@click.option("--since", default="24h", show_default=True, help="How far back: 90s, 15m, 24h, 7d.")
def stats(path: Path | None, as_json: bool, since: str) -> None:
    """Latency percentiles, tokens, errors, cache and cost by route, from the logs."""
    from gateway import stats as stats_

    if not since[:-1].isdigit() or since[-1:] not in _UNITS:
        raise click.BadParameter("give a number and one of s, m, h, d: 15m", param_hint="--since")
    summary = stats_.summarise(_log_folder(load_config(path)), int(since[:-1]) * _UNITS[since[-1]])
    if as_json:
        click.echo(stats_.as_json(summary))
    else:
        show(stats_.render(summary))


@cli.group()
def models() -> None:
    """Local model weights."""


@models.command("pull")
@with_config
@click.argument("names", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Make them again even if they are there.")
def models_pull(path: Path | None, names: tuple[str, ...], force: bool) -> None:
    """Bring the weights of NAMES: download, check their hashes, convert once. What is there and whole is left alone."""
    from gateway.weights import pull

    root = load_config(path).state_dir / "models"
    for name in names:
        began = time.monotonic()

        def progress(step: str, began: float = began) -> None:
            click.echo(f"  {step} ({time.monotonic() - began:.0f} s)", err=True)

        folder = pull(name, root, progress=progress, force=force)
        click.echo(f"{name}: ready in {os.path.relpath(folder)}")


@models.command("list")
@with_config
def models_list(path: Path | None) -> None:
    """Public model names, who serves them, and whether local weights are there."""
    from rich.table import Table

    from gateway.weights import RECIPES, missing

    config = load_config(path)
    table = Table("model", "served by", "state", box=None)
    for name in config.models:
        for candidate in config.candidates(name):
            reason = missing(config, candidate.model) if candidate.model in config.local_models else None
            table.add_row(name, f"{candidate.upstream}/{candidate.model}", reason or "configured")
    show(table)
    click.echo(f"weights that can be pulled: {', '.join(RECIPES)}")


@cli.command()
@with_config
@with_json
@click.argument("url", default="")
@click.option("--key", envvar="OPENAI_API_KEY", show_envvar=True, help="With URL: the key to ask with.")
@click.option("--model", help="With URL: the model to ask; its upstream answers up to 120 short requests.")
@click.option("--secs", type=click.FloatRange(0.1, 600), default=3.0, show_default=True, help="How long each step measures.")
def bench(path: Path | None, as_json: bool, url: str, key: str | None, model: str | None, secs: float) -> None:
    """Measure what the gateway adds to a request, a stream and a token, on this machine.

    Without URL a gateway with everything on and an upstream are started in a temporary folder, and both end with the run. With
    URL, one that runs already is asked a few short questions; it is named by --config where its CPU is to be shown too.
    """
    import signal

    import msgspec
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gateway.bench import measure

    if url and not model:
        raise click.UsageError("say which model to ask: --model")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with us
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    steps = measure.URL_STEPS if url else measure.OWN_STEPS
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=len(steps), completed=-1)

        def progress(step: str) -> None:
            shown.update(task, advance=1, description=step)

        if url:
            state_dir = _state_dir(path)
            report = measure.measure_url(url, key=key or "", model=model or "", secs=secs, state_dir=state_dir, progress=progress)
        else:
            report = measure.measure_own(secs, progress)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=1))
    else:
        show(measure.render(report))


def _state_dir(path: Path | None) -> Path | None:
    """The state folder of the config at hand, if there is one: a running gateway's process is found there."""
    try:
        return load_config(path).state_dir
    except ConfigError:
        if path is not None:
            raise
        return None


cli.add_command(policy)
cli.add_command(purge)


def main() -> None:
    """Entry point. Exit status 2: what was given is wrong; 1: something failed; 130: interrupted."""
    try:
        cli.main(standalone_mode=False)
    except ConfigError as error:
        click.echo("\n".join(f"error: {problem}" for problem in error.problems), err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GatewayError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
