"""The ``fastae`` command.

::

    experiments   demo, train, bench          ──> fastae.demo, fastae.train, fastae.bench
    rows          encode, decode, reconstruct, detect ──> fastae.apply
    files         export, info                ──> fastae.export, fastae.backend

A command is one function that adds its arguments and one that runs it; the second imports what it needs, so
that ``fastae --help`` is there at once. What a user can put right ends in one line on standard error and
exit status 1 (2 for the arguments themselves, as argparse has it); a traceback is a defect.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fastae.cli.arguments import Parser

__all__ = ["CommandError", "main"]

_EXAMPLES = """\
examples:
  fastae demo                          the main demonstration, about a minute
  fastae train quark_mlp               a published experiment, its figures beside the published ones
  fastae train mlp --hidden 64 --latent 8 --data rows.csv --epochs 50 --out run
  fastae encode run/mlp.safetensors --data rows.csv --out codes.csv
  fastae reconstruct run/mlp.safetensors --data rows.csv --out again.npy
  fastae detect --data rows.csv --contamination 0.03 --out flags.csv
  fastae export run/mlp.safetensors --to c --out model.c
  fastae bench                         a training step on every backend, some seconds
  fastae info                          backends, instruction set, threads, libraries

'fastae COMMAND --help' says more about a command."""


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
    except MemoryError as error:
        print(f"fastae: error: not enough memory: {error}".rstrip(": "), file=sys.stderr)
        return 1
    except (CommandError, ImportError, OSError) as error:
        print(f"fastae: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from fastae.cli import experiments, files, rows

    parser = Parser(
        prog="fastae",
        description="Train and run autoencoders on a CPU, on a backend of your choice.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit"
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for group in (experiments, rows, files):
        group.add(commands)
    return parser


class _Version(argparse.Action):
    """Imports the package only when it is asked."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        from fastae import __version__

        print(f"fastae {__version__}")
        parser.exit()
