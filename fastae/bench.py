"""``fastae bench``: the training step of a published network on every backend, compared first, then timed.

::

    bundled digits ──> one order of batches, one set of weights ──> each backend: 3 updates
                                                                        │ losses as numpy's in float64?
                                                                        v
                                        turns of some updates, one backend after the other ──> table

The scalar backend takes its time: its three updates are the timing too, on fewer rows where a whole batch
would take too long. What is thorough is in ``benchmarks/``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Final, TextIO

import numpy as np

from fastae import backend as backends
from fastae import datasets
from fastae.cli import CommandError
from fastae.cli.common import Text, progress, refused
from fastae.demo import one_thread
from fastae.losses import resolve
from fastae.lowering import lower
from fastae.models import MODELS
from fastae.network import Network, Recipe
from fastae.plots import duration

__all__ = ["TOLERANCE", "Contender", "run"]

#: Relative difference allowed between a loss and that of numpy in float64, over the first updates. Adam's
#: first steps have the size of the learning rate whatever the gradient: rounding turns those near 0 round.
TOLERANCE: Final = {"float32": 5e-5, "float64": 1e-10}

#: Updates whose losses are compared.
CHECKED: Final = 3

#: Updates of an order, and of a turn at most.
_UPDATES: Final = 50

#: Seconds of a turn.
_TURN: Final = 0.02

#: FLOPs of a step that the scalar backend is left with, a second or so; and rows at least of a batch that is
#: normalised: the deviation of fewer turns rounding into another result.
_SCALAR_FLOPS: Final = 5e6
_NORMALISED_ROWS: Final = 8


@dataclass
class Contender:
    """A network in training on one backend.

    Attributes
    ----------
    name : str
        The backend.
    rows : int
        Of a batch.
    seconds : list of float
        Of an update, one for each turn.
    flops : float
        Of an update, as the table of kernels counts them, for the plain program.
    """

    name: str
    rows: int
    executor: Any
    program: Any
    arena: np.ndarray
    seconds: list[float] = field(default_factory=list)
    flops: float = 0.0
    updates: int = 1


class Problem:
    """A network with rows, the order in which they are drawn, and initial weights.

    Parameters
    ----------
    name : str
        One of `fastae.models.MODELS`.
    batch_size : int, optional
        In place of the published one.
    dtype : str, optional
        The same.
    """

    def __init__(self, name: str, batch_size: int | None, dtype: str | None) -> None:
        self.net: Network = MODELS[name]()
        assert self.net.recipe is not None
        self.recipe: Recipe = self.net.recipe
        self.batch = self.recipe.batch_size if batch_size is None else batch_size
        self.dtype = self.recipe.dtype if dtype is None else dtype
        if name == "autoencnet":
            self.images, _ = datasets.autoencnet_data(datasets.digits_canvas(15)[:1000])
        else:
            self.images = datasets.rows(datasets.digits_canvas(28), "float64")
        self.order = np.random.default_rng(11).integers(0, len(self.images), self.batch * _UPDATES)
        self.weights = self.net.initial_weights(seed=5)

    def contender(self, name: str, rows: int, dtype: str, threads: int) -> Contender:
        """Have a backend ready to train in batches of so many rows."""
        module: Any = backends.load(name).module
        program = lower(
            self.net,
            batch_size=rows,
            loss=resolve(self.recipe.loss),
            optimizer=self.recipe.optimizer,
            dtype=dtype,
            **backends.layout(module),
        )
        least = program.needs_rows
        if rows < least:
            raise CommandError(
                f"--batch-size {rows}: expected {least} or more, as {self.net.name} normalises batches"
            )
        arena = program.new_arena()
        contender = Contender(name, rows, module.Executor(program, arena, threads), program, arena)
        self.reset(contender)
        return contender

    def reset(self, contender: Contender) -> None:
        """Put the initial weights back; what was learnt is not to make a step cheaper."""
        program, arena = contender.program, contender.arena
        arena[...] = 0
        program.write_weights(arena, self.weights)
        program.header(arena)[:2] = 0, 0

    def train(self, contender: Contender, start: int, updates: int, images: np.ndarray) -> np.ndarray:
        """Make so many updates from a place in the order on; gives their losses."""
        rows = contender.rows
        losses = np.full(updates, np.nan)
        order = self.order[start * rows : (start + updates) * rows]
        contender.executor.run(contender.program.routine("train"), images, None, order, losses=losses)
        return losses

    def expected(self, rows: int) -> tuple[np.ndarray, float]:
        """Losses of the first updates by numpy in float64, and the FLOPs of an update."""
        judge = self.contender("numpy", rows, "float64", 1)
        return self.train(judge, 0, CHECKED, self.images), judge.program.routine("train").flops()

    def scalar_rows(self) -> int:
        """Rows of a batch that do not take the scalar backend too long."""
        program = self.contender("numpy", self.batch, self.dtype, 1).program
        routine = program.routine("train")
        least = _NORMALISED_ROWS if program.needs_rows > 1 else 1
        rows = self.batch
        while rows > least and routine.flops(rows) > _SCALAR_FLOPS:
            rows = max(least, rows // 2)
        return rows


def run(
    model: str = "autoencnet",
    *,
    batch_size: int | None = None,
    dtype: str | None = None,
    threads: int = 1,
    seconds: float = 1.0,
    quiet: bool = False,
    file: TextIO | None = None,
) -> int:
    """Time a training step on every backend that is there, and print the table.

    Parameters
    ----------
    model : str
        One of `fastae.models.MODELS`.
    batch_size, dtype : optional
        In place of the published ones.
    threads : int
        Of numba and cython.
    seconds : float
        Of timing, for each backend but scalar.
    quiet : bool
        Show no progress.
    file : text file, optional
        Where the table is printed; standard output by default.

    Returns
    -------
    int
        Exit status: 0.

    Raises
    ------
    CommandError
        There is no such network, or a backend's losses are not those of numpy in float64.
    """
    if model not in MODELS:
        raise CommandError(f"MODEL: expected one of {', '.join(MODELS)}, got {model!r}")
    with refused():
        problem = Problem(model, batch_size, dtype)
    images = np.ascontiguousarray(problem.images, problem.dtype)
    contenders: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    with one_thread() as blas:
        for name in backends.NAMES:
            try:
                backends.load(name)
            except ImportError as error:  # named in the table; no other backend takes its place
                missing[name] = str(error).partition("\n")[0]
                continue
            except ValueError as error:
                raise CommandError(str(error)) from error
            if not quiet:
                note = ", which is compiled where this machine has never run it" if name == "numba" else ""
                print(f"comparing {name}{note}", file=sys.stderr, flush=True)
            rows = problem.scalar_rows() if name == "scalar" else problem.batch
            own = 1 if name in ("scalar", "numpy") else threads
            contenders[name] = _compared(problem, problem.contender(name, rows, problem.dtype, own), images)
        _time(problem, [c for c in contenders.values() if c.name != "scalar"], images, seconds, quiet)
    text = Text(file)
    text.line(
        f"{model}: {problem.recipe.loss.upper()}, {problem.recipe.optimizer}, batches of {problem.batch}, "
        f"{problem.dtype}, {threads} thread{'s' * (threads > 1)} (numpy: {blas}).\n"
        f"Losses of the first updates agree with those of numpy in float64 "
        f"(relatively to {TOLERANCE[problem.dtype]:.0e}).\n"
    )
    _print(text, contenders, missing, problem.batch)
    return 0


def _compared(problem: Problem, contender: Contender, images: np.ndarray) -> Contender:
    """Make the first updates, and see that their losses are right."""
    expected, contender.flops = problem.expected(contender.rows)
    # A step of seconds is not made once more than the check of an update needs.
    few = contender.name == "scalar" and contender.flops > 4 * _SCALAR_FLOPS
    losses = np.empty(2 if few else CHECKED)
    for i in range(len(losses)):
        start = perf_counter()
        losses[i : i + 1] = problem.train(contender, i, 1, images)
        contender.seconds.append(perf_counter() - start)
    expected = expected[: len(losses)]
    worst = float(np.max(np.abs(losses - expected) / np.abs(expected)))
    if not worst <= TOLERANCE[problem.dtype]:
        raise CommandError(
            f"losses of {contender.name} differ from those of numpy in float64 by {worst:.1e} "
            f"> {TOLERANCE[problem.dtype]:.0e}: its times would mean nothing"
        )
    return contender


def _time(
    problem: Problem, contenders: list[Contender], images: np.ndarray, seconds: float, quiet: bool
) -> None:
    """Let the backends take turns: so a noisy machine disturbs all alike."""
    turns = max(5, math.ceil(seconds / _TURN))
    for contender in contenders:
        one = min(contender.seconds)  # the first updates have warmed up what is to be warm
        contender.updates = min(_UPDATES, max(1, round(_TURN / one)))
        contender.seconds = []
    with progress("bench", turns, "turns", delay=1.0, quiet=quiet) as tell:
        end = perf_counter() + seconds * len(contenders)
        for turn in range(turns):
            for contender in contenders:
                problem.reset(contender)
                start = perf_counter()
                problem.train(contender, 0, contender.updates, images)
                contender.seconds.append((perf_counter() - start) / contender.updates)
            tell(1)
            if turn >= 4 and perf_counter() > end:
                break


def _print(text: Text, contenders: Mapping[str, Contender], missing: Mapping[str, str], batch: int) -> None:
    reference = contenders["numpy"]
    base = median(reference.seconds)
    rows: list[tuple[str, ...]] = [("backend", "rows", "step", "fastest", "GFLOP/s", "over numpy")]
    for name in backends.NAMES:
        if name in missing:
            rows.append((name, f"not available: {missing[name]}"))
            continue
        contender = contenders[name]
        step = median(contender.seconds)
        rows.append(
            (
                name,
                str(contender.rows),
                duration(step),
                duration(min(contender.seconds)),
                f"{contender.flops / step / 1e9:.3g}",
                f"{base / step:.3g}x" if contender.rows == batch else "-",
            )
        )
    text.table(rows)
    text.line("\nA step is one batch: forward, loss, backward, update; the median of all turns.")
    if "scalar" in contenders and contenders["scalar"].rows != batch:
        text.line(f"A batch of {batch} takes scalar too long: it is timed on fewer rows, so compare GFLOP/s.")
