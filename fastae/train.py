"""``fastae train``: a published network, trained as published, and its figures beside the published ones.

::

    MNIST, digits or a file ──> rows ──> Trainer.from_recipe(MODELS[name]()) ──> fit ──> figures, table
                                                                                 └─ --out: weights, pictures
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TextIO

import numpy as np

from fastae import backend as backends
from fastae import datasets, persistence
from fastae.callbacks import Callback, Checkpoint
from fastae.cli import CommandError
from fastae.history import DivergenceError, History
from fastae.models import MODELS
from fastae.network import Network, Recipe
from fastae.persistence import CheckpointError
from fastae.plots import learning_curve, reconstructions, significant
from fastae.trainer import Trainer

__all__ = ["DATA", "Data", "figures", "load_data", "run"]

#: Data by the names they have on the command line.
DATA: Final = ("mnist", "fashion_mnist", "digits")

_UNTHREADED: Final = ("scalar", "numpy")

_SHOWN = 10

#: Longest code that is drawn.
_DRAWN_CODE = 32


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to validate on.

    Attributes
    ----------
    train, validation : ndarray, shape (n, values)
        As the Trainer takes them.
    image_shape : tuple of int or None
        Height and width of the image a row is; None if it is none.
    title : str
        What they are.
    grey : callable
        Takes rows, gives what to show: grey levels.
    """

    train: np.ndarray
    validation: np.ndarray
    image_shape: tuple[int, int] | None
    title: str
    grey: Callable[[np.ndarray], np.ndarray]


# -- data ----------------------------------------------------------------------------------------------


def load_data(model: str, name: str, dtype: str) -> Data:
    """Load rows for a model.

    Parameters
    ----------
    model : str
        One of `fastae.models.MODELS`: AutoEncNet has a preparation of its own.
    name : str
        One of `DATA`, or the path of a .npz or .npy file of images, (n, height, width), or rows,
        (n, values). uint8 are grey levels and are scaled; floats are taken as they are. An .npz has arrays
        "train" and "test", or "train" alone, or a single array; without "test" the last tenth of the rows,
        at most 10000, is for validation.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    Data

    Raises
    ------
    CommandError
        There are no such data, or they are not as described.
    OSError, ImportError
        As `fastae.datasets.mnist`.
    """
    train: np.ndarray
    validation: np.ndarray
    if name == "digits":
        # AutoEncNet has 15x15 images and trains on 1000 of them.
        side, count = (15, 1000) if model == "autoencnet" else (28, 1500)
        canvas = datasets.digits_canvas(side)
        train, validation, title = canvas[:count], canvas[count:], "the bundled UCI digits"
    elif name in DATA:
        load = getattr(datasets, name)
        train, validation = load("train")[0], load("test")[0]
        title = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}[name]
    else:
        train, validation = _read_file(Path(name))
        title = name
    shape = _image_shape(train)
    if model == "autoencnet" and train.dtype == np.uint8:
        rows, mean = datasets.autoencnet_data(train, dtype=dtype)
        others, _ = datasets.autoencnet_data(validation, mean, dtype)
        return Data(rows, others, shape, title, lambda rows: np.clip(rows * 255 + mean, 0, 255))
    return Data(_rows(train, dtype), _rows(validation, dtype), shape, title, lambda rows: rows)


def _rows(values: np.ndarray, dtype: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return datasets.rows(values, dtype)
    return np.ascontiguousarray(values.reshape(len(values), -1), dtype)


def _image_shape(values: np.ndarray) -> tuple[int, int] | None:
    if values.ndim == 3:
        return values.shape[1], values.shape[2]
    side = math.isqrt(values.shape[1])
    return (side, side) if side * side == values.shape[1] else None


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read training and validation rows."""
    with _errors_name("--data", path):
        if not path.is_file():
            what = "not a file" if path.exists() else f"no such file; or use {', '.join(DATA)}"
            raise CommandError(f"--data {path}: {what}")
        try:
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    arrays = {"array": loaded}
                else:
                    arrays = {name: loaded[name] for name in loaded.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a .zip of something else")
        except OSError:
            raise
        except Exception as error:  # NumPy, zipfile and zlib have a dozen ways to say so, none for users
            raise CommandError(f"--data {path}: not a .npz or .npy file of numbers, or damaged") from error
    candidates = [name for name, a in arrays.items() if a.ndim == 3]
    candidates = candidates or [name for name, a in arrays.items() if a.ndim == 2]
    name = "train" if "train" in arrays else candidates[0] if len(candidates) == 1 else None
    if name is None:
        found = ", ".join(f"{name} {a.shape}" for name, a in arrays.items()) or "nothing"
        raise CommandError(
            f"--data {path}: expected an array 'train' or a single array of rows, found {found}"
        )
    train = _checked(path, name, arrays[name])
    if name == "train" and "test" in arrays:
        test = _checked(path, "test", arrays["test"])
        if (test.shape[1:], test.dtype == np.uint8) != (train.shape[1:], train.dtype == np.uint8):
            raise CommandError(
                f"--data {path}: 'test' has {test.dtype} of {test.shape[1:]}, "
                f"'train' {train.dtype} of {train.shape[1:]}"
            )
        return train, test
    if len(train) < 2:
        raise CommandError(
            f"--data {path}: array {name!r}: expected 2 rows or more, one for validation, got 1"
        )
    kept = min(10000, max(1, len(train) // 10))
    return train[:-kept], train[-kept:]


@contextmanager
def _errors_name(option: str, path: Path | None) -> Iterator[None]:
    """Let an OSError name the option whose path it is about."""
    try:
        yield
    except BrokenPipeError:  # of what is printed
        raise
    except OSError as error:
        if path is None:
            raise
        raise CommandError(f"{option} {path}: {error.strerror or error}") from error


def _checked(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise CommandError(
            f"--data {path}: array {name!r}: expected uint8 or floats, got dtype {array.dtype}"
        )
    if array.ndim not in (2, 3) or array.size == 0:
        raise CommandError(
            f"--data {path}: array {name!r}: expected shape (n, height, width) or (n, values), "
            f"got {array.shape}"
        )
    return array


# -- the whole -----------------------------------------------------------------------------------------


def run(
    model: str,
    *,
    data: str | None = None,
    epochs: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    file: TextIO | None = None,
) -> int:
    """Train a published network.

    Parameters
    ----------
    model : str
        One of `fastae.models.MODELS`.
    data : str, optional
        As `load_data` takes it; MNIST, and for AutoEncNet the bundled digits, when not given.
    epochs, dtype, batch_size : optional
        In place of those of the recipe.
    backend, threads : optional
        As of `Trainer`.
    seed : int, default 0
        Of everything that is random; a training that is resumed has its own.
    out : Path, optional
        Folder for the weights and the pictures; it is made when it is not there.
    checkpoint_every : int, optional
        Epochs between two times the weights are saved in `out`; they are also saved at the end and after
        Ctrl-C.
    resume : bool, default False
        Go on with the training whose weights are in `out`.
    force : bool, default False
        Replace files that are in `out` already.
    quiet : bool, default False
        Show no progress.
    file : text file, optional
        Where the figures are printed; standard output by default. Progress goes to standard error.

    Returns
    -------
    int
        Exit status: 0, also where the training that is resumed has done all its epochs already.

    Raises
    ------
    CommandError
        What the user has to put right.
    ImportError, OSError
        Something is not installed, or a file cannot be read or written.
    """
    if model not in MODELS:
        raise CommandError(f"MODEL: expected one of {', '.join(MODELS)}, got {model!r}")
    if out is None and (resume or checkpoint_every is not None):
        option = "--resume" if resume else "--checkpoint-every"
        raise CommandError(f"{option} needs --out, the folder of the run")
    recipe = _recipe(MODELS[model]())
    weights = None
    if out is not None:
        weights = out / f"{model}.safetensors"
        with _errors_name("--out", out):
            _check_out(out, [weights.name, *_PICTURES], force or resume)
        Checkpoint(weights)  # if a library is missing, say so before the training and not after
        learning_curve([0.0])
        if resume and not weights.is_file():
            raise CommandError(f"--resume: there is no {weights}")
    try:
        chosen = backends.resolve(backend).name
        if chosen in _UNTHREADED and threads is not None and threads > 1:
            raise CommandError(
                f"--threads {threads}: the backend {chosen} has no threads; numba and cython do"
            )
        name = data or ("digits" if model == "autoencnet" else "mnist")
        loaded = load_data(model, name, dtype or recipe.dtype)
        net = _fitting_network(model, loaded)
        loaded = _published_rows(loaded, recipe)
        given = {"dtype": dtype, "batch_size": batch_size}
        overrides = {name: value for name, value in given.items() if value is not None}
        trainer = Trainer.from_recipe(net, backend=chosen, n_threads=threads, seed=seed, **overrides)
        epochs = recipe.epochs if epochs is None else epochs
        if resume and weights is not None:
            with _errors_name("--out", out):
                done = _epochs_done(weights, trainer)
            if done >= epochs:
                print(f"fastae: nothing to do: {done} epoch{'s' * (done > 1)} done", file=sys.stderr)
                return 0
        if out is not None:
            with _errors_name("--out", out):
                out.mkdir(parents=True, exist_ok=True)
        start = perf_counter()

        def say(text: str = "") -> None:
            print(text, file=file, flush=True)

        say(_headline(trainer, loaded, epochs, chosen, weights if resume else None))
        say()
        say(net.summary())
        say()
        saving: list[Callback] = []
        if weights is not None and checkpoint_every is not None:
            saving.append(Checkpoint(weights, checkpoint_every))
        try:
            with _errors_name("--out", out):
                history = trainer.fit(
                    loaded.train,
                    epochs=epochs,
                    validation_data=loaded.validation,
                    callbacks=saving,
                    sampling=recipe.sampling,
                    steps_per_epoch=recipe.updates and recipe.updates // recipe.epochs,
                    verbose=0 if quiet else 1 if sys.stderr.isatty() else 2,
                    resume=weights if resume and weights else False,
                )
        except KeyboardInterrupt:
            if weights is not None:
                with _errors_name("--out", out):
                    trainer.save(weights)
                print(f"\nfastae: saved as {weights}; --resume goes on from there", file=sys.stderr)
            raise
    except (ValueError, DivergenceError) as error:
        raise CommandError(str(error)) from error
    minutes = math.nan if resume else (perf_counter() - start) / 60
    say(figures(net, history, minutes))
    if name != "mnist" or model == "autoencnet":
        of = "AutoEncNet's own images" if model == "autoencnet" else "MNIST"
        say(f"\nThe published and the reference figures are those of {of}.")
    if out is not None and weights is not None:
        with _errors_name("--out", out):
            trainer.save(weights)
            pictures = _draw(out, trainer, loaded, history)
        say(f"\nIn {out}{'' if out.is_absolute() else '/'}: {', '.join([weights.name, *pictures])}")
    return 0


def _epochs_done(weights: Path, trainer: Trainer) -> int:
    """Epochs that are over in the saved training, which must be the trainer's."""
    state = persistence.read(weights)
    if wrong := state.difference(trainer):
        raise CheckpointError(os.fspath(weights), "mismatch", wrong)
    return 0 if state.position is None else state.position.epoch


def _recipe(net: Network) -> Recipe:
    assert net.recipe is not None, "a published network has a recipe"
    return net.recipe


def _published_rows(data: Data, recipe: Recipe) -> Data:
    """Return the rows the published training took, where it took a part of them and there are so many."""
    if recipe.train_rows is None or recipe.validation_rows is None:
        return data
    kept, end = recipe.train_rows, recipe.train_rows + recipe.validation_rows
    if len(data.train) < end:
        return data
    title = f"the first {end} images of {data.title}"
    return replace(data, train=data.train[:kept], validation=data.train[kept:end], title=title)


def _fitting_network(model: str, data: Data) -> Network:
    """Make the model for rows of this width, if it can be."""
    values = data.train.shape[1]
    declare = MODELS[model]
    if "image_dim" in inspect.signature(declare).parameters:
        return declare(image_dim=values)
    if "source" in inspect.signature(declare).parameters and data.image_shape is not None:
        return declare(source=data.image_shape)
    net = declare()
    if math.prod(net.input_shape) != values:
        height, width = data.image_shape or (1, values)
        raise CommandError(
            f"{model} takes {math.prod(net.input_shape)} values a row; "
            f"{data.title} has {values} ({height}x{width})"
        )
    return net


def _check_out(out: Path, names: list[str], replace: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: not a folder")
    there = [name for name in names if (out / name).exists()]
    if there and not replace:
        raise CommandError(
            f"{out / there[0]} exists; give another --out, --resume to go on, or --force to replace it"
        )
    if out.exists() and not os.access(out, os.W_OK):
        raise CommandError(f"--out {out}: no permission to write there")


# -- what is printed -----------------------------------------------------------------------------------


def _headline(trainer: Trainer, data: Data, epochs: int, backend: str, resumed: Path | None) -> str:
    shape = "" if data.image_shape is None else f" of {data.image_shape[0]}x{data.image_shape[1]}"
    kind = "images" if shape else "rows"
    threads = trainer.n_threads or 1
    drawn = " drawn with replacement" if _recipe(trainer.net).sampling == "replacement" else ""
    return (
        f"{trainer.net.name} on {data.title}: {len(data.train)} {kind}{shape}, "
        f"{len(data.validation)} for validation.\n"
        f"{trainer.loss.name.upper()}, {trainer.optimizer}, batches of {trainer.batch_size}{drawn}, "
        f"{epochs} epoch{'s' * (epochs > 1)}, {trainer.dtype.name}, {backend}, "
        f"{threads} thread{'s' * (threads > 1)}, "
        + (f"seed {trainer.seed_}." if resumed is None else f"going on from {resumed}.")
    )


def figures(net: Network, history: History, minutes: float = math.nan) -> str:
    """Return what came of a training beside what was published and what the reference reaches, as a table.

    Parameters
    ----------
    net : Network
        With a recipe.
    history : History
        Of its training with validation data.
    minutes : float
        The time it took; NaN for not known.

    Returns
    -------
    str
        A line for each figure: here, published, reference. What there is not is a dash: a figure after the
        published number of epochs is one of them, if there were fewer.
    """
    recipe = _recipe(net)
    done, last = len(history.loss), recipe.epochs

    def after(losses: list[float], epoch: int) -> float:
        return losses[epoch - 1] if len(losses) >= epoch else math.nan

    here = {
        "parameters": ("parameters", net.n_parameters),
        "training_loss": (f"training loss, epoch {last}", after(history.loss, last)),
        "validation_loss_epoch_1": ("validation loss, epoch 1", after(history.val_loss, 1)),
        "validation_loss": (f"validation loss, epoch {last}", after(history.val_loss, last)),
        "first_loss": ("loss of the first batch", history.batch_loss[0]),
        "last_loss": (f"loss of a batch, mean of epoch {last}", after(history.loss, last)),
        "minutes": ("minutes in all", minutes if done == last else math.nan),
    }
    table: list[tuple[str, ...]] = [("", "here", "published", "reference")]
    others = [name for name in {**recipe.published, **recipe.reference} if name not in here]
    for name in [*here, *others]:
        label, value = here.get(name, (name.replace("_", " "), math.nan))
        stated = [figure.get(name, math.nan) for figure in (recipe.published, recipe.reference)]
        if name == "parameters" or not all(isinstance(v, float) and math.isnan(v) for v in stated):
            table.append((label, _number(value), *map(_number, stated)))
    if done != last:
        table.append((f"training loss, epoch {done}", _number(history.loss[-1]), "-", "-"))
    if done != last or "validation_loss" not in {**recipe.published, **recipe.reference}:
        table.append((f"validation loss, epoch {done}", _number(history.val_loss[-1]), "-", "-"))
    table.append(("seconds per epoch", f"{median(history.seconds):.3g}", "-", "-"))
    widths = [max(len(line[i]) for line in table) for i in range(4)]
    text = [
        f"{label:<{widths[0]}}   " + "   ".join(f"{c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
        for label, *cells in table
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if value < 1 else significant(value)


# -- pictures ------------------------------------------------------------------------------------------

_PICTURES: Final = ("learning-curve.png", "reconstructions.png", "codes.png")


def _draw(out: Path, trainer: Trainer, data: Data, history: History) -> list[str]:
    """Draw what can be drawn; gives the names of the files."""
    title = f"{trainer.net.name} on {data.title}"
    curve = learning_curve(
        {"training": history.loss, "validation": history.val_loss},
        xlabel="epoch",
        ylabel=f"loss ({trainer.loss.name.upper()})",
        title=title,
    )
    drawn: dict[str, Any] = {"learning-curve.png": curve.figure}
    if data.image_shape is not None:
        count = min(_SHOWN, len(data.validation))
        shown = data.validation[np.linspace(0, len(data.validation) - 1, count).round().astype(int)]
        title = f"{title}: validation images after {len(history.loss)} epochs"
        images = data.grey(shown).reshape(count, *data.image_shape)
        again = data.grey(trainer.reconstruct(shown)).reshape(images.shape)
        drawn["reconstructions.png"] = reconstructions(images, again, title=title).figure
        codes = trainer.encode(shown).reshape(count, -1)
        if codes.shape[1] <= _DRAWN_CODE:
            drawn["codes.png"] = _codes(images, codes, again, title)
    for name, figure in drawn.items():
        figure.savefig(out / name, format="png")
    return list(drawn)


def _codes(images: np.ndarray, codes: np.ndarray, again: np.ndarray, title: str) -> Any:
    """Draw images, the bars of their codes below, and the reconstructions below these."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.4 + len(images), 3.6), dpi=100, layout="constrained")
    grid = figure.subplots(3, len(images), squeeze=False)
    for column, image, code, other in zip(grid.T, images, codes, again, strict=True):
        for ax, picture in ((column[0], image), (column[2], other)):
            ax.imshow(picture, cmap="gray_r", vmin=images.min(), vmax=images.max(), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        column[1].bar(np.arange(len(code)), code, color="#0072B2")
        column[1].set_ylim(min(0.0, 1.05 * codes.min()), max(1.05 * codes.max(), 1e-6))
        column[1].set_xticks([])
        column[1].tick_params(labelleft=column[1] is grid[1, 0])
        column[1].spines[["top", "right"]].set_visible(False)
    for ax, label in zip(grid[:, 0], ("original", "code", "reconstruction"), strict=True):
        ax.set_ylabel(label)
    figure.suptitle(title)
    return figure
