"""What the examples share: their arguments, their data, and a table of what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fastae import datasets


@dataclass(frozen=True)
class Data:
    """Images to train on and new ones, as rows of float32 from 0 to 1, with the digits they show."""

    name: str
    train: np.ndarray
    labels: np.ndarray
    new: np.ndarray
    new_labels: np.ndarray

    def training(self, epochs: int) -> dict[str, Any]:
        """Parameters of an estimator that trains for so many epochs, and fewer where there are more rows."""
        if len(self.train) > 10_000:
            epochs = -(-epochs // 20)
        return {
            "max_iter": epochs,
            "n_iter_no_change": epochs,  # never ends before
            "batch_size": 32 if len(self.train) <= 10_000 else 128,
            "learning_rate_init": 2e-3,
            "random_state": 0,
        }


def load(name: str) -> Data:
    """The bundled digits, 1000 of 8x8 pixels and 797 new ones, or one of the larger sets, 28x28."""
    if name == "digits":
        rows, labels = datasets.rows(datasets.digits_canvas(8)), datasets.digits()[1]
        return Data("the bundled digits", rows[:1000], labels[:1000], rows[1000:], labels[1000:])
    read = getattr(datasets, name)
    (train, labels), (new, new_labels) = read("train"), read("test")
    title = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[name]
    return Data(title, datasets.rows(train), labels, datasets.rows(new), new_labels)


def load_pairs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean images, (n, height, width), of an .npz with arrays "noisy" and "clean", 0 to 255."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            noisy, clean = (arrays[name] for name in ("noisy", "clean"))
    except (AttributeError, KeyError, TypeError, ValueError, BadZipFile):
        raise ValueError(
            f"{path}: expected an .npz file with numbers in arrays 'noisy' and 'clean'"
        ) from None
    if noisy.shape != clean.shape or noisy.ndim != 3 or len(noisy) < 5:
        raise ValueError(
            f"{path}: expected 5 or more pairs of one shape, (n, height, width), "
            f"given noisy {noisy.shape} and clean {clean.shape}"
        )
    for name, images in (("noisy", noisy), ("clean", clean)):
        if images.dtype.kind not in "uif" or not np.isfinite(images).all():
            raise ValueError(f"{path}: expected finite numbers in {name!r}, given others")
    return noisy.astype("float32") / 255, clean.astype("float32") / 255


def start(description: str | None, argv: Sequence[str] | None, *, pairs: bool = False) -> tuple[Any, Path]:
    """Read the arguments: gives the data, and the folder for the pictures, which is made.

    With `pairs` the user may name a file, and gets what `load_pairs` finds in it in place of `Data`.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        choices=("digits", "mnist", "fashion_mnist"),
        default="digits",
        help="the bundled digits (default), or a larger set, from FASTAE_DATA_DIR or the cache",
    )
    if pairs:
        source.add_argument(
            "--pairs",
            type=Path,
            metavar="FILE.npz",
            help="images of your own: arrays 'noisy' and 'clean', 0..255",
        )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastae-examples"),
        metavar="FOLDER",
        help="where the picture goes, in place of one from before (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    try:
        data = load_pairs(options.pairs) if pairs and options.pairs else load(options.data)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    return data, options.out


def table(title: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Print the figures below each other, and return them."""
    width = max(map(len, figures))
    print(title, "-" * max(len(title), width + 9), sep="\n")
    for name, value in figures.items():
        print(f"{name:{width}}  {value:7.4g}")
    return dict(figures)
