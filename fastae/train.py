"""``fastae train``: a published network, trained as published, and its figures beside the published ones.

::

    MNIST, digits or a file ──> rows ──> Trainer.from_recipe(MODELS[name]()) ──> fit ──> figures, table
                                                       or mlp()                  └─ --out: weights, history,
                                                                                    pictures
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TextIO

import numpy as np

from fastae import datasets, persistence, tables
from fastae.callbacks import Callback, Checkpoint
from fastae.cli import CommandError
from fastae.cli.common import chosen_backend, refused
from fastae.history import DivergenceError, History
from fastae.layers import Dense
from fastae.models import MODELS
from fastae.network import Network, Recipe
from fastae.optimizers import Adam
from fastae.persistence import CheckpointError
from fastae.plots import learning_curve, reconstructions, significant
from fastae.trainer import Trainer

__all__ = ["DATA", "Data", "figures", "load_data", "mlp", "run"]

#: Data by the names they have on the command line.
DATA: Final = ("mnist", "fashion_mnist", "digits")

#: Of `mlp` where nothing is said.
_OWN: Final[dict[str, Any]] = {"hidden": (128,), "latent": 16, "loss": "mse", "learning_rate": 1e-3}

_SHOWN = 10

#: Flat rows of fewer values than a square of this side has are taken for no image.
_SMALLEST_SIDE = 4

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
        One of `fastae.models.MODELS`, or "mlp": AutoEncNet has a preparation of its own.
    name : str
        One of `DATA`, or what `fastae.tables.read` takes: a file or a folder. uint8 are grey levels and are
        scaled; floats are taken as they are. Where there is no array "test" in an .npz, the last tenth of the
        rows, at most 10000, is for validation.
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
    named = False
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
        train, validation, named = _read_file(name)
        title = name
    shape = None if named else _image_shape(train)
    if model == "autoencnet" and train.dtype == np.uint8:
        rows, mean = datasets.autoencnet_data(train, dtype=dtype)
        others, _ = datasets.autoencnet_data(validation, mean, dtype)
        return Data(rows, others, shape, title, lambda rows: np.clip(rows * 255 + mean, 0, 255))
    with refused("--data"):
        parts = [tables.as_rows(part, dtype, name) for part in (train, validation)]
    return Data(parts[0], parts[1], shape, title, lambda rows: rows)


def mlp(
    values: int, hidden: tuple[int, ...], latent: int, loss: str = "mse", learning_rate: float = 1e-3
) -> Network:
    """Declare dense layers of any widths, with a training as its recipe.

    Parameters
    ----------
    values : int
        Of a row.
    hidden : tuple of int
        Widths of the layers before the code, relu; the decoder has them in reverse.
    latent : int
        Width of the code, which is linear.
    loss : str
        With "bce" the output is a sigmoid, else it is linear.
    learning_rate : float
        Of Adam.

    Returns
    -------
    Network
        (values,) to (values,); recipe: batches of 64, 20 epochs, without figures.
    """
    return Network(
        encoder=[*(Dense(width, "relu") for width in hidden), Dense(latent, name="code")],
        decoder=[
            *(Dense(width, "relu") for width in reversed(hidden)),
            Dense(values, "sigmoid" if loss == "bce" else "linear", name="out"),
        ],
        input_shape=values,
        name="mlp",
        recipe=Recipe(loss=loss, optimizer=Adam(learning_rate), batch_size=64, epochs=20),
    )


def _image_shape(values: np.ndarray) -> tuple[int, int] | None:
    if values.ndim == 4:
        return (values.shape[2], values.shape[3]) if values.shape[1] == 1 else None
    if values.ndim == 3:
        return values.shape[1], values.shape[2]
    side = math.isqrt(values.shape[1])
    return (side, side) if side * side == values.shape[1] and side >= _SMALLEST_SIDE else None


def _read_file(name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read training and validation rows; tells whether their columns have names, and so are no pixels."""
    if not os.path.exists(name) and not os.path.exists(name.rpartition(":")[0]):
        raise CommandError(f"--data {name}: no such file; or use {', '.join(DATA)}")
    with refused("--data"):
        train, test = tables.read_parts(name)
    if test is not None:
        return train.values, test.values, False
    count = len(train.values)
    if count < 2:
        raise CommandError(f"--data {train.source}: expected 2 rows or more, one for validation, got {count}")
    kept = min(10000, max(1, count // 10))
    return train.values[:-kept], train.values[-kept:], train.columns is not None


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
    hidden: tuple[int, ...] | None = None,
    latent: int | None = None,
    loss: str | None = None,
    learning_rate: float | None = None,
    file: TextIO | None = None,
) -> int:
    """Train a published network, or dense layers of any widths.

    Parameters
    ----------
    model : str
        One of `fastae.models.MODELS`, or "mlp".
    data : str, optional
        As `load_data` takes it; MNIST, and for AutoEncNet and mlp the bundled digits, when not given.
    epochs, dtype, batch_size : optional
        In place of those of the recipe.
    backend, threads : optional
        As of `Trainer`.
    seed : int, default 0
        Of everything that is random; a training that is resumed has its own.
    out : Path, optional
        Folder for the weights, the history and, where matplotlib is installed, the pictures; it is made when
        it is not there.
    checkpoint_every : int, optional
        Epochs between two times the weights are saved in `out`; they are also saved at the end and after
        Ctrl-C.
    resume : bool, default False
        Go on with the training whose weights are in `out`.
    force : bool, default False
        Replace files that are in `out` already.
    quiet : bool, default False
        Show no progress.
    hidden, latent, loss, learning_rate : optional
        Of `mlp`, which has 128, 16, "mse" and 1e-3 where nothing is said.
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
    if model not in (*MODELS, "mlp"):
        raise CommandError(f"MODEL: expected one of {', '.join(MODELS)}, mlp, got {model!r}")
    given = {"hidden": hidden, "latent": latent, "loss": loss, "learning_rate": learning_rate}
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if own and model != "mlp":
        raise CommandError(
            f"--{next(iter(own)).replace('_', '-')}: expected with MODEL mlp alone, got {model}"
        )
    own = {**_OWN, **own}
    if out is None and (resume or checkpoint_every is not None):
        option = "--resume" if resume else "--checkpoint-every"
        raise CommandError(f"{option} needs --out, the folder of the run")
    recipe = _recipe(mlp(1, **own) if model == "mlp" else MODELS[model]())
    weights = None
    drawing = False
    if out is not None:
        weights = out / f"{model}.safetensors"
        with _errors_name("--out", out):
            _check_out(out, [weights.name, _HISTORY, *_PICTURES], force or resume)
        Checkpoint(weights)  # if a library is missing, say so before the training and not after
        drawing = _can_draw()
        if resume and not weights.is_file():
            raise CommandError(f"--resume: there is no {weights}")
    try:
        chosen = chosen_backend(backend, threads)
        name = data or ("digits" if model in ("autoencnet", "mlp") else "mnist")
        loaded = load_data(model, name, dtype or recipe.dtype)
        net = _fitting_network(model, loaded, own)
        loaded = _published_rows(loaded, recipe)
        changed = {"dtype": dtype, "batch_size": batch_size}
        overrides: dict[str, Any] = {key: value for key, value in changed.items() if value is not None}
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
    if model != "mlp" and (name != "mnist" or model == "autoencnet"):
        of = "AutoEncNet's own images" if model == "autoencnet" else "MNIST"
        say(f"\nThe published and the reference figures are those of {of}.")
    if out is not None and weights is not None:
        with _errors_name("--out", out):
            trainer.save(weights)
            _write_history(out / _HISTORY, history)
            pictures = _draw(out, trainer, loaded, history) if drawing else []
        names = [weights.name, _HISTORY, *pictures]
        say(f"\nIn {out}{'' if out.is_absolute() else '/'}: {', '.join(names)}")
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


def _fitting_network(model: str, data: Data, own: Mapping[str, Any]) -> Network:
    """Make the model for rows of this width, if it can be."""
    values = data.train.shape[1]
    if model == "mlp":
        return mlp(values, **own)
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
        published number of epochs is one of them, if there were fewer. A network without any figures has
        those of here alone.
    """
    recipe = _recipe(net)
    done, last = len(history.loss), recipe.epochs
    if not recipe.published and not recipe.reference:
        own = [
            ("parameters", str(net.n_parameters)),
            (f"training loss, epoch {done}", _number(history.loss[-1])),
            (f"validation loss, epoch {done}", _number(history.val_loss[-1])),
            ("seconds per epoch", f"{median(history.seconds):.3g}"),
        ]
        left, right = (max(len(line[i]) for line in own) for i in range(2))
        return "\n".join(f"{label:<{left}}   {value:>{right}}" for label, value in own)

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


_HISTORY: Final = "history.csv"


def _write_history(path: Path, history: History) -> None:
    """Write what each epoch came to."""
    columns = {
        "epoch": np.arange(1, len(history.loss) + 1),
        "loss": np.array(history.loss),
        "val_loss": np.array(history.val_loss),
        "seconds": np.array(history.seconds),
    }
    tables.write(path, columns, overwrite=True)


# -- pictures ------------------------------------------------------------------------------------------

_PICTURES: Final = ("learning-curve.png", "reconstructions.png", "codes.png")


def _can_draw() -> bool:
    """Whether matplotlib is there; says so now and not after the training, where it is not."""
    try:
        learning_curve([0.0])
    except ImportError as error:
        print(f"fastae: there will be no pictures: {error}", file=sys.stderr)
        return False
    return True


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
