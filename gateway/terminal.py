"""What every command of the command line shares: its options, the config it works on, and how it prints. Knows no command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gateway.config import Config, load
from gateway.errors import ConfigError, Problem

with_config = click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_CONFIG",
    show_envvar=True,
    help="The config file. Default: config.toml, or config.example.toml where there is none.",
)
with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def load_config(path: Path | None) -> Config:
    """The config that the command is to work on. Raises ConfigError when there is none, or it cannot be used."""
    if path is None:
        path = Path("config.toml")
        path = path if path.exists() else Path("config.example.toml")
    if not path.exists():
        message = "there is no such file; name one with --config, or run in a folder that has config.toml"
        raise ConfigError([Problem(str(path), message)])
    return load(path)


def show(value: Any) -> None:
    """Print a rich renderable, as wide as the terminal; unstyled when it goes to a file or another program."""
    from rich.console import Console  # noqa: PLC0415 - `--help` is to be quick

    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(value)


def show_json(value: Any) -> None:
    """Print plain values as JSON."""
    click.echo(json.dumps(value, indent=1))
