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
  fastae train quark_mlp               a published experiment, its figures beside the published ones
  fastae export run/model.safetensors --to c --out model.c
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


_TRAIN = """\
Train a published network as published (loss, optimiser, batch size, epochs), and print its figures beside
the published ones and beside those of an independent implementation."""

_TRAIN_EXAMPLES = """\
models:
  quark_mlp              784-10-10-784
  batchnorm_mlp          784-512-256-128-256-512-784, batch-normalised
  deep_mlp               784-256-128-64-32-16-8-4 and back
  deep_mlp_linear_code   784-256-128-32-16-10-16-32-64-128-256-784
  autoencnet             225-75-225 with a link branch
  upsample_conv          convolutions of 16 and 8 channels with poolings, and back by upsampling
  strided_conv           convolutions of 16, 32 and 64 channels with poolings, and back by strides
  generic_conv           convolutions of 3 and 9 channels, a dense code of 100, and back by upsampling; the
                         first 1000 training images, 150 epochs, validated on the next 1000

examples:
  fastae train quark_mlp
  fastae train deep_mlp --out run --checkpoint-every 1
  fastae train deep_mlp --out run --checkpoint-every 1 --resume    after it was stopped
  fastae train batchnorm_mlp --data images.npz --epochs 5

FILE holds images, (n, height, width), or rows, (n, values): uint8 are grey levels from 0 to 255 and are
scaled, floats are taken as they are. In an .npz: arrays 'train' and 'test', or a single one, of which the
last tenth is for validation.

MNIST is looked for in the folder FASTAE_DATA_DIR, then in the cache, then downloaded (pip install
"fastae[data]"). --out needs pip install "fastae[files,plots]", or "fastae[demo]".

--resume takes the seed and where it was from the saved training: --seed is ignored. --epochs counts those
that are done too; --data, --dtype and --batch-size have to be as they were; --backend and --threads may be
others. On the same backend the result has the bits of a run that was never stopped.

Numba compiles the kernels of a network the first time a machine runs it, which takes about 8 to 20 seconds
before the first epoch, and keeps them on disk."""


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
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit"
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (_add_demo, _add_train, _add_export, _add_info):
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


def _add_train(commands) -> None:
    help = "train a published network as published"
    parser = _command(commands, "train", _run_train, help, _TRAIN, _TRAIN_EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the network, see below")
    add(
        "--data",
        metavar="DATA",
        help="mnist, fashion_mnist, digits, FILE.npz or FILE.npy (mnist; for autoencnet digits)",
    )
    add("--epochs", type=_count(1), metavar="N", help="in place of the published number")
    add("--backend", metavar="NAME", help="scalar, numpy, numba or cython (the best there is)")
    add(
        "--threads",
        type=_count(1),
        metavar="N",
        help="threads of numba or cython (1); scalar and numpy have none",
    )
    add("--dtype", choices=("float32", "float64"), help="in place of the published one")
    add("--batch-size", type=_count(1), metavar="N", help="in place of the published one")
    add(
        "--seed",
        type=_count(0),
        default=0,
        metavar="N",
        help="of all that is random (%(default)s); ignored by --resume",
    )
    add("--out", type=Path, metavar="DIR", help="folder for weights, learning curve and pictures")
    add("--checkpoint-every", type=_count(1), metavar="N", help="save every N epochs too; needs --out")
    add("--resume", action="store_true", help="go on with the training saved in --out, see below")
    add("--force", action="store_true", help="replace files that are there already")
    add("--quiet", action="store_true", help="show no progress")


def _run_train(arguments: argparse.Namespace) -> int:
    from fastae import train

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "model")}
    return train.run(arguments.model, **options)


def _add_export(commands) -> None:
    help = "write a trained network as ONNX or C"
    parser = _command(commands, "export", _run_export, help, _EXPORT, _EXPORT_EXAMPLES)
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="file with a trained network")
    add("--to", choices=("onnx", "c"), required=True, help="format")
    parts = ("encode", "decode", "reconstruct", "score", "detect")
    add("--part", choices=parts, default="reconstruct", help="what to export (%(default)s), see below")
    add("--out", type=Path, required=True, metavar="FILE", help="file to write")
    add("--threshold", type=float, metavar="X", help="score above which a row is an outlier; for detect")
    add("--prefix", metavar="NAME", help="what all names of a C file begin with (fastae)")
    add("--force", action="store_true", help="replace FILE if it is there already")


def _run_export(arguments: argparse.Namespace) -> int:
    from fastae import export, load

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


def _add_info(commands) -> None:
    help = "show backends, instruction set, threads and library versions"
    _command(commands, "info", _run_info, help, "Show what a report of a defect or of a timing should quote.")


def _run_info(arguments: argparse.Namespace) -> int:
    from fastae import show_versions

    show_versions()
    return 0
