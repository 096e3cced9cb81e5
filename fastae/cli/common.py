"""What commands have in common once they run: errors in one line, the backend, progress, tables."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final, TextIO

from fastae import backend as backends
from fastae.cli import CommandError
from fastae.history import DivergenceError

__all__ = ["Text", "chosen_backend", "progress", "refused"]

_UNTHREADED: Final = ("scalar", "numpy")


@contextmanager
def refused(about: str = "") -> Iterator[None]:
    """Make an error that a user can put right a CommandError of one line.

    Parameters
    ----------
    about : str
        The option it is about, which the line begins with.
    """
    begin = f"{about} " if about else ""
    try:
        yield
    except BrokenPipeError:  # of what is printed
        raise
    except FileExistsError as error:
        name = error.filename or error
        raise CommandError(f"{name} exists; give another {about}, or --force to replace it") from error
    except OSError as error:
        name = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise CommandError(f"{begin}{name}{reason}") from error
    except (ValueError, NotImplementedError, DivergenceError) as error:
        raise CommandError(begin + " ".join(str(error).split("\n"))) from error


def chosen_backend(name: str | None, threads: int | None) -> str:
    """Name of the backend that --backend, or what takes its place, asks for.

    Raises
    ------
    CommandError
        There is none of this name, or it has no threads.
    ImportError
        It cannot be loaded.
    """
    with refused():
        chosen = backends.resolve(name).name
    if chosen in _UNTHREADED and threads is not None and threads > 1:
        raise CommandError(f"--threads {threads}: the backend {chosen} has no threads; numba and cython do")
    return chosen


# -- what is printed -----------------------------------------------------------------------------------


class Text:
    """Lines and tables for a file, or for standard output."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file

    def line(self, text: str = "") -> None:
        """Print a line."""
        print(text, file=self.file)

    def table(self, rows: Sequence[Sequence[str]], heads: int = 1) -> None:
        """Print rows of cells: the first left, the others right; a lone second cell runs on."""
        full = [row for row in rows if len(row) > 2]
        widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
        widths[0] = max(len(row[0]) for row in rows)
        for number, row in enumerate(rows):
            if number == heads:
                self.line("-" * (sum(widths) + 3 * (len(widths) - 1)))
            if len(row) == 2:
                self.line(f"{row[0]:<{widths[0]}}   {row[1]}")
            else:
                cells = [
                    f"{row[0]:<{widths[0]}}",
                    *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)),
                ]
                self.line("   ".join(cells).rstrip())


# -- progress ------------------------------------------------------------------------------------------


@contextmanager
def progress(
    name: str, total: int, unit: str, *, delay: float = 0.0, quiet: bool = False
) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error while something is at work; gives what to tell to what is done.

    Parameters
    ----------
    name, unit : str
        What is at work, and what is counted.
    total : int
        Units in all.
    delay : float
        Seconds of work that are not worth a bar.
    quiet : bool
        Whether to show nothing.
    """
    if quiet:
        yield lambda done: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        bar: Any = _PlainBar(name, total, unit, delay)
    else:
        label = f"{name:<6}"
        bar = tqdm(desc=label, total=total, unit=f" {unit}", file=sys.stderr, leave=False, delay=delay)
    try:
        yield bar.update
    finally:
        bar.close()


class _PlainBar:
    """What there is without tqdm, whose two methods it has."""

    def __init__(self, name: str, total: int, unit: str, delay: float) -> None:
        self.name, self.total, self.unit, self.done, self.shown = name, total, unit, 0, -math.inf
        self.first = perf_counter() + delay
        self.update(0)

    def update(self, done: int) -> None:
        """Show so many units more."""
        self.done += done
        now = perf_counter()
        if now >= self.first and (self.done == self.total or now - self.shown > 0.1):
            self.shown = now
            filled = 30 * self.done // self.total
            line = (
                f"{self.name:<6} |{'#' * filled}{'.' * (30 - filled)}| {self.done}/{self.total} {self.unit}"
            )
            print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.shown > -math.inf:
            print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)
