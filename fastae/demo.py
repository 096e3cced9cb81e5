"""``fastae demo``: AutoEncNet as published, on all four backends, timed, compared and drawn.

::

    images ── autoencnet_data ──> rows, one order of batches, one set of weights
                                            │  the same for every backend
         scalar ── numpy ── numba ── cython │  1. input layer forward   2. training, an epoch a call
                                            v
              table, agreement of the losses, the published measurement, three pictures

It works on what lies below ``Trainer``, a Program and the executors, so that all backends see the same
batches and the time of a training step holds nothing else.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TextIO

import numpy as np

from fastae import backend, historical, models
from fastae.backend import Backend, layout
from fastae.cli import CommandError
from fastae.cli.common import Text, progress
from fastae.datasets import autoencnet_data, digits_canvas
from fastae.kernels.table import ACTIVATIONS
from fastae.lowering import lower
from fastae.plots import duration, learning_curve, reconstructions, significant, speedup

__all__ = ["AGREEMENT", "Images", "Result", "disagreement", "load_images", "one_thread", "run", "train"]

#: Largest relative difference allowed between two backends' losses of the same update.
AGREEMENT: Final = 1e-9

#: Updates that one call of an executor makes: the published epoch of 1000 images in batches of 20.
EPOCH: Final = 50

PICTURES: Final = ("learning-curve.png", "speed-up.png", "reconstructions.png")

HIDDEN: Final = 75

_SHOWN = 10


@dataclass(frozen=True)
class Images:
    """Grey images from 0 to 255.

    Attributes
    ----------
    train, test : ndarray, shape (n, height, width)
        What is trained on, and what is reconstructed in the picture.
    description : str
        Where they come from.
    """

    train: np.ndarray
    test: np.ndarray
    description: str


@dataclass
class Result:
    """What one backend did.

    Attributes
    ----------
    name : str
        The backend.
    forward, step : float
        Fastest times of the input layer forward and of a training step, in seconds.
    whole : float
        Seconds of all updates.
    losses : ndarray of float64, shape (updates,)
        Loss of each batch before its update.
    reconstruct : callable
        Takes rows, (n, pixels), and gives their reconstructions.
    """

    name: str
    forward: float
    step: float
    whole: float
    losses: np.ndarray
    reconstruct: Callable[[np.ndarray], np.ndarray]


# -- images --------------------------------------------------------------------------------------------


def load_images(path: Path | None = None) -> Images:
    """Load the images of a file, or the bundled digits.

    Parameters
    ----------
    path : Path, optional
        An .npz file with an array "train" and perhaps "test", or with a single array of images, of shape
        (n, height, width), or (n, pixels) for square images. Grey levels are from 0 to 255. Without
        "test" the last tenth of the images, at most 20, is kept from training.

    Returns
    -------
    Images

    Raises
    ------
    CommandError
        The file is missing, is no .npz file or is damaged, or holds no images as described.
    """
    if path is None:
        canvas = digits_canvas(15)
        return Images(canvas[:1000], canvas[1000:1020], "the bundled UCI digits on a canvas of 15x15")
    arrays = _read(path)
    if "train" in arrays:
        train = _check_images(path, "train", arrays["train"])
        test = _check_images(path, "test", arrays["test"]) if "test" in arrays else None
    else:
        candidates = [name for name, a in arrays.items() if a.ndim == 3]
        candidates = candidates or [name for name, a in arrays.items() if a.ndim == 2]
        if len(candidates) != 1:
            found = ", ".join(f"{name} {a.shape}" for name, a in arrays.items()) or "nothing"
            raise CommandError(
                f"{path}: expected an array 'train' or a single array of images, found {found}"
            )
        train, test = _check_images(path, candidates[0], arrays[candidates[0]]), None
    if test is None:
        kept = min(20, max(1, len(train) // 10))
        train, test = (train[:-kept], train[-kept:]) if len(train) > 1 else (train, train)
    if test.shape[1:] != train.shape[1:]:
        raise CommandError(f"{path}: 'test' has images of {test.shape[1:]}, 'train' of {train.shape[1:]}")
    return Images(train, test, str(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CommandError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("it is a lone .npy array")
            return {name: loaded[name] for name in loaded.files}
    except OSError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib have a dozen ways to say so
        raise CommandError(f"{path}: not an .npz file of numbers, or damaged ({error})") from error


def _check_images(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    def refuse(expected: str, given: object) -> CommandError:
        return CommandError(f"{path}: array {name!r}: expected {expected}, got {given}")

    if array.dtype.kind not in "uif":
        raise refuse("grey levels from 0 to 255", f"dtype {array.dtype}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise refuse("images of shape (n, height, width)", f"shape {array.shape}")
    if not (array.min() >= 0 and array.max() <= 255):
        raise refuse("grey levels from 0 to 255", f"{array.min()} to {array.max()}")
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        if side * side != array.shape[1]:
            raise refuse("(n, height, width), or flat images that are square", f"shape {array.shape}")
        array = array.reshape(-1, side, side)
    return array


# -- training and timing -------------------------------------------------------------------------------


def train(
    chosen: Backend,
    data: np.ndarray,
    order: np.ndarray,
    weights: Mapping[str, np.ndarray],
    *,
    progress: Callable[[int], object] = lambda updates: None,
) -> Result:
    """Train AutoEncNet on one backend, and time it.

    What is compiled is compiled before the first time is taken, on weights of its own.

    Parameters
    ----------
    chosen : Backend
        Where to run.
    data : ndarray of float64, shape (n, pixels)
        Prepared images.
    order : ndarray of int64, shape (20 updates,)
        Rows in the order in which they are drawn.
    weights : mapping of str to ndarray
        Initial weights by parameter.
    progress : callable, optional
        Told the number of updates made since it was told last.

    Returns
    -------
    Result

    Raises
    ------
    CommandError
        A loss was not finite.
    """
    net = models.autoencnet(data.shape[1], HIDDEN)
    recipe = net.recipe
    assert recipe is not None
    module: Any = chosen.module
    program = lower(
        net,
        batch_size=recipe.batch_size,
        loss=recipe.loss,
        optimizer=recipe.optimizer,
        dtype="float64",
        **layout(module),
    )
    arena = program.new_arena()
    executor = module.Executor(program, arena, 1)
    routine = program.routine("train")
    batch = recipe.batch_size
    updates = len(order) // batch
    losses = np.full(updates, np.nan)

    program.write_weights(arena, weights)
    executor.run(routine, data, None, order[:batch], losses=losses)
    forward = _time_input_layer(chosen, data[order[:batch]], weights["in.weight"], weights["in.bias"])

    program.write_weights(arena, weights)
    program.header(arena)[0] = 0
    call = 1 if chosen.name == "scalar" else EPOCH
    control = np.zeros(8, np.int64)
    whole, step = 0.0, math.inf
    for done in range(0, updates, call):
        part = order[done * batch : (done + call) * batch]
        now = len(part) // batch
        control[:3] = 0, 0, -1
        start = perf_counter()
        executor.run(routine, data, None, part, losses=losses[done : done + now], control=control)
        seconds = perf_counter() - start
        if control[2] >= 0:
            rate = recipe.optimizer.constants["learning_rate"]
            raise CommandError(
                f"training diverged at update {done + control[2] + 1} on {chosen.name}: "
                f"the published learning rate, {rate:g}, is too large for these images"
            )
        whole += seconds
        step = min(step, seconds / now)
        progress(now)

    def reconstruct(rows: np.ndarray) -> np.ndarray:
        out = np.empty_like(rows)
        executor.run(program.routine("reconstruct"), rows, None, None, out=out)
        return out

    return Result(chosen.name, forward, step, whole, losses, reconstruct)


def _time_input_layer(chosen: Backend, x: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
    """Fastest time of relu(x w + b) as one call of the backend's kernel."""
    module: Any = chosen.module
    y = np.full((len(x), w.shape[1]), np.nan)
    arguments = [module.prepare(np.ascontiguousarray(a)) for a in (x, w, b)]
    arguments += [ACTIVATIONS["relu"].code, module.prepare(y)]
    fastest = _fastest(module.dense_forward, arguments)
    expected = np.maximum(x @ w + b, 0)
    bound = 4 * np.finfo(np.float64).eps * (np.abs(x) @ np.abs(w) + np.abs(b))
    if not np.all(np.abs(y - expected) <= bound):
        raise CommandError(f"the input layer of {chosen.name} is wrong; its times mean nothing")
    return fastest


def _fastest(call: Callable[..., object], arguments: Sequence[Any], budget: float = 0.3) -> float:
    """Shortest of at least 3 and at most 2000 calls within a budget of seconds, after one that warms up."""
    call(*arguments)
    shortest, began = math.inf, perf_counter()
    for i in range(2000):
        start = perf_counter()
        call(*arguments)
        end = perf_counter()
        shortest = min(shortest, end - start)
        if i >= 2 and end - began > budget:
            break
    return shortest


def disagreement(results: Sequence[Result]) -> float:
    """Largest relative difference of two backends' losses, over the updates both made.

    Parameters
    ----------
    results : sequence of Result
        What the backends did.

    Returns
    -------
    float
        0 if all losses are equal, or if there is only one backend.
    """
    largest = 0.0
    for one, other in combinations(results, 2):
        common = min(len(one.losses), len(other.losses))
        a, b = one.losses[:common], other.losses[:common]
        largest = max(largest, float(np.max(np.abs(a - b) / np.maximum(np.abs(a), np.finfo(float).tiny))))
    return largest


# -- the whole -----------------------------------------------------------------------------------------


def run(
    *,
    out: Path = Path("fastae-demo"),
    data: Path | None = None,
    updates: int = 1000,
    scalar_updates: int | None = None,
    seed: int = 0,
    force: bool = False,
    file: TextIO | None = None,
) -> int:
    """Run the demonstration.

    Parameters
    ----------
    out : Path, default "fastae-demo"
        Folder of the pictures; it is made when it is not there.
    data : Path, optional
        Images to train on, as `load_images` takes them; the bundled digits without.
    updates : int, default 1000
        SGD updates, as published.
    scalar_updates : int, optional
        Updates of the scalar backend; by default 20 for images of 15x15, fewer for larger ones.
    seed : int, default 0
        Seed of the weights and batches.
    force : bool, default False
        Replace pictures that are there already.
    file : text file, optional
        Where the table is printed; standard output by default. Progress goes to standard error.

    Returns
    -------
    int
        Exit status: 0, or 1 when the loss curves disagree.

    Raises
    ------
    CommandError
        What the user has to put right, before training where that is possible.
    ImportError
        matplotlib is not installed.
    """
    images = load_images(data)
    _check_out(out, force)
    learning_curve([0.0])  # if matplotlib is missing, say so before the training and not after

    # First of all, before anything has warmed up: as published, one run of each form.
    as_published = historical.compare()

    rows, mean = autoencnet_data(images.train)
    net = models.autoencnet(rows.shape[1], HIDDEN)
    assert net.recipe is not None
    weights = net.initial_weights(seed)
    order = np.random.default_rng([seed, 1]).integers(0, len(rows), updates * net.recipe.batch_size)
    if scalar_updates is None:
        scalar_updates = max(2, round(20 * 225 / rows.shape[1]))
    planned = dict.fromkeys(backend.NAMES, updates) | {"scalar": min(scalar_updates, updates)}

    loaded: dict[str, Backend] = {}
    missing: dict[str, str] = {}
    for name in planned:
        try:
            loaded[name] = backend.load(name)
        except ImportError as error:  # named in the table; no other backend takes its place
            missing[name] = str(error).partition("\n")[0]
        except ValueError as error:  # an environment variable that asks for what there is not
            raise CommandError(str(error)) from error

    results: list[Result] = []
    with one_thread() as threads:
        for name, chosen in loaded.items():
            drawn = order[: planned[name] * net.recipe.batch_size]
            with progress(name, planned[name], "updates") as tell:
                results.append(train(chosen, rows, drawn, weights, progress=tell))
        careful = historical.compare(5, 1000)

    text = Text(file)
    height, width = images.train.shape[1:]
    text.line(
        f"AutoEncNet {rows.shape[1]}-{HIDDEN}-{rows.shape[1]} on {images.description}: "
        f"{len(rows)} images of {height}x{width}."
    )
    text.line(
        f"{net.recipe.loss.upper()}, SGD with learning rate "
        f"{net.recipe.optimizer.constants['learning_rate']:g}, batches of {net.recipe.batch_size} "
        f"drawn with replacement, float64, {threads}, seed {seed}."
    )
    text.line()
    _print_results(text, results, missing)
    text.line()
    difference = disagreement(results)
    agree = difference <= AGREEMENT
    names = ", ".join(result.name for result in results)
    text.line(f"The loss curves of {names} {'agree' if agree else 'DISAGREE'}: over the updates that any two")
    text.line(
        f"have in common they differ by at most {difference:.1e}, relatively (allowed: {AGREEMENT:.0e})."
    )
    text.line()
    _print_published(text, as_published, careful, results if rows.shape[1] == historical.SHAPE[1] else [])
    text.line()
    _draw(out, images, mean, results)
    text.line(f"Pictures in {out}{'' if out.is_absolute() else '/'}: {', '.join(PICTURES)}")
    if not agree:
        print(f"fastae: error: loss curves differ by {difference:.1e} > {AGREEMENT:.0e}", file=sys.stderr)
        return 1
    return 0


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CommandError(f"--out {out}: not a folder")
    there = [name for name in PICTURES if (out / name).exists()]
    if there and not force:
        raise CommandError(f"{out / there[0]} exists; give another --out, or --force to replace it")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise CommandError(f"--out {out}: no permission to write there")


@contextmanager
def one_thread() -> Iterator[str]:
    """Hold BLAS to one thread where threadpoolctl is there to do it; gives what to say of it."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield "BLAS with its own number of threads"
        return
    with threadpool_limits(1):
        yield "one thread"


# -- what is printed -----------------------------------------------------------------------------------


def _print_results(text: Text, results: Sequence[Result], missing: Mapping[str, str]) -> None:
    done = {result.name: result for result in results}
    slowest = done["scalar"]
    rows: list[tuple[str, ...]] = [
        ("", "input layer", "speed-up", "training", "speed-up", "whole", "", "final"),
        ("backend", "forward", "over scalar", "step", "over scalar", "run", "updates", "loss"),
    ]
    for name in backend.NAMES:
        if name in missing:
            rows.append((name, f"not available: {missing[name]}"))
            continue
        result = done[name]
        rows.append(
            (
                name,
                duration(result.forward),
                f"{significant(slowest.forward / result.forward)}x",
                duration(result.step),
                f"{significant(slowest.step / result.step)}x",
                duration(result.whole),
                str(len(result.losses)),
                f"{result.losses[-1]:.3f}",
            )
        )
    text.table(rows, heads=2)
    text.line()
    text.line("Forward and step are the fastest seen. A step is one batch: forward, loss, backward, update.")
    few = len(slowest.losses)
    if any(len(result.losses) != few for result in results):
        text.line(f"The whole run and the final loss of scalar are those of {few} updates.")


def _print_published(
    text: Text,
    as_published: historical.Comparison,
    careful: historical.Comparison,
    results: Sequence[Result],
) -> None:
    batch, inputs, outputs = historical.SHAPE
    published = historical.PUBLISHED
    text.line(f"The published comparison: input layer forward, {batch} rows, {inputs} to {outputs}, float64.")
    text.line("The scalar form loops over NumPy elements, appends the products to a list and sums it;")
    text.line("the vector form is one matmul, bias, relu.")
    text.line()
    rows = [
        ("", "scalar form", "vector form", "ratio"),
        (
            "published, one run of each",
            f"{published.scalar} s",
            f"{published.vector} s",
            f"{published.ratio}x",
        ),
        (
            "here, in the same way: one run of each",
            f"{as_published.scalar:.4f} s",
            f"{as_published.vector:.4f} s",
            f"{as_published.ratio:.4f}x",
        ),
        (
            "here, the fastest of 5 and of 1000 runs",
            duration(careful.scalar),
            duration(careful.vector),
            f"{significant(careful.ratio)}x",
        ),
    ]
    for result in results:
        if result.name != "scalar":
            ratio = careful.scalar / result.forward
            rows.append(
                (
                    f"here, {result.name} in place of the vector form",
                    duration(careful.scalar),
                    duration(result.forward),
                    f"{significant(ratio)}x",
                )
            )
    text.table(rows)


# -- pictures ------------------------------------------------------------------------------------------


def _draw(out: Path, images: Images, mean: np.ndarray, results: Sequence[Result]) -> None:
    curves = {}
    for result in results:
        few = len(result.losses) < max(len(other.losses) for other in results)
        curves[f"{result.name} ({len(result.losses)} updates)" if few else result.name] = result.losses
    curve = learning_curve(
        curves,
        ylabel="loss (sum of squared errors of a batch)",
        title="AutoEncNet, one curve for each backend",
    )
    bars = speedup(
        {
            "input layer forward": {result.name: result.forward for result in results},
            "training step": {result.name: result.step for result in results},
        },
        title="AutoEncNet, float64, one thread",
    )
    shown = images.test[
        np.linspace(0, len(images.test) - 1, min(_SHOWN, len(images.test))).round().astype(int)
    ]
    rows, _ = autoencnet_data(shown, mean)
    best = results[-1]
    grey = np.clip(best.reconstruct(rows) * 255 + mean, 0, 255)
    pairs = reconstructions(
        shown,
        grey.reshape(shown.shape),
        title=f"Images not trained on, after {len(best.losses)} updates with {best.name}",
    )
    for ax, name in zip((curve, bars, pairs), PICTURES, strict=True):
        figure: Any = ax.figure
        figure.savefig(out / name, format="png")
