"""The command line: ``qgait-ptq COMMAND``. Commands are imported when they are called."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from qgait_ptq.errors import ProcessorWarning, QgaitError

COMMANDS = {
    "quantize": "quantize a network and write it for a runtime",
    "evaluate": "accuracy of a network or of a quantized file",
    "inspect": "layers, shapes, cost and planned quantization of a network",
    "sensitivity": "damage of each layer and width to the ranking",
    "compare": "results beside each other",
    "targets": "runtimes that files are written for, and their rules",
    "verify": "bytes of a file in the runtime that differ from the integer reference",
    "bench": "speed, memory and size of files, run in turn",
    "embed": "embed the sequences of a folder into one file",
    "walkers": "write synthetic walkers to disk",
    "completion": "completion of commands and options in a shell",
}
BAD_INPUT, OUR_FAULT = 2, 1


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"qgait_ptq.cli.{cmd_name}").command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("qgait-ptq"), prog_name="qgait-ptq")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Post-training quantization of gait-recognition networks.

    \b
    Example:
      qgait-ptq quantize examples/models/gaitbase-small.pt --bits 4
    """


def run() -> None:
    """Run the command line: one line and exit code 2 for bad input, 1 for our fault."""
    debug = "--debug" in sys.argv
    warnings.showwarning = _show_warning
    try:
        cli.main(prog_name="qgait-ptq", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context else ""
        click.echo(f"qgait-ptq: {error.format_message().rstrip('.')}{hint}", err=True)
        sys.exit(BAD_INPUT)
    except QgaitError as error:
        if debug:
            raise
        click.echo(f"qgait-ptq: {error}", err=True)
        sys.exit(BAD_INPUT)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"qgait-ptq: internal error: {type(error).__name__}: {error}\n"
            "This is our fault; run again as 'qgait-ptq --debug …' for the traceback and report it.",
            err=True,
        )
        sys.exit(OUR_FAULT)


_show_by_default = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show the toolkit's own warnings as a line for people, and others as Python does."""
    if issubclass(category, ProcessorWarning):
        click.echo(f"qgait-ptq: warning: {message}", err=True)
    else:
        _show_by_default(message, category, *place, **more)
