"""``qgait-ptq completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_QGAIT_PTQ_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    Example:
      qgait-ptq completion bash > ~/.local/share/bash-completion/completions/qgait-ptq
    """
    from qgait_ptq.cli.main import cli
    from qgait_ptq.system.invariants import present

    completion = present(get_completion_class(shell))
    click.echo(completion(cli, {}, "qgait-ptq", VARIABLE).source())
