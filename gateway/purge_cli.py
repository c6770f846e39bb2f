"""`gateway purge`: erase what is kept, in a gateway that runs or in its files. Says how much, never what."""

from __future__ import annotations

import asyncio
import getpass
import json
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from gateway.config import CLASSES, Config, redis_url
from gateway.errors import ConfigError, GatewayError, Problem, did_you_mean
from gateway.terminal import load_config, show_json, with_config, with_json

if TYPE_CHECKING:
    from gateway.purge import Selector

TELL_EVERY_S = 2.0
"""Between two lines about what a purge still waits for."""
ANSWER_S = 600.0
"""The running gateway has this long for what it holds."""
SEGMENT = "purge"
"""The command's own log files, beside those of the front workers."""
_WORDS = {
    "cache": "cached copies",
    "responses": "stored responses",
    "affinity": "notes of what upstreams keep",
    "log_lines": "log lines without their text",
    "log_files": "log files written anew",
    "log_unread": "damaged log lines left out",
}


@click.command()
@with_config
@click.option("--tenant", help="Only what was made for this tenant.")
@click.option("--class", "class_", type=click.Choice(CLASSES), help="Only what comes from requests of this class.")
@click.option("--subject", help="Only what these words stand in: a person's name, address, or `user` of requests.")
@click.option("--model", help="Only cached answers of this public model name.")
@click.option("--all", "everything", is_flag=True, help="Of every tenant.")
@click.option("--dry-run", is_flag=True, help="Count only.")
@with_json
def purge(
    path: Path | None,
    tenant: str | None,
    class_: str | None,
    subject: str | None,
    model: str | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Erase from cache, stored responses, what is known of upstreams' stores, and logs, whether or not a gateway runs."""
    from gateway.purge import Erased, Selector, purge_logs

    if not everything and not (tenant or model or class_):
        raise click.UsageError("say of what: --tenant, --class or --model; or --all for everybody; --subject narrows these")
    if subject is not None and sum(map(str.isalnum, subject)) < 2:
        raise click.UsageError("--subject needs two letters or digits at least")
    config = load_config(path)
    if model is not None and model not in config.models:
        # What it was called before may still be kept under that name.
        click.echo(f'note: {config.path} has no model "{model}"{did_you_mean(model, config.models)}', err=True)
    wanted = Selector(tenant=tenant, class_=class_, model=model, subject=subject)
    counts, problem, here = _state(config, wanted, dry_run=dry_run)
    try:
        with _telling(f"for the log files in {config.logs_folder}; those that are done stay done"):
            logs = purge_logs(config.logs_folder, wanted, dry_run=dry_run)
    except OSError as error:
        where = str(error.filename or config.logs_folder)
        unread = Problem(
            where, f"the log cannot be read ({error.strerror}), and nothing was erased from it; mend that and purge again"
        )
        logs = Erased(problems=(unread,))
    in_logs = {"log_lines": logs.lines, "log_files": logs.files, "log_unread": logs.unread}
    counts |= in_logs
    if not dry_run:
        _note(config, wanted, counts if here else in_logs)
    if as_json:
        show_json({"dry_run": dry_run, "counts": counts})
    else:
        for place, count in counts.items():
            click.echo(f"{count:>8} {_WORDS[place]}{' (dry run: nothing was erased)' if dry_run else ''}")
        if config.logs.stdout:
            click.echo("the log goes to standard output: erase it where it is collected")
    if problem is not None:
        raise problem
    if logs.problems:
        raise ConfigError(logs.problems)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """While this lasts, say on standard error now and then what it waits for, and what may be done."""
    over = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not over.wait(TELL_EVERY_S):
            seconds = time.monotonic() - began
            click.echo(f"purge: {seconds:.0f} s: waiting {what}. Wait on, or end it with Ctrl-C and purge again", err=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _state(config: Config, wanted: Selector, *, dry_run: bool) -> tuple[dict[str, int], GatewayError | None, bool]:
    """Erase what a running gateway holds, by asking it; without one, in its files, which is what the last value says."""
    from gateway.supervisor import hold_state

    try:
        lock = hold_state(config)
    except ConfigError:
        given = {name: value for name, value in msgspec.to_builtins(wanted).items() if value is not None}
        try:
            said = ask_server(config, "/v1/gateway/purge", {**given, "dry_run": dry_run})
        except ConfigError as error:
            return {}, error, False
        return dict(said["counts"]), None, False
    with closing(lock), _telling(f"for what is kept in {config.state_dir}; places that are done stay done"):
        return *asyncio.run(_in_files(config, wanted, dry_run=dry_run)), True


async def _in_files(config: Config, wanted: Selector, *, dry_run: bool) -> tuple[dict[str, int], GatewayError | None]:
    """Erase from every place; one that fails does not keep the others from it."""
    counts: dict[str, int] = {}
    problem: GatewayError | None = None
    for place, work in _places(config, wanted, dry_run=dry_run):
        try:
            counts[place] = counts.get(place, 0) + await work
        except GatewayError as error:
            problem = error
    return counts, problem


def _places(config: Config, wanted: Selector, *, dry_run: bool) -> Iterator[tuple[str, Awaitable[int]]]:
    from gateway.purge import Subject

    yield "cache", _shared(config, wanted, dry_run=dry_run)
    yield "cache", _semantic(config, wanted, dry_run=dry_run)
    if wanted.model is None:
        subject = Subject(wanted.subject).stands_in_json if wanted.subject is not None else None
        yield "responses", _responses(config, wanted, subject, dry_run=dry_run)
        if subject is None:
            yield "affinity", _affinity(config, wanted, dry_run=dry_run)


async def _shared(config: Config, wanted: Selector, *, dry_run: bool) -> int:
    from gateway.cache.redis import Shared

    if not (url := redis_url(config)):
        return 0
    shared = Shared(url)
    try:
        return await shared.purge(tenant=wanted.tenant, model=wanted.model, class_=wanted.class_, dry_run=dry_run)
    finally:
        await shared.aclose()


async def _semantic(config: Config, wanted: Selector, *, dry_run: bool) -> int:
    folder = config.state_dir / "cache"
    if not (folder / "semantic.sqlite3").exists():
        return 0
    from gateway.cache.index import Index

    index = Index(folder, max_bytes=config.cache.semantic_max_bytes)
    try:
        return index.purge(tenant=wanted.tenant, model=wanted.model, class_=wanted.class_, dry_run=dry_run)
    finally:
        index.close()


async def _responses(config: Config, wanted: Selector, subject: Any, *, dry_run: bool) -> int:
    from gateway.responses import Store
    from gateway.responses.redis import SharedStore
    from gateway.responses.store import ResponseStore

    path = config.state_dir / "stored_responses.sqlite3"
    url = redis_url(config)
    if not url and not path.exists():
        return 0
    store: Store = SharedStore(url) if url else ResponseStore(path)
    try:
        return await store.purge(tenant=wanted.tenant, class_=wanted.class_, subject=subject, dry_run=dry_run)
    finally:
        await store.aclose()


async def _affinity(config: Config, wanted: Selector, *, dry_run: bool) -> int:
    from gateway.affinity import Affinity

    path = config.state_dir / "responses.sqlite"
    if not path.exists():
        return 0
    affinity = Affinity(path)
    try:
        return await affinity.purge(tenant=wanted.tenant, class_=wanted.class_, dry_run=dry_run)
    finally:
        await affinity.aclose()


def _note(config: Config, wanted: Selector, counts: dict[str, int]) -> None:
    """The line for the audit: who, when, what was meant and how much; never a word of it."""
    from gateway.logs import LogWriter

    if config.logs.stdout:
        return
    writer = LogWriter(
        config.logs_folder,
        segment=SEGMENT,
        stdout=False,
        rotate_bytes=config.logs.rotate_bytes,
        keep_files=0,
        on_full="drop",
        queue_limit=100,
        count_tokens=lambda _text, _upstream: (0, True),
    )
    writer.event({"event": "data.purged", "level": "warning", "by": f"os:{_user()}", "selector": wanted.told(), "erased": counts})
    if writer.close():
        raise ConfigError([Problem(str(config.logs_folder), "the purge is done, but its audit line could not be written")])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def ask_server(config: Config, path: str, body: dict[str, Any]) -> Any:
    """Ask the running gateway as its operator. Raises ConfigError when none runs."""
    import httpx

    known = config.state_dir / "run" / "server.json"
    try:
        server = json.loads(known.read_bytes())
        headers = {"authorization": f"Bearer {server['admin_key']}"}
        whom = f"for the gateway at {server['url']} (process {server['pid']}), which goes on without this command"
        with _telling(whom):
            response = httpx.post(server["url"] + path, json=body, headers=headers, timeout=ANSWER_S, trust_env=False)
    except httpx.ReadTimeout:
        message = f"the gateway has not finished within {ANSWER_S:g} s, and may go on; purge again when its log has `data.purged`"
        raise ConfigError([Problem(str(known), message)]) from None
    except (OSError, ValueError, KeyError, httpx.HTTPError):
        message = "the gateway that was started with this config does not answer; purge again when it does, or stop it"
        raise ConfigError([Problem(str(known), message)]) from None
    answer = response.json()
    if response.status_code != 200:
        raise ConfigError([Problem(server["url"], answer["error"]["message"])])
    return answer
