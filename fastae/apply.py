"""``fastae encode``, ``decode``, ``reconstruct`` and ``detect``: a trained model on the rows of a file.

::

    --data ── tables.read ──> rows ──> Trainer, some thousand rows at a time ──> tables.write ── --out
                                          │
                                          └─ detect: error of each row ──> threshold ──> flags
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

import fastae
from fastae import datasets, ops, persistence, tables
from fastae.cli import CommandError
from fastae.cli.common import UNTHREADED, chosen_backend, progress, refused
from fastae.tables import Table

if TYPE_CHECKING:
    from fastae.trainer import Trainer

__all__ = ["detect", "load_table", "run"]

Array = npt.NDArray[Any]

#: Values that one call takes: it lasts long enough to be worth a call, and progress can be seen.
_AT_ONCE: Final = 1 << 22

#: What detect trains with where nothing is said. Tables are often short: batches of 200, as the estimators
#: have them, would leave some hundred updates.
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden": (100,),
    "latent": 2,
    "epochs": 200,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "dtype": "float32",
    "seed": 0,
}

#: Names of what is written.
_NAMES: Final = {"encode": "code", "decode": "output", "reconstruct": "output"}


# -- data ----------------------------------------------------------------------------------------------


def load_table(name: str, features: int | None = None) -> Table:
    """Load what --data names.

    Parameters
    ----------
    name : str
        A file as `fastae.tables.read` takes it, or "mnist" or "fashion_mnist", also followed by ":train"
        (which is what they are alone) or ":test", or "digits".
    features : int, optional
        Values of a row that are wanted, which decide how large a canvas the digits get.

    Raises
    ------
    CommandError
        There are no such data, or they are not as described.
    OSError, ImportError
        As `fastae.datasets.mnist`.
    """
    head, _, part = name.partition(":")
    if name == "digits":
        side = math.isqrt(features or 0)
        fits = side * side == features and side >= 8
        return Table(datasets.digits_canvas(side if fits else 28), None, name)
    if head in ("mnist", "fashion_mnist") and part in ("", "train", "test"):
        with refused():
            return Table(getattr(datasets, head)(part or "train")[0], None, name)
    with refused("--data"):
        return tables.read(name)


def _rows(table: Table, features: int, dtype: npt.DTypeLike, model: Path, what: str = "values") -> Array:
    """Give rows of so many values, as a Trainer of this dtype takes them."""
    width = math.prod(table.values.shape[1:])
    if width != features:
        shape = "x".join(map(str, table.values.shape[1:]))
        detail = f" ({shape})" if table.values.ndim > 2 else ""
        raise CommandError(f"--data {table.source}: {width} {what} a row{detail}; {model} takes {features}")
    with refused("--data"):
        return tables.as_rows(table.values, dtype, table.source)


# -- models --------------------------------------------------------------------------------------------


def _load_trainer(model: Path, backend: str, threads: int | None) -> Trainer:
    """Load the trainer of a file, which may be that of an estimator."""
    with refused("MODEL"):
        state = persistence.read(model)
        return persistence.new_trainer(state, backend=backend, n_threads=threads)


def _in_parts(
    call: Callable[[Array], Array], trainer: Trainer, rows: Array, name: str, quiet: bool
) -> list[Array]:
    """Call it on some thousand rows at a time; whole batches, so that each row meets the same ones."""
    batch = trainer.batch_size
    step = batch * max(1, _AT_ONCE // (batch * rows.shape[1]))
    found = []
    with progress(name, len(rows), "rows", delay=1.0, quiet=quiet) as tell:
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found.append(call(part))
            tell(len(part))
    return found


def _output(trainer: Trainer, output: Array) -> Array:
    """Return outputs of the network as rows on the scale of the data."""
    rows = output.reshape(len(output), -1)
    if trainer.loss.name == "bce_with_logits":
        return ops.activation_forward(rows, activation="sigmoid", backend=trainer.backend)
    return rows


def _no_grey_levels(trainer: Trainer, table: Table, model: Path) -> None:
    """Refuse grey levels where the model takes them less their mean, which its file does not hold."""
    if trainer.net.name == "autoencnet" and table.values.dtype == np.uint8:
        raise CommandError(
            f"--data {table.source}: {model} takes images less the mean of those it was trained on, and "
            "divided by 255: give floats, as fastae.datasets.autoencnet_data makes them"
        )


# -- encode, decode, reconstruct -----------------------------------------------------------------------


def run(
    name: str,
    model: Path,
    *,
    data: str,
    out: Path,
    backend: str | None = None,
    threads: int | None = None,
    force: bool = False,
    quiet: bool = False,
) -> int:
    """Run a part of a model on the rows of a file.

    Parameters
    ----------
    name : "encode", "decode" or "reconstruct"
        The part.
    model : Path
        A file with a trainer or an estimator.
    data : str
        As `load_table` takes it; for "decode" codes, which are floats.
    out : Path
        File to write: .npy, .npz (array "code" or "output") or .csv. Outputs for images of one channel are
        images where the file is no CSV.
    backend, threads : optional
        In place of those of the file.
    force : bool
        Replace `out` if it is there already.
    quiet : bool
        Show no progress.

    Returns
    -------
    int
        Exit status: 0.

    Raises
    ------
    CommandError
        What the user has to put right, before anything is written.
    ImportError, OSError
        Something is not installed, or a file cannot be read or written.
    """
    with refused("--out"):
        tables.check_output(out, force)
    trainer = _load_trainer(model, chosen_backend(backend, threads), threads)
    net = trainer.net
    decoding = name == "decode"
    features = math.prod(net.code_shape if decoding else net.input_shape)
    table = load_table(data, features)
    if decoding and table.values.dtype == np.uint8:
        raise CommandError(f"--data {table.source}: expected codes, which are floats, got uint8")
    if not decoding:
        _no_grey_levels(trainer, table, model)
    rows = _rows(table, features, trainer.dtype, model, "codes" if decoding else "values")
    call = getattr(trainer, name)
    give: Callable[[Array], Array] = call if name == "encode" else lambda part: _output(trainer, call(part))
    with refused():
        results = _in_parts(give, trainer, rows, name, quiet)
    found = np.concatenate([result.reshape(len(result), -1) for result in results])
    width = found.shape[1]
    columns = {}
    if name != "encode":
        if table.columns is not None and not decoding and len(table.columns) == width:
            columns["output"] = table.columns
        shape = table.values.shape[1:] if not decoding else net.output_shape
        if shape[:1] == (1,) and len(shape) == 3:
            shape = shape[1:]
        if math.prod(shape) == width:
            found = found.reshape(len(found), *shape)
    with refused("--out"):
        tables.write(out, {_NAMES[name]: found}, columns, overwrite=force)
    print(f"{out}: {name}, {len(found):,} rows of {width:,} values, {found.dtype}")
    return 0


# -- detect --------------------------------------------------------------------------------------------


def detect(
    *,
    data: str,
    out: Path,
    contamination: float | None = None,
    model: Path | None = None,
    backend: str | None = None,
    threads: int | None = None,
    force: bool = False,
    quiet: bool = False,
    hidden: tuple[int, ...] | None = None,
    latent: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    dtype: str | None = None,
    seed: int | None = None,
    standardize: bool = False,
    save: Path | None = None,
) -> int:
    """Score rows by the error of their reconstruction, and flag those with the highest.

    Parameters
    ----------
    data : str
        As `load_table` takes it.
    out : Path
        File to write: columns, or arrays of an .npz, "score" (the mean squared error of the row) and
        "outlier".
    contamination : float, optional
        Share of the rows that are outliers, in (0, 0.5]; 0.1 where nothing else says.
    model : Path, optional
        A trained model in place of one that is trained on these rows; a saved detector has its threshold.
    hidden, latent, epochs, batch_size, learning_rate, dtype, seed : optional
        Of the training, which ends before the last epoch where ten in a row bring nothing.
    standardize : bool
        Bring each column to mean 0 and standard deviation 1 before the training.
    save : Path, optional
        Where to keep the detector that was trained.
    backend, threads, force, quiet
        As of `run`.

    Returns
    -------
    int
        Exit status: 0.

    Raises
    ------
    CommandError
        What the user has to put right, before anything is written.
    ImportError, OSError
        Something is not installed, or a file cannot be read or written.
    """
    given = {
        "hidden": hidden,
        "latent": latent,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "dtype": dtype,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if model is not None:
        for name in [*given, *(["standardize"] if standardize else []), *(["save"] if save else [])]:
            option = name.replace("_", "-")
            raise CommandError(f"--{option}: expected without --model, which was trained already")
    if standardize and save is not None:
        raise CommandError("--save: expected without --standardize, whose scales the file has no place for")
    if save is not None and save.resolve() == out.resolve():
        raise CommandError("--save: expected another file than --out, where the scores go")
    with refused("--out"):
        tables.check_output(out, force)
    chosen = chosen_backend(backend, threads)
    if save is not None:
        persistence.require_library()
        with refused("--save"):
            tables.check_place(save, force)
    if model is None:
        options = {**_DEFAULTS, **given}
        share = 0.1 if contamination is None else contamination
        rows, detector = _fit_detector(data, options, share, standardize, chosen, threads, quiet)
        trainer, threshold = detector.trainer_, -detector.offset_
    else:
        rows, trainer, threshold = _load_detector(data, model, contamination, chosen, threads)
    if threshold is None:
        from fastae.estimators.outliers import offset  # before the work: it needs scikit-learn
    with refused():
        scores = np.concatenate(
            _in_parts(lambda part: _errors(trainer, part), trainer, rows, "detect", quiet)
        )
    if threshold is None:
        assert contamination is not None
        threshold = -offset(-scores, None, contamination, float(np.finfo(trainer.dtype).eps))
    outlier = scores > threshold
    with refused("--out"):
        tables.write(out, {"score": scores, "outlier": outlier}, overwrite=force)
    if save is not None:
        with refused("--save"):
            detector.save(save)
    print(
        f"{out}: {outlier.sum():,} of {len(outlier):,} rows are outliers, with a score above {threshold:.6g}"
    )
    if save is not None:
        print(f"{save}: the detector")
    return 0


def _errors(trainer: Trainer, rows: Array) -> npt.NDArray[np.float64]:
    """Mean squared error of each row's reconstruction."""
    again = _output(trainer, trainer.reconstruct(rows))
    return ops.row_mse(again, rows, backend=trainer.backend).astype(np.float64)


def _fit_detector(
    data: str,
    options: dict[str, Any],
    share: float,
    standardize: bool,
    backend: str,
    threads: int | None,
    quiet: bool,
) -> tuple[Array, Any]:
    """Train a detector; gives the rows too."""
    cls = fastae.AutoencoderOutlierDetector  # what it needs is missed before the data are read
    table = load_table(data)
    # Scales are found in float64, whatever the arithmetic is to be.
    with refused("--data"):
        rows = tables.as_rows(table.values, "float64" if standardize else options["dtype"], table.source)
    if standardize:
        deviation = rows.std(axis=0)
        rows = (rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
        rows = np.ascontiguousarray(rows, options["dtype"])
    detector = cls(
        share,
        options["latent"],
        options["hidden"],
        batch_size=min(options["batch_size"], len(rows)),
        learning_rate_init=options["learning_rate"],
        max_iter=options["epochs"],
        tol=0.0,  # errors of data in [0, 1] are soon smaller than any step worth a name elsewhere
        random_state=options["seed"],
        backend=backend,
        dtype=options["dtype"],
        n_threads=threads,
        verbose=0 if quiet else 1,
    )
    with refused():
        return rows, detector.fit(rows)


def _load_detector(
    data: str, model: Path, contamination: float | None, backend: str, threads: int | None
) -> tuple[Array, Trainer, float | None]:
    """Load a model; gives rows, trainer, and the threshold it has."""
    with refused("--model"):
        # The threads of the file are those of another backend, maybe.
        own = 1 if threads is None and backend in UNTHREADED else threads
        loaded = fastae.load(model, backend=backend, n_threads=own)
    trainer = getattr(loaded, "trainer_", loaded)
    threshold = -loaded.offset_ if hasattr(loaded, "offset_") else None
    if threshold is not None and contamination is not None:
        raise CommandError(f"--contamination: the detector in {model} has its threshold, {threshold:.6g}")
    if threshold is None and contamination is None:
        raise CommandError(f"--contamination: expected, as {model} is no detector and has no threshold")
    features, outputs = math.prod(trainer.net.input_shape), math.prod(trainer.net.output_shape)
    if features != outputs:
        raise CommandError(
            f"--model {model}: expected outputs that can be compared with rows, given {outputs} for "
            f"{features} values"
        )
    table = load_table(data, features)
    _no_grey_levels(trainer, table, model)
    return _rows(table, features, trainer.dtype, model), trainer, threshold
