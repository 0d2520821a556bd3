"""The program: runs a command and turns what it raises into a message and an exit code.

0 done and every gate held; 1 a gate or check failed; 2 wrong usage; 3 the model or data cannot be read, is unsafe or
unsupported, or the result cannot be written; 4 a bug in graphopt; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from graphopt.cli.terminal import Terminal, only_results_on_stdout
from graphopt.errors import GraphoptError

OK, FAILED, USAGE, UNREADABLE, BUG, INTERRUPTED = 0, 1, 2, 3, 4, 130

# Errors of the system that the user can mend, wherever they are raised.
_USERS_TO_MEND = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    ``arguments`` come without the program's name; None stands for this process's own.
    """
    # From release 1.29 on, ONNX Runtime's binaries report names and hashes of models to their maker unless told not to
    # before they are loaded (onnxruntime's Privacy.md). Whoever wants that sets the variable to 0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with only_results_on_stdout() as results:
        terminal = Terminal(results)
        with _interruptible(terminal), warnings.catch_warnings():
            try:
                code = _run(sys.argv[1:] if arguments is None else list(arguments), terminal)
            except BaseException as error:  # every error ends in a message and a code
                code = _explain(error, terminal)
    return code


def _run(arguments: list[str], terminal: Terminal) -> int:
    from graphopt.cli.commands import graphopt

    warnings.simplefilter("default")
    warnings.showwarning = _shown_by(terminal)
    with contextlib.redirect_stdout(terminal.results):  # for --help and --version
        code = graphopt.main(args=arguments, prog_name="graphopt", standalone_mode=False, obj=terminal)
    return code if isinstance(code, int) else OK


def _shown_by(terminal: Terminal) -> Callable[..., None]:
    """Show graphopt's own warnings always, those of the libraries with ``-v`` only."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if terminal.verbose or category.__module__.startswith("graphopt."):
            terminal.note(f"warning: {message}")

    return show


def _explain(error: BaseException, terminal: Terminal) -> int:
    """Print what went wrong, for the person who reads it, and return the exit code."""
    import click

    if terminal.traceback and not isinstance(error, click.exceptions.Exit | SystemExit):
        import traceback

        terminal.error("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, click.ClickException) and not terminal.interrupted:
        with contextlib.suppress(BrokenPipeError):
            error.show(sys.stderr)
        return USAGE
    message, code = _message(error, terminal)
    if message:
        terminal.error(f"graphopt: {message}")
    if code == BUG and not terminal.traceback:
        terminal.error("This is a bug in graphopt. The same command with --traceback shows where it happened.")
    return code


def _message(error: BaseException, terminal: Terminal) -> tuple[str, int]:
    """One line on what went wrong, and the exit code."""
    import click

    if terminal.interrupted or isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted; nothing was written", INTERRUPTED
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    if isinstance(error, GraphoptError) and error.exit_code != BUG:
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "not enough memory for this model and data", UNREADABLE
    if isinstance(error, OSError) and error.errno in _USERS_TO_MEND:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), UNREADABLE
    text = str(error).strip()
    summary = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    return f"internal error, {summary}", BUG


@contextlib.contextmanager
def _interruptible(terminal: Terminal) -> Iterator[None]:
    """Let SIGINT and SIGTERM unwind the program, so that temporary files are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminal.interrupted = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
