"""`gateway policy ...`: policies before, while and after they are in force. Works on files alone and calls nobody."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.config import CLASSES, Config
from gateway.errors import ConfigError, Problem, did_you_mean
from gateway.terminal import load_config, show, show_json, with_config, with_json

if TYPE_CHECKING:
    from gateway.policy.generation import Generation
    from gateway.policy.store import InForce, Store

TAKEN_WITHIN_S = 5.0
"""A running gateway has a change in force within this time; longer is told."""
_LOOK_S = 0.1

_with_folder = click.option(
    "--policy",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of policy files. Default: the one that the config names.",
)


@click.group()
def policy() -> None:
    """Check, test and try out policy files, and go back to earlier ones."""


def load_policies(config: Config, folder: Path | None = None) -> Generation:
    """The policies of a folder (the config's by default) over the config. Raises ConfigError with every fault."""
    from gateway.policy.generation import load

    return load(config, folder or config.policies_folder)


def _store(config: Config) -> Store:
    from gateway.policy.store import Store

    return Store(config.state_dir / "policies")


@policy.command("check")
@with_config
@_with_folder
@with_json
def check(path: Path | None, folder: Path | None, as_json: bool) -> None:
    """Read the policy files strictly and show what they add up to: who may see which class. Exit status 2 on a fault."""
    from rich.table import Table

    config = load_config(path)
    generation = load_policies(config, folder)
    reach = {class_: [option.name for option in generation.reach(class_)] for class_ in CLASSES}
    policies = [
        {
            "policy": one.name,
            "file": one.file,
            "limits": sum(limit.policy == one.name for limit in generation.limits),
            "routes": len(one.routes),
            "tests": len(one.tests),
        }
        for one in generation.policies.values()
    ]
    terms = [{"terms": kind, "class": generation.classes[kind], "words": len(words)} for kind, words in generation.terms.items()]
    notes = [str(note) for note in generation.notes]
    if as_json:
        show_json({"hash": generation.hash, "policies": policies, "terms": terms, "reach": reach, "notes": notes})
        return
    table = Table("policy", "file", "limits", "routes", "tests", box=None)
    for row in policies:
        table.add_row(*map(str, row.values()))
    show(table)
    table = Table("class", "may reach", box=None)
    for class_, names in reach.items():
        table.add_row(class_, ", ".join(names) or "nobody: such requests are refused")
    click.echo()
    show(table)
    if terms:
        table = Table("terms", "class", "words", box=None)
        for row in terms:
            table.add_row(*map(str, row.values()))
        click.echo()
        show(table)
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(f"policies @{generation.hash}: ok")


@policy.command("test")
@with_config
@_with_folder
@with_json
def test(path: Path | None, folder: Path | None, as_json: bool) -> None:
    """Run the [[test]]s of the policy files, and list the limits and routes that none touches. Exit status 2 when one fails."""
    from rich.table import Table

    from gateway.policy.proof import run_tests, untouched

    generation = load_policies(load_config(path), folder)
    results = run_tests(generation)
    missed = untouched(generation, results)
    failed = [Problem(one.place, f'test "{one.name}": {problem}') for one in results for problem in one.problems]
    if as_json:
        rows = [{"policy": one.policy, "test": one.name, "place": one.place, "problems": list(one.problems)} for one in results]
        show_json({"hash": generation.hash, "tests": rows, "untouched": missed})
    else:
        table = Table("", "test", "place", "route", box=None)
        for one in results:
            table.add_row("ok" if one.passed else "FAILED", one.name, one.place, one.decision.rule or "none")
        show(table)
        for place in missed:
            click.echo(f"in no test: {place}")
        click.echo(f"{sum(one.passed for one in results)} of {len(results)} tests pass")
    if failed:
        raise ConfigError(failed)


@policy.command("apply")
@with_config
@click.option("--yes", is_flag=True, help="Do not ask.")
def apply(path: Path | None, yes: bool) -> None:
    """Let the policy folder come into force as it is, even where it loses limits. A running gateway takes it within a second."""
    config = load_config(path)
    generation = load_policies(config)
    store = _store(config)
    if _approved(generation, store, yes=yes):
        _tell_taken(config, generation, store)


def _approved(generation: Generation, store: Store, *, yes: bool) -> bool:
    """Say what a generation loses, ask, and approve it. False: it is in force already, and nothing is to be done."""
    from gateway.policy.generation import lost

    try:
        active = store.active()
    except ConfigError as error:
        click.echo(str(error), err=True)
        losses = ["what was in force cannot be read, so nothing can be compared"]
    else:
        if active is not None and active.hash == generation.hash:
            click.echo(f"policies @{generation.hash} are in force already")
            return False
        losses = lost(active, generation) if active else []
    for loss in losses:
        click.echo(f"loses {loss}")
    if losses and not yes:
        click.confirm(f"Let policies @{generation.hash} come into force?", abort=True)
    store.approve(generation)
    return True


def _tell_taken(config: Config, generation: Generation, store: Store) -> None:
    """Wait until a running gateway has taken an approved generation, and say how it stands."""
    if not _runs(config):
        click.echo(f"policies @{generation.hash} are approved; no gateway runs with this state folder, the next start takes them")
        return
    deadline = time.monotonic() + TAKEN_WITHIN_S
    while store.active_hash() != generation.hash and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    if store.active_hash() == generation.hash:
        click.echo(f"policies @{generation.hash} are in force")
    else:
        click.echo(f"policies @{generation.hash} are approved, but the running gateway has not taken them; its log says why")


def _runs(config: Config) -> bool:
    """Whether a gateway holds the state folder."""
    try:
        with (config.state_dir / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@policy.command("history")
@with_config
@with_json
def history(path: Path | None, as_json: bool) -> None:
    """List what was in force since when, what changed each time, and which limits were lost or gained."""
    from rich.table import Table

    store = _store(load_config(path))
    rows = list(_history_rows(store, store.history()))
    if as_json:
        show_json(rows)
        return
    table = Table("", "policies", "in force since (UTC)", "files changed", "lost", "gained", box=None)
    for row in rows:
        cells = ("\n".join(row[name]) for name in ("files", "lost", "gained"))
        table.add_row(str(row["number"]), f"@{row['hash']}", row["since"], *cells)
    show(table if rows else "Nothing was in force yet: gateway serve archives what it starts with.")


def _history_rows(store: Store, entries: Iterable[InForce]) -> Iterable[dict[str, Any]]:
    from gateway.policy.generation import lost

    before: Generation | None = None
    for number, entry in enumerate(entries, 1):
        row: dict[str, Any] = {"number": number, "hash": entry.hash, "since": _utc(entry.since)}
        try:
            now = store.open(entry.hash)
        except ConfigError as error:
            yield row | {"files": [f"cannot be opened: {error.problems[0].message}"], "lost": [], "gained": []}
            before = None
            continue
        files = _changed(before.files if before else {}, now.files)
        if before and before.catalogue != now.catalogue:
            files.append("config.toml: upstreams or models")
        yield row | {
            "files": files,
            "lost": lost(before, now) if before else [],
            "gained": lost(now, before) if before else [],
        }
        before = now


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The files that differ, each with what became of it."""
    words = {name: "changed" if name in old else "new" for name, text in new.items() if old.get(name) != text}
    words |= dict.fromkeys(old.keys() - new.keys(), "removed")
    return [f"{name} {word}" for name, word in sorted(words.items())]


@policy.command("rollback")
@with_config
@click.argument("which", metavar="HASH|N")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(path: Path | None, which: str, yes: bool) -> None:
    """Put the files of an earlier generation back, by its hash or its number in `gateway policy history`.

    They come into force over the config of now, by the same check for losses as `apply`. What stands in the folder and was
    never in force is set aside in the state folder first.
    """
    from gateway.policy.generation import Catalogue, Generation

    config = load_config(path)
    store = _store(config)
    old = store.open(_hash_of(store, which))
    folder = config.policies_folder
    generation = Generation(old.files, Catalogue.of(config), folder=folder.name)
    changes = _changed(_texts(folder), old.files)
    if not _approved(generation, store, yes=yes) and not changes:
        return
    kept = _put_back(folder, old.files, store, aside=config.state_dir / "policies" / f"aside-{time.strftime('%Y%m%dT%H%M%S')}")
    for change in changes:
        click.echo(f"{folder.name}/{change}")
    for one in kept:
        click.echo(f"was never in force and is kept: {one}")
    _tell_taken(config, generation, store)


def _hash_of(store: Store, which: str) -> str:
    """The hash that an operator means. Raises ConfigError when there is none such."""
    known = [entry.hash for entry in store.history()]
    if which.isdecimal() and 1 <= int(which) <= len(known):
        return known[int(which) - 1]
    if (hash_ := which.removeprefix("@")) in known:
        return hash_
    message = f"nothing of that name was in force{did_you_mean(which, known)}; see gateway policy history"
    raise ConfigError([Problem(which, message)])


def _texts(folder: Path) -> dict[str, str]:
    from gateway.policy.generation import policy_files

    if not folder.is_dir():
        return {}
    return {file.name: file.read_text(encoding="utf-8", errors="replace") for file in policy_files(folder)}


def _put_back(folder: Path, files: dict[str, str], store: Store, *, aside: Path) -> list[Path]:
    """Make a policy folder hold exactly these files. What was never archived is kept in `aside`; the paths of that."""
    from gateway.files import write_atomically
    from gateway.policy.generation import policy_files

    archived = store.texts()
    kept = []
    present = policy_files(folder) if folder.is_dir() else []
    for file in present:
        content = file.read_bytes()
        if content != files.get(file.name, "").encode() and content not in archived:
            write_atomically(aside / file.name, content, mode=0o600)
            kept.append(aside / file.name)
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    for file in present:
        if file.name not in files:
            file.unlink()
    return kept


@policy.command("replay")
@with_config
@_with_folder
@click.option("--log", "logs", type=click.Path(path_type=Path, exists=True), multiple=True, help="Log file or folder.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, exists=True), metavar="[FILE]...")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Also draw the flows as a picture.")
@with_json
def replay(
    path: Path | None, folder: Path | None, logs: tuple[Path, ...], more: tuple[Path, ...], png: Path | None, as_json: bool
) -> None:
    """Decide the logged requests again under the policies of a folder, and show what would go elsewhere.

    Takes the gateway's log files (.jsonl, or .jsonl.gz); by default those of the config. Exit status 2 when a class could go
    to a zone where nothing of it could go before, and when nothing could be replayed.
    """
    from gateway import replay as replay_
    from gateway.flows import check_drawable, draw

    if png is not None:
        check_drawable()
    config = load_config(path)
    generation = load_policies(config, folder)
    files = _log_files(config, [*logs, *more])
    with _progress(sum(file.stat().st_size for file in files)) as advance:
        found = replay_.replay(files, generation, _store(config).open, progress=advance)
    if as_json:
        show_json(replay_.as_json(found))
    else:
        show(replay_.render(found))
    if png is not None:
        draw(found.flows, png)
        click.echo(f"the flows are drawn in {png}", err=True)
    if not found.decisions:
        message = 'holds no route.decided line; they are written when logs.level is "info" or "debug"'
        raise ConfigError([Problem(str(files[0]), message)])
    if not found.replayed:
        message = "no decision of it can be replayed under these policies, so nothing is known of what they would change"
        raise ConfigError([Problem(str(files[0]), message)])
    if found.new_flows or found.unmasked:
        sys.exit(2)


def _log_files(config: Config, given: list[Path]) -> list[Path]:
    """The files that are meant, a folder standing for its log files, oldest first. Raises ConfigError when there are none."""
    from gateway.sinks import segment_files

    files = []
    for path in given or [config.logs_folder]:
        found = segment_files(path) if path.is_dir() else [path] if path.exists() else []
        if not found:
            raise ConfigError([Problem(str(path), "holds no log file; name one with --log FILE")])
        files += found
    return files


@contextmanager
def _progress(size_bytes: int) -> Iterator[Callable[[int], object]]:
    """A bar on standard error while it is a terminal; what it gives is told the bytes that were read."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("replaying", total=size_bytes)
        yield lambda count: progress.advance(task, count)


@policy.command("schema")
def schema() -> None:
    """Print a JSON Schema of policy files, for editors; it is shipped as docs/policy.schema.json."""
    from gateway.policy.schema import policy_schema

    show_json(policy_schema())
