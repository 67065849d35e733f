"""The command line: ``qgait-ptq COMMAND``. Commands are imported when they are called."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

import click

from qgait_ptq.errors import ProcessorWarning, QgaitError, SequenceLengthWarning
from qgait_ptq.system.locking import temporary_files

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
SIGNALLED = 128  # a shell reports a program that a signal ended with 128 + its number
CLOSED_PIPE = SIGNALLED + 13  # SIGPIPE: how cat or seq end in "… | head -1"; 1 would look like our fault
SENT_TWICE = 2  # seconds: "timeout" signals the process, then its group


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
    click.get_current_context().with_resource(temporary_files())


def run() -> None:
    """Run the command line.

    Exit codes are 0 for success, 2 for bad input or an output that cannot be written, and 1 for our fault.
    A run that is stopped ends with 130 (Ctrl-C) or 143 (SIGTERM), one whose reader has gone with 141.
    """
    warnings.showwarning = _show_warning
    # A result does not depend on the progress that is shown, so errors of stderr are not raised.
    sys.stdout, sys.stderr = _guard(sys.stdout, raises=True), _guard(sys.stderr, raises=False)
    stopping = _Stopping()
    code = _exit_code(lambda: cli.main(prog_name="qgait-ptq", standalone_mode=False), stopping)
    if code == 0 and stopping.asked:  # at the last moment, or a library lost the exception that it raised
        code = stopping.finish()
    # The frames of a command that failed are freed here, and with them its pools of processes.
    stopping.ignore()
    sys.exit(_exit_code(_flush, stopping) or code)


class _Stopping:
    """Stops the run at SIGTERM, and when the terminal closes, as Ctrl-C does."""

    def __init__(self) -> None:
        self.number: int = signal.SIGINT
        self._last: float | None = None
        self._answered: list[int] = [signal.SIGINT]
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
                signal.signal(number, self._stop)
                self._answered.append(number)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._last is not None

    def finish(self) -> int:
        """Say so; give the exit code."""
        self.ignore()
        click.echo("stopped", err=True)
        return SIGNALLED + self.number

    def ignore(self) -> None:
        """Let signals pass: the run is over."""
        for number in self._answered:
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last < SENT_TWICE:
            return  # it would interrupt the tidying
        self.number, self._last = number, now
        raise KeyboardInterrupt


def _exit_code(act: Callable[[], object], stopping: _Stopping) -> int:
    """Do something; say in one line what went wrong, and give the exit code."""
    try:
        act()
    except _OutputError as lost:
        if lost.reason.errno == errno.EPIPE:  # its reader has ended and expects no more
            return CLOSED_PIPE
        click.echo(f"qgait-ptq: {lost}", err=True)
        return BAD_INPUT
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        return stop.code or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return stopping.finish()
    except Exception as error:
        if stopping.asked:  # a library made another error of it
            return stopping.finish()
        if "--debug" in sys.argv and not isinstance(error, click.ClickException):
            raise
        text, code = _describe(error)
        click.echo(f"qgait-ptq: {text}", err=True)
        return code
    return 0


def _describe(error: Exception) -> tuple[str, int]:
    """Text of an error for people, and the exit code."""
    from qgait_ptq.report.plain import plain  # here: rich takes a while to import

    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context else ""
        return plain(error.format_message().rstrip(".")) + hint, BAD_INPUT
    if isinstance(error, QgaitError):
        return plain(error), BAD_INPUT
    text = (
        f"internal error: {type(error).__name__}: {plain(error)}\n"
        "This is our fault; run again as 'qgait-ptq --debug …' for the traceback and report it."
    )
    return text, OUR_FAULT


class _OutputError(BaseException):
    """Standard output cannot be written. Not an OSError: libraries catch those for reasons of their own."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(
            f"standard output: cannot be written ({reason.strerror or reason}); free the disk or write "
            "elsewhere"
        )
        self.reason = reason


class _GuardedFile(io.FileIO):
    """A standard stream that writes nothing more once a write failed."""

    def __init__(self, descriptor: int, raises: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._raises = raises

    def write(self, data: Any) -> int:
        """Write bytes."""
        if not data:  # click asks in this way whether a stream takes bytes
            return 0
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # what is still buffered must not fail again at exit
            os.close(nowhere)
            if self._raises:
                raise _OutputError(error) from None
            return len(data)


def _guard(stream: TextIO, raises: bool) -> TextIO:
    """Replace a standard stream by a guarded one; other streams, such as a Windows console, stay."""
    binary = getattr(stream, "buffer", None)
    if not isinstance(stream, io.TextIOWrapper) or type(getattr(binary, "raw", binary)) is not io.FileIO:
        return stream
    raw = _GuardedFile(stream.fileno(), raises)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # as Python does
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


_show_by_default = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show the toolkit's own warnings as a line for people, and others as Python does."""
    if issubclass(category, (ProcessorWarning, SequenceLengthWarning)):
        from qgait_ptq.report.plain import plain

        click.echo(f"qgait-ptq: warning: {plain(message)}", err=True)
    else:
        _show_by_default(message, category, *place, **more)
