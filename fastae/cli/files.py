"""Commands on models and on the installation: export, info."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastae.cli.arguments import add_force, add_out, command

__all__ = ["add"]

_EXPORT = """\
Write a trained network for other programs: as an ONNX file (opset 18), or as one file of C99 without
dependencies that handles one row in one function."""

_EXPORT_EXAMPLES = """\
parts:
  encode        the code of a row
  decode        the output for a code
  reconstruct   the output for a row
  score         the mean squared error between a row and its output
  detect        the score, and whether it is above --threshold

examples:
  fastae export run/model.safetensors --to onnx --out model.onnx
  fastae export run/model.safetensors --to onnx --part encode --out encoder.onnx
  fastae export run/model.safetensors --to c --part decode --prefix digits --out decoder.c
  fastae export run/model.safetensors --to c --part detect --threshold 0.02 --out detector.c

MODEL is a file that Trainer.save, a Checkpoint or fastae train --out wrote (fastae[files]); ONNX needs
pip install "fastae[onnx]". The head of a C file says what its function takes and how to compile it."""


def add(commands: Any) -> None:
    """Add the commands of this group."""
    _add_export(commands)
    _add_info(commands)


def _add_export(commands: Any) -> None:
    help = "write a trained network as ONNX or C"
    parser = command(commands, "export", _run_export, help, _EXPORT, _EXPORT_EXAMPLES)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="file with a trained network")
    add("--to", choices=("onnx", "c"), required=True, help="format")
    parts = ("encode", "decode", "reconstruct", "score", "detect")
    add("--part", choices=parts, default="reconstruct", help="what to export (%(default)s), see below")
    add_out(parser, "file to write")
    add("--threshold", type=float, metavar="X", help="score above which a row is an outlier; for detect")
    add("--prefix", metavar="NAME", help="what all names of a C file begin with (fastae)")
    add_force(parser, "replace FILE if it is there already")


def _run_export(arguments: argparse.Namespace) -> int:
    from fastae import export, load
    from fastae.cli import CommandError

    if arguments.to != "c" and arguments.prefix is not None:
        raise CommandError("--prefix: expected with --to c alone")
    options = {"threshold": arguments.threshold, "force": arguments.force}
    if arguments.prefix is not None:
        options["prefix"] = arguments.prefix
    write = export.to_c if arguments.to == "c" else export.to_onnx
    try:
        write(load(arguments.model), arguments.out, arguments.part, **options)
    except FileExistsError as error:
        raise CommandError(f"{arguments.out} exists; give another --out, or --force to replace it") from error
    except (ValueError, NotImplementedError) as error:
        raise CommandError(error) from error
    print(f"{arguments.out}: {arguments.part}, {arguments.out.stat().st_size:,} bytes")
    return 0


def _add_info(commands: Any) -> None:
    help = "show backends, instruction set, threads and library versions"
    command(commands, "info", _run_info, help, "Show what a report of a defect or of a timing should quote.")


def _run_info(arguments: argparse.Namespace) -> int:
    from fastae import show_versions

    show_versions()
    return 0
