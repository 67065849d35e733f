"""The command line: ``qgait-ptq COMMAND``. A command is imported when it is called."""

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

from qgait_ptq.errors import FixedSizeWarning, ProcessorWarning, QgaitError, SequenceLengthWarning, first_line
from qgait_ptq.system.locking import temporary_files
from qgait_ptq.system.processes import (
    announced,
    first_failure,
    process_group,
    processes,
    wait_for_others,
)

# Raised for a call without arguments. Before click 8.2, click itself prints the help and ends.
NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())
COMMANDS = {
    "quantize": "quantize a network and write an ONNX file for a runtime",
    "evaluate": "measure the accuracy of a network or of a quantized file",
    "inspect": "list layers, shapes, cost and planned quantization of a network",
    "sensitivity": "measure the sensitivity of each layer at each width",
    "compare": "compare results of quantize",
    "targets": "list targets and their rules, or check a file against them",
    "verify": "compare a file in the runtime with the integer reference",
    "bench": "measure speed, memory and size of files",
    "embed": "embed the sequences of a folder into one file",
    "walkers": "write synthetic walkers to disk",
    "completion": "print a script for shell completion",
}
IN_PROCESSES = ("quantize", "evaluate", "sensitivity", "embed")  # commands that divide their work
BAD_INPUT, OUR_FAULT = 2, 1
SIGNALLED = 128  # shells report a program that a signal ended as 128 + the signal's number
CLOSED_PIPE = SIGNALLED + 13  # SIGPIPE, as for cat in "… | head -1"; 1 would mean an internal error
SENT_TWICE = 2  # seconds: "timeout" signals the process, then its group


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of a name; None if it does not exist."""
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
    context = click.get_current_context()
    command = context.invoked_subcommand
    if processes().count > 1 and command not in IN_PROCESSES:
        raise click.UsageError(f"{command} runs in one process; start it without torchrun")
    context.with_resource(temporary_files())


def run() -> None:
    """Run the command line.

    Exit codes: 0 for success, 2 for bad input or an output that cannot be written, 1 for an internal error,
    130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of standard output has closed it.
    """
    warnings.showwarning = _show_warning
    # Only progress goes to stderr. A run whose progress cannot be shown still gives its result.
    sys.stdout, sys.stderr = _guard(sys.stdout, raises=True), _guard(sys.stderr, raises=False)
    stopping = _Stopping()
    code = _exit_code(lambda: _run_among_processes(stopping), stopping)
    if code == 0 and stopping.asked:  # the signal came at the end, or a library swallowed the exception
        code = stopping.finish()
    # A failed command has released its stack frames by now, and with them its pools of processes.
    stopping.ignore()
    sys.exit(_exit_code(_flush, stopping) or code)


def _run_among_processes(stopping: _Stopping) -> None:
    """Run the command line in one process of those that torchrun started, usually the only one."""
    if not announced().first:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    with process_group():
        code = _exit_code(_run_command, stopping)
    sys.exit(code)


def _run_command() -> None:
    cli.main(prog_name="qgait-ptq", standalone_mode=False)
    wait_for_others()  # the first process may fail at the end, when it writes the result


class _Stopping:
    """Stops the run at SIGTERM and when the terminal closes, in the same way as Ctrl-C."""

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
        """Return whether a signal has arrived."""
        return self._last is not None

    def finish(self) -> int:
        """Print that the run was stopped, and return the exit code."""
        self.ignore()
        text = "stopped"
        if processes().count > 1 and self.number != signal.SIGINT:
            text = "stopped by torchrun: another process of the run has ended, or torchrun was stopped"
        return _fail(text, SIGNALLED + self.number)

    def ignore(self) -> None:
        """Ignore further signals: the run is over."""
        for number in self._answered:
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last < SENT_TWICE:
            return  # a second exception would interrupt the clean-up
        self.number, self._last = number, now
        raise KeyboardInterrupt


def _exit_code(act: Callable[[], object], stopping: _Stopping) -> int:
    """Call a function, print an error as one line, and return the exit code."""
    try:
        act()
    except _OutputError as lost:
        if lost.reason.errno == errno.EPIPE:  # the reader has ended and needs no message
            return _fail("", CLOSED_PIPE)
        return _fail(f"qgait-ptq: {lost}", BAD_INPUT)
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        return stop.code or 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        return stopping.finish()
    except NO_ARGUMENTS as error:
        return _fail(error.format_message(), BAD_INPUT)
    except Exception as error:
        if stopping.asked:  # a library turned the interrupt into another error
            return stopping.finish()
        if "--debug" in sys.argv and not isinstance(error, click.ClickException):
            raise
        text, code = _describe(error)
        if processes().count > 1:
            stopping.ignore()  # torchrun stops this process when another one has ended
        return _fail(f"qgait-ptq: {text}", code)
    return 0


def _fail(text: str, code: int) -> int:
    """Print why the run ends, in one of its processes, and return the exit code of all.

    Args:
        text: reason of this process; empty to print nothing.
        code: exit code of this process.
    """
    ours, code = first_failure(code)
    if ours and text:
        click.echo(text, file=sys.stderr if processes().first else sys.__stderr__)
    return code


def _describe(error: Exception) -> tuple[str, int]:
    """Return the text of an error for people, and the exit code."""
    from qgait_ptq.report.plain import plain  # here: rich takes a while to import

    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f"; see '{context.command_path} --help'" if context else ""
        return plain(error.format_message().rstrip(".")) + hint, BAD_INPUT
    if isinstance(error, QgaitError):
        return plain(" ".join(line.strip() for line in str(error).splitlines())), BAD_INPUT
    if _is_out_of_memory(error):
        return f"there is not enough memory for this ({plain(first_line(error))}); ask for less", BAD_INPUT
    text = (
        f"internal error: {type(error).__name__}: {plain(error)}\n"
        "This is a bug in qgait-ptq. Run 'qgait-ptq --debug …' for the traceback, and report it."
    )
    return text, OUR_FAULT


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory could not be reserved, on the CPU or a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
    )


class _OutputError(BaseException):
    """Standard output cannot be written. It is not an OSError, because libraries catch those."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(
            f"standard output: writing failed ({reason.strerror or reason}); free disk space or write "
            "elsewhere"
        )
        self.reason = reason


class _GuardedFile(io.FileIO):
    """A standard stream that stops writing after a write has failed."""

    def __init__(self, descriptor: int, raises: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._raises = raises

    def write(self, data: Any) -> int:
        """Write bytes and return their number."""
        if not data:  # click writes nothing to test whether a stream takes bytes
            return 0
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # buffered text must not fail again at exit
            os.close(nowhere)
            if self._raises:
                raise _OutputError(error) from None
            return len(data)


def _guard(stream: TextIO, raises: bool) -> TextIO:
    """Return a guarded standard stream. Other streams, such as a Windows console, are returned unchanged."""
    binary = getattr(stream, "buffer", None)
    if not isinstance(stream, io.TextIOWrapper) or type(getattr(binary, "raw", binary)) is not io.FileIO:
        return stream
    raw = _GuardedFile(stream.fileno(), raises)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # as Python opens it
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


def _show_warning(message: Warning | str, category: type[Warning], *position: Any, **more: Any) -> None:
    """Print the toolkit's own warnings as one line, and show other warnings as Python does."""
    if issubclass(category, (FixedSizeWarning, ProcessorWarning, SequenceLengthWarning)):
        from qgait_ptq.report.plain import plain

        click.echo(f"qgait-ptq: warning: {plain(message)}", err=True)
    else:
        _show_by_default(message, category, *position, **more)
