"""Where text goes: results to standard output, everything that is meant for a person at work to standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

Reporter = Callable[[str, int, int], None]

SECONDS_BETWEEN_FRAMES = 0.1


@dataclass
class Terminal:
    """The two streams and how much to say on them; options of the command line set the rest.

    Attributes:
        results: what standard output was when the program started.
        quiet: no progress, no notes, no table where the result is a file.
        verbose: also what the libraries warn of, and each step of long work.
        traceback: whether an error shows where it was raised.
        interrupted: whether a signal has asked to stop.
    """

    results: TextIO
    quiet: bool = False
    verbose: bool = False
    traceback: bool = False
    interrupted: bool = field(default=False, init=False)

    def result(self, text: str) -> None:
        """Print a result. A reader who has gone away (``| head``) is no error."""
        try:
            self.results.write(text if text.endswith("\n") else f"{text}\n")
            self.results.flush()
        except BrokenPipeError:
            self.results = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the program)

    def note(self, text: str) -> None:
        """Tell what was done, unless told to be quiet."""
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """Print to standard error, whatever the options."""
        with contextlib.suppress(BrokenPipeError):
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Reporter]:
        """Yield a function to call with (what, done, total), total 0 where unknown.

        On a terminal it draws a bar; elsewhere it prints each new step with ``-v`` and else nothing.
        """
        if not self.quiet and sys.stderr.isatty():
            with _bars() as bars:
                yield self._drawing(bars)
        else:
            yield self._listing()

    def _drawing(self, bars: Progress) -> Reporter:
        tasks: dict[str, object] = {}
        drawn = 0.0

        def report(what: str, done: int, total: int) -> None:
            nonlocal drawn
            self._stop_if_interrupted()
            fresh = what not in tasks
            if fresh:
                for earlier in tasks.values():
                    bars.update(earlier, visible=False)  # type: ignore[arg-type]
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None, visible=True)  # type: ignore[arg-type]
            if fresh or time.monotonic() - drawn > SECONDS_BETWEEN_FRAMES:
                bars.refresh()
                drawn = time.monotonic()

        return report

    def _listing(self) -> Reporter:
        last = ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            self._stop_if_interrupted()
            if self.verbose and what != last:
                self.error(what)
            last = what

        return report

    def _stop_if_interrupted(self) -> None:
        """Raise again what may have been swallowed where Python cannot raise, in a callback from a library."""
        if self.interrupted:
            raise KeyboardInterrupt


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Drawn from here, not from a thread of its own: that would disturb what is being timed.
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[TextIO]:
    """Yield the stream for results; whatever else writes to standard output reaches standard error.

    Libraries print there, and native code writes to the file descriptor itself.
    """
    original = sys.stdout
    descriptor = _descriptor(original)
    if descriptor != 1 or _descriptor(sys.stderr) != 2:
        with contextlib.redirect_stdout(sys.stderr):
            yield original
        return
    original.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(os.dup(saved), "w", encoding="utf-8") as results, contextlib.redirect_stdout(sys.stderr):
            yield results
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
