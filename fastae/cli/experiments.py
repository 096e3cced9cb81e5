"""Commands that train and time: demo, train, bench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastae.cli.arguments import (
    DATA_HELP,
    add_backend,
    add_data,
    add_force,
    add_quiet,
    command,
    count,
    counts,
    positive,
)

__all__ = ["add"]

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
the published ones and beside those of an independent implementation; or train layers of your own, mlp."""

_TRAIN_EXAMPLES = (
    """\
models:
  mlp                    dense layers, relu, of --hidden to a linear code of --latent, and back
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
  fastae train mlp --data rows.csv --hidden 64,32 --latent 8 --epochs 50 --out run
  fastae train mlp --data folder/ --latent 16 --loss bce --backend numba

"""
    + DATA_HELP
    + """

Of an .npz with arrays 'train' and 'test' the second is for validation; else the last tenth of the rows is.

MNIST is looked for in the folder FASTAE_DATA_DIR, then in the cache, then downloaded (pip install
"fastae[data]"). --out writes MODEL.safetensors, history.csv (losses and seconds of each epoch)
and, with pip install "fastae[plots]", pictures; it needs pip install "fastae[files]", or "fastae[demo]".

--resume takes the seed and where it was from the saved training: --seed is ignored. --epochs counts those
that are done too; --data, --dtype and --batch-size have to be as they were; --backend and --threads may be
others. On the same backend the result has the bits of a run that was never stopped.

Numba compiles the kernels of a network the first time a machine runs it, which takes about 8 to 20 seconds
before the first epoch, and keeps them on disk."""
)

_BENCH = """\
Time a training step of a published network on every backend that is there: batch, forward, loss, backward,
update. Before a clock starts, the losses of the first updates are compared with those of numpy in float64."""

_BENCH_EXAMPLES = """\
examples:
  fastae bench
  fastae bench deep_mlp
  fastae bench strided_conv --dtype float64 --threads 2
  fastae bench autoencnet --batch-size 200 --seconds 2

It takes less than 20 seconds, but for numba's compiling where this machine has never run the network. The
images are the bundled digits. Where a batch would take the scalar backend too long it runs the step on fewer
rows, which the table tells: compare the times per row."""


def add(commands: Any) -> None:
    """Add the commands of this group."""
    for one in (_add_demo, _add_train, _add_bench):
        one(commands)


def _add_demo(commands: Any) -> None:
    help = "train AutoEncNet on all four backends and compare them"
    parser = command(commands, "demo", _run_demo, help, _DEMO, _DEMO_EXAMPLES)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("fastae-demo"),
        metavar="DIR",
        help="folder of the pictures (%(default)s)",
    )
    add("--data", type=Path, metavar="FILE.npz", help="images to train on (the bundled UCI digits)")
    add("--updates", type=count(1), default=1000, metavar="N", help="SGD updates (%(default)s)")
    add(
        "--scalar-updates",
        type=count(1),
        metavar="N",
        help="updates of the scalar backend, which is slow (20 for images of 15x15, fewer for larger ones)",
    )
    add("--seed", type=count(0), default=0, metavar="N", help="seed of weights and batches (%(default)s)")
    add_force(parser, "replace pictures that are there already")


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


def _add_train(commands: Any) -> None:
    help = "train a published network as published"
    parser = command(commands, "train", _run_train, help, _TRAIN, _TRAIN_EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the network, see below")
    add_data(parser, "see below (mnist; for autoencnet and mlp digits)", required=False)
    add("--epochs", type=count(1), metavar="N", help="in place of the published number; of mlp 20")
    add_backend(parser)
    add("--dtype", choices=("float32", "float64"), help="in place of the published one")
    add("--batch-size", type=count(1), metavar="N", help="in place of the published one")
    add(
        "--seed",
        type=count(0),
        default=0,
        metavar="N",
        help="of all that is random (%(default)s); ignored by --resume",
    )
    add("--out", type=Path, metavar="DIR", help="folder for weights, learning curve and pictures")
    add("--checkpoint-every", type=count(1), metavar="N", help="save every N epochs too; needs --out")
    add("--resume", action="store_true", help="go on with the training saved in --out, see below")
    add_force(parser)
    add_quiet(parser)
    own = parser.add_argument_group("of mlp")
    own.add_argument(
        "--hidden", type=counts, metavar="N,N", help="widths before the code; none for none (128)"
    )
    own.add_argument("--latent", type=count(1), metavar="N", help="width of the code (16)")
    own.add_argument("--loss", choices=("mse", "mae", "huber", "bce"), help="bce takes data in [0, 1] (mse)")
    own.add_argument("--learning-rate", type=positive, metavar="X", help="of Adam (0.001)")


def _run_train(arguments: argparse.Namespace) -> int:
    from fastae import train

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "model")}
    return train.run(arguments.model, **options)


def _add_bench(commands: Any) -> None:
    help = "time a training step on every backend"
    parser = command(commands, "bench", _run_bench, help, _BENCH, _BENCH_EXAMPLES)
    add = parser.add_argument
    add("model", nargs="?", default="autoencnet", metavar="MODEL", help="a published network (%(default)s)")
    add("--batch-size", type=count(1), metavar="N", help="in place of the published one")
    add("--dtype", choices=("float32", "float64"), help="in place of the published one")
    add("--threads", type=count(1), default=1, metavar="N", help="of numba and cython (%(default)s)")
    add("--seconds", type=positive, default=1.0, metavar="X", help="for each backend (%(default)s)")
    add_quiet(parser)


def _run_bench(arguments: argparse.Namespace) -> int:
    from fastae import bench

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "model")}
    return bench.run(arguments.model, **options)
