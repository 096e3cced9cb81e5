"""What the arguments of several commands have in common; argparse and nothing else is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "DATA_HELP",
    "Parser",
    "add_backend",
    "add_data",
    "add_force",
    "add_out",
    "add_quiet",
    "command",
    "count",
    "counts",
    "share",
]

#: What --data takes, for the help of commands that have it.
DATA_HELP = """\
DATA is one of
  FILE.npy, FILE.npz    an array (n, values), (n, height, width) or (n, channels, height, width); of an .npz
                        the array 'train' or the only one of rows, or with FILE.npz:NAME the one of that name
  FILE.csv              numbers with commas, semicolons or tabs between; a line of names before them, of which
                        none is a number, or none
  an IDX file           plain or gzipped, as MNIST's
  a folder              of images of one size, which become grey: pip install "fastae[images]"
  mnist, fashion_mnist, digits
uint8, and so images, are grey levels from 0 to 255 and are scaled to [0, 1]; floats, and so CSV, are taken as
they are: scale columns of other sizes first."""


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Say it, and leave with status 2."""
        print(f"{self.prog}: error: {message} ('{self.prog} --help' says more)", file=sys.stderr)
        sys.exit(2)


def command(
    commands: Any, name: str, run: Callable[..., int], help: str, description: str, epilog: str | None = None
) -> Parser:
    """Add a command."""
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# -- types of arguments --------------------------------------------------------------------------------


def count(minimum: int) -> Callable[[str], int]:
    """Type of an argument that counts something."""

    def count(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {minimum}, got {text!r}")
        return value

    return count


def counts(text: str) -> tuple[int, ...]:
    """Type of an argument that is a list of widths; "none" is an empty one."""
    try:
        values = () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"expected whole numbers >= 1, such as 128,64, or none, got {text!r}"
        )
    return values


def share(text: str) -> float:
    """Type of --contamination."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 0.5], got {text!r}")
    return value


def positive(text: str) -> float:
    """Type of an argument that is a number > 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


# -- arguments -----------------------------------------------------------------------------------------


def add_data(parser: Parser, help: str, *, required: bool = True) -> None:
    """Add --data."""
    parser.add_argument("--data", required=required, metavar="DATA", help=help)


def add_out(parser: Parser, help: str) -> None:
    """Add --out for a file."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=help)


def add_backend(parser: Parser) -> None:
    """Add --backend and --threads."""
    parser.add_argument(
        "--backend", metavar="NAME", help="scalar, numpy, numba or cython (the best there is)"
    )
    parser.add_argument(
        "--threads",
        type=count(1),
        metavar="N",
        help="threads of numba or cython (1); scalar and numpy have none",
    )


def add_force(parser: Parser, help: str = "replace files that are there already") -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help=help)


def add_quiet(parser: Parser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")
