"""Commands that run a model on rows: encode, decode, reconstruct, detect."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from fastae.cli.arguments import (
    DATA_HELP,
    add_backend,
    add_data,
    add_force,
    add_out,
    add_quiet,
    command,
    count,
    counts,
    positive,
    share,
)

__all__ = ["add"]

_MODEL_HELP = "file that fastae train --out, Trainer.save or the save of an estimator wrote"

_OUT_HELP = """\
The suffix of FILE says what is written: .npy, .npz or .csv."""

#: Name, help, description, examples of the commands that are alike.
_PARTS = (
    (
        "encode",
        "write the codes of rows",
        "Write the code of each row, with a trained model.",
        """\
examples:
  fastae encode run/mlp.safetensors --data rows.csv --out codes.csv
  fastae encode run/quark_mlp.safetensors --data mnist:test --out codes.npy
  fastae encode run/quark_mlp.safetensors --data images.npz:train --out codes.npz --backend numba""",
    ),
    (
        "decode",
        "write the outputs for codes",
        "Write the output for each code, with a trained model.",
        """\
examples:
  fastae decode run/mlp.safetensors --data codes.csv --out rows.csv
  fastae decode run/quark_mlp.safetensors --data codes.npz:code --out images.npy""",
    ),
    (
        "reconstruct",
        "write the reconstructions of rows",
        "Encode and decode each row, with a trained model.",
        """\
examples:
  fastae reconstruct run/mlp.safetensors --data rows.csv --out again.csv
  fastae reconstruct run/quark_mlp.safetensors --data folder/ --out again.npz --force""",
    ),
)

_DETECT = """\
Tell the rows that an autoencoder reconstructs worst. Without --model it is trained on these very rows. The
score is the mean squared error between a row and its reconstruction; outliers have the highest."""

_DETECT_EXAMPLES = f"""\
examples:
  fastae detect --data rows.csv --contamination 0.03 --out flags.csv
  fastae detect --data rows.csv --standardize --latent 4 --hidden 32 --epochs 500 --out flags.csv
  fastae detect --data normal.npy --out flags.npz --save detector.safetensors
  fastae detect --data new.npy --model detector.safetensors --out new-flags.csv
  fastae detect --data rows.csv --model run/mlp.safetensors --contamination 0.01 --out flags.csv

FILE gets a line for each row, in their order: score and outlier (1 or 0); an .npz arrays of these names.

A detector that was saved brings its threshold along. With any other model, --contamination is the share of
these rows that is flagged.

{DATA_HELP}

Training needs pip install "fastae[sklearn]", models pip install "fastae[files]"."""


def add(commands: Any) -> None:
    """Add the commands of this group."""
    for name, help, description, examples in _PARTS:
        what = "codes: floats" if name == "decode" else DATA_HELP
        epilog = f"{examples}\n\n{_OUT_HELP}\n\n{what}"
        parser = command(commands, name, partial(_run_part, name), help, description, epilog)
        parser.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
        add_data(parser, "codes, a row each" if name == "decode" else "rows, see below")
        add_out(parser, "file to write: .npy, .npz or .csv")
        add_backend(parser)
        add_force(parser, "replace FILE if it is there already")
        add_quiet(parser)
    _add_detect(commands)


def _run_part(name: str, arguments: argparse.Namespace) -> int:
    from fastae import apply

    options = {key: value for key, value in vars(arguments).items() if key not in ("run", "model")}
    return apply.run(name, arguments.model, **options)


def _add_detect(commands: Any) -> None:
    parser = command(commands, "detect", _run_detect, "flag outliers", _DETECT, _DETECT_EXAMPLES)
    add = parser.add_argument
    add_data(parser, "rows, see below")
    add_out(parser, "file to write: .npy, .npz or .csv")
    add(
        "--contamination",
        type=share,
        metavar="X",
        help="share of outliers among the rows, in (0, 0.5] (0.1)",
    )
    add("--model", type=Path, metavar="MODEL", help="a trained one in place of one trained now")
    add_backend(parser)
    add_force(parser)
    add_quiet(parser)
    own = parser.add_argument_group("of the training")
    add = own.add_argument
    add("--hidden", type=counts, metavar="N,N", help="widths before the code; none for none (100)")
    add("--latent", type=count(1), metavar="N", help="width of the code; a narrow one finds more (2)")
    add("--epochs", type=count(1), metavar="N", help="at most (200)")
    add("--batch-size", type=count(1), metavar="N", help="rows of a batch (32)")
    add("--learning-rate", type=positive, metavar="X", help="of Adam (0.001)")
    add("--dtype", choices=("float32", "float64"), help="of the arithmetic (float32)")
    add("--seed", type=count(0), metavar="N", help="of all that is random (0)")
    add("--standardize", action="store_true", help="bring each column to mean 0 and deviation 1 first")
    add("--save", type=Path, metavar="FILE", help="keep the detector, for --model")


def _run_detect(arguments: argparse.Namespace) -> int:
    from fastae import apply

    return apply.detect(**{key: value for key, value in vars(arguments).items() if key != "run"})
