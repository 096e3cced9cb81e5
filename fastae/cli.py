"""The ``fastae`` command.

A sub-command is one function that adds its arguments and one that runs it; the second imports what it
needs, so that ``fastae --help`` is there at once. What a user can put right ends in one line on standard
error and exit status 1 (2 for the arguments themselves, as argparse has it); a traceback is a defect.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CommandError", "main"]

_EXAMPLES = """\
examples:
  fastae demo                          the main demonstration, about a minute
  fastae demo --out pictures --force   with the pictures in another folder, replacing those there
  fastae demo --data images.npz        train on your own images
  fastae info                          backends, instruction set, threads, libraries

'fastae COMMAND --help' says more about a command."""

_DEMO = """\
Train AutoEncNet (225-75-225 with a link branch, SSE, SGD with learning rate 1e-4, batches of 20 drawn with
replacement, float64) on all four backends from the same weights and batches, time them, repeat the
measurement AutoEncNet was published with, and draw what came out."""

_DEMO_EXAMPLES = """\
examples:
  fastae demo
  fastae demo --data images.npz --out pictures
  fastae demo --updates 200 --scalar-updates 5

FILE.npz holds grey images from 0 to 255, shape (n, height, width): either an array 'train' and, if there is
one, an array 'test', or a single array. The network follows their size.

Without the extras, a backend that cannot be loaded is named in the table: pip install "fastae[demo]"."""


class CommandError(Exception):
    """What the user has to put right, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the program; those of the process when not given.

    Returns
    -------
    int
        Exit status: 0 when all went well, 1 for an error, 130 after Ctrl-C. Errors in the arguments
        leave through SystemExit with status 2.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nfastae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CommandError, ImportError, OSError) as error:
        print(f"fastae: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastae",
        description="Train and run autoencoders on a CPU, on a backend of your choice.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (_add_demo, _add_info):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Imports the package only when it is asked."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from fastae import __version__

        print(f"fastae {__version__}")
        parser.exit()


def _command(commands, name: str, run, help: str, description: str, epilog: str | None = None):
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _count(minimum: int):
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


def _add_demo(commands) -> None:
    help = "train AutoEncNet on all four backends and compare them"
    parser = _command(commands, "demo", _run_demo, help, _DEMO, _DEMO_EXAMPLES)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("fastae-demo"),
        metavar="DIR",
        help="folder of the pictures (%(default)s)",
    )
    add("--data", type=Path, metavar="FILE.npz", help="images to train on (the bundled UCI digits)")
    add("--updates", type=_count(1), default=1000, metavar="N", help="SGD updates (%(default)s)")
    add(
        "--scalar-updates",
        type=_count(1),
        metavar="N",
        help="updates of the scalar backend, which is slow (20 for images of 15x15, fewer for larger ones)",
    )
    add("--seed", type=_count(0), default=0, metavar="N", help="seed of weights and batches (%(default)s)")
    add("--force", action="store_true", help="replace pictures that are there already")


def _run_demo(arguments: argparse.Namespace) -> int:
    from fastae import demo

    return demo.run(
        out=arguments.out,
        data=arguments.data,
        updates=arguments.updates,
        scalar_updates=arguments.scalar_updates,
        seed=arguments.seed,
        force=arguments.force,
    )


def _add_info(commands) -> None:
    help = "show backends, instruction set, threads and library versions"
    _command(commands, "info", _run_info, help, "Show what a report of a defect or of a timing should quote.")


def _run_info(arguments: argparse.Namespace) -> int:
    from fastae import show_versions

    show_versions()
    return 0
