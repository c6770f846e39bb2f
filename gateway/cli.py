"""The command line: reads arguments, calls one function, prints. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway import __version__
from gateway.config import Config, load
from gateway.errors import ConfigError, GatewayError


class _Problems(click.ClickException):
    """A ConfigError as the person at the terminal reads it; exit status 2."""

    exit_code = 2

    def __init__(self, error: ConfigError) -> None:
        super().__init__("\n".join(str(problem) for problem in error.problems))

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """The problems, one a line, as editors understand them."""
        click.echo(self.message, err=True)


_config = click.option(
    "--config",
    "-c",
    "path",
    type=click.Path(path_type=Path),
    envvar="GATEWAY_CONFIG",
    default=None,
    help="The config file; default: config.toml, else config.example.toml. [env: GATEWAY_CONFIG]",
)


def _load(path: Path | None) -> Config:
    if path is None:
        path = next((found for name in ("config.toml", "config.example.toml") if (found := Path(name)).exists()), Path("config.toml"))
    return load(path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def cli() -> None:
    """An OpenAI-compatible caching and routing gateway."""


@cli.command()
@_config
def serve(path: Path | None) -> None:
    """Run the gateway in the foreground until SIGTERM or Ctrl-C."""
    from gateway.supervisor import serve as run

    sys.exit(run(_load(path)))


def main() -> None:
    """Entry point."""
    try:
        cli.main(standalone_mode=False)
    except ConfigError as error:
        _Problems(error).show()
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GatewayError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
