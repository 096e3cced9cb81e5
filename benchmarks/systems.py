"""Every dense system trained as published, its losses beside the reference and the published ones.

::

    python -m benchmarks.systems [--backends cython,numba] [--systems NAME,...] [--seeds 3]
                                 [--json FILE] [--markdown FILE] [--add FILE,...]

The four networks for MNIST see all of it; AutoEncNet sees its own images, ``autoencnet_digits.npz`` in
FASTAE_DATA_DIR, or the bundled digits where there are none (its figures are then not comparable). A system
has reached its loss when the median over the seeds is at most 10 % above the reference's.

Every training is a process of its own that does nothing else, so that its peak of memory can be told:
beside it stand the data, one copy, and the arena. What the process takes without them is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from fastae import datasets, models
from fastae.backend import load
from fastae.plots import duration

from . import BACKENDS
from .contenders import SYSTEMS
from .machine import unavailable

#: How far above the reference a loss may be.
TOLERANCE = 1.10

#: The reference of each system, and what is compared with it: AutoEncNet has no validation images.
MEASURES = dict.fromkeys(SYSTEMS, "validation_loss") | {"autoencnet": "last_loss"}


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes
    ----------
    loss : float
        Validation loss after the last epoch; of AutoEncNet the mean batch loss of the last epoch.
    first : float
        Validation loss after the first epoch; of AutoEncNet the loss of the first batch.
    training_loss : float
        Of the last epoch.
    seconds, epoch : float
        Of the fit, and the median of an epoch without validation.
    peak, data, arena : int
        Bytes: the most the process had over what it has without data, what the rows take, what the
        backend's block of memory takes.
    """

    system: str
    backend: str
    seed: int
    epochs: int
    loss: float
    first: float
    training_loss: float
    seconds: float
    epoch: float
    peak: int
    data: int
    arena: int


def peak_memory() -> int:
    """Most bytes this process had in memory so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def train(system: str, backend: str, seed: int, folder: Path, epochs: int | None = None) -> Run:
    """Train in this process, on the arrays that `prepare` has put into a folder."""
    import fastae

    net = models.MODELS[system]()
    recipe = net.recipe
    assert recipe is not None
    options: dict[str, Any] = {
        "sampling": recipe.sampling,
        "steps_per_epoch": recipe.updates and recipe.updates // recipe.epochs,
    }

    def trainer() -> fastae.Trainer:
        return fastae.Trainer.from_recipe(net, backend=backend, seed=seed, n_threads=1)

    # What is imported, compiled and made once is there before the data are.
    few = np.full((2 * recipe.batch_size, *net.input_shape), 0.5, recipe.dtype)
    trainer().fit(few, epochs=1, validation_data=few)
    before = peak_memory()

    rows = {part: np.load(folder / f"{system}-{part}.npy") for part in ("train", "test")}
    fresh = trainer()
    arena = fresh.program.arena_size * np.dtype(recipe.dtype).itemsize
    epochs = epochs or recipe.epochs
    start = perf_counter()
    history = fresh.fit(rows["train"], epochs=epochs, validation_data=rows["test"], **options)
    seconds = perf_counter() - start
    own = MEASURES[system] == "last_loss"
    return Run(
        system,
        backend,
        seed,
        epochs,
        loss=history.loss[-1] if own else history.val_loss[-1],
        first=float(history.batch_loss[0]) if own else history.val_loss[0],
        training_loss=history.loss[-1],
        seconds=seconds,
        epoch=median(history.seconds),
        peak=peak_memory() - before,
        data=sum(a.nbytes for a in rows.values()),
        arena=arena,
    )


def prepare(systems: Sequence[str], folder: Path) -> list[str]:
    """Put the rows of each system into a folder, so that a training has nothing else; gives what to say."""
    said = []
    made: dict[str, Path] = {}
    for system in systems:
        if system == "autoencnet":
            own = Path(os.environ.get("FASTAE_DATA_DIR", "")) / "autoencnet_digits.npz"
            if own.is_file():
                with own.open("rb") as file, np.load(file) as arrays:
                    images = {part: arrays[part] for part in ("train", "test")}
                said.append("autoencnet: its own images.")
            else:
                canvas = datasets.digits_canvas(15)
                images = {"train": canvas[:1000], "test": canvas[1000:1020]}
                said.append(
                    "autoencnet: the BUNDLED digits, for lack of its own; the reference is not theirs."
                )
            train_rows, mean = datasets.autoencnet_data(images["train"])
            test_rows, _ = datasets.autoencnet_data(images["test"], mean)
            np.save(folder / f"{system}-train.npy", train_rows)
            np.save(folder / f"{system}-test.npy", test_rows)
            continue
        for part in ("train", "test"):
            if part not in made:
                made[part] = folder / f"mnist-{part}.npy"
                np.save(made[part], datasets.rows(datasets.mnist(part)[0]))
        recipe = models.MODELS[system]().recipe
        assert recipe is not None
        if recipe.train_rows is not None and recipe.validation_rows is not None:
            kept, end = recipe.train_rows, recipe.train_rows + recipe.validation_rows
            several = np.load(made["train"], mmap_mode="r")
            for part, of in (("train", several[:kept]), ("test", several[kept:end])):
                np.save(folder / f"{system}-{part}.npy", of)
            said.append(f"{system}: the first {kept} training images, validated on the next {end - kept}.")
            continue
        for part in ("train", "test"):
            (folder / f"{system}-{part}.npy").hardlink_to(made[part])
    return said


def in_a_process(task: str, *arguments: Any) -> tuple[Any, str]:
    """Have a process of its own run `prepare` or `train`; gives the result, or None and why there is none.

    Also to prepare the data: on Linux a process starts with its parent's peak of memory as its own.
    """
    command = [sys.executable, "-m", "benchmarks.systems", "--task", json.dumps([task, *arguments])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def run_task(task: str) -> Any:
    """What `in_a_process` asks for, as plain values."""
    name, *arguments = json.loads(task)
    if name == "prepare":
        systems, folder = arguments
        return prepare(systems, Path(folder))
    system, backend, seed, folder, epochs = arguments
    return asdict(train(system, backend, seed, Path(folder), epochs))


COLUMNS = (
    "system",
    "backend",
    "seeds",
    "epochs",
    "first",
    "loss",
    "reference",
    "published",
    "of reference",
    "within 10 %",
    "in all",
    "epoch",
    "peak",
    "data + arena",
)


def cells(runs: Sequence[Run]) -> tuple[str, ...]:
    """A row of the table: one system on one backend, the median of its seeds."""
    run = runs[0]
    recipe = models.MODELS[run.system]().recipe
    assert recipe is not None
    measure = MEASURES[run.system]
    reference = float(recipe.reference[measure])
    published = recipe.published.get(measure, "-")
    loss = median(r.loss for r in runs)
    reached = "-" if run.epochs < recipe.epochs else "yes" if loss <= TOLERANCE * reference else "NO"
    return (
        run.system,
        run.backend,
        str(len(runs)),
        str(run.epochs),
        f"{median(r.first for r in runs):.4g}",
        f"{loss:.4g}",
        f"{reference:g}",
        f"{published:g}" if isinstance(published, float) else str(published),
        f"{loss / reference:.2f}",
        reached,
        duration(median(r.seconds for r in runs)),
        duration(median(r.epoch for r in runs)),
        f"{max(r.peak for r in runs) / 1e6:.1f} MB",
        f"{run.data / 1e6:.1f} + {run.arena / 1e6:.2f} MB",
    )


def machine() -> list[str]:
    """When and with what: the day, the processor, the versions."""
    from cpuinfo import get_cpu_info

    described = {name: load(name).module.describe() for name in BACKENDS if name not in unavailable()}
    cpu = get_cpu_info().get("brand_raw", platform.machine())
    return [
        f"{date.today()}, {cpu}, {platform.system()}, Python {platform.python_version()}.",
        *(f"{name}: " + ", ".join(f"{k} {v}" for k, v in d.items()) + "." for name, d in described.items()),
    ]


def notes() -> list[str]:
    """What the table shows."""
    return [
        "Medians of the seeds, one thread. first, loss: validation loss after the",
        "first and the last epoch; of autoencnet the loss (SSE of a batch of 20) of the first batch and the",
        "mean of the last epoch's 50. in all: with validation; epoch: without. peak: most memory over that",
        "of the same process without the data.",
    ]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    table = [COLUMNS, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(rows: Sequence[Sequence[str]], remarks: Sequence[str]) -> str:
    """The table as Markdown."""
    head = ["| " + " | ".join(COLUMNS) + " |", "|---|---" + "|---:" * (len(COLUMNS) - 2) + "|"]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["# The published systems", "", *remarks, "", *head, *lines]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, and write files where asked; 1 when a loss was not reached or a training failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.systems", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--backends", default="cython,numba", help="comma-separated (default: %(default)s)")
    add("--systems", default=",".join(SYSTEMS), help="comma-separated (default: all)")
    add("--seeds", type=int, default=3, help="trainings of each system and backend (default: %(default)s)")
    add("--epochs", type=int, help="fewer than published, to try it out; no loss is then judged")
    add("--json", type=Path, help="write every training to this file too")
    add("--markdown", type=Path, help="write the table to this file too")
    add("--add", help="comma-separated files of --json; their trainings join these (with --seeds 0: alone)")
    add("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        print(json.dumps(run_task(options.task)))
        return 0
    systems, backends = options.systems.split(","), options.backends.split(",")
    for name, given, known in (("systems", systems, SYSTEMS), ("backends", backends, BACKENDS)):
        if unknown := set(given) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, given {', '.join(sorted(unknown))}")
    if options.seeds < (0 if options.add else 1) or (options.epochs is not None and options.epochs < 1):
        parser.error("--seeds, --epochs: expected at least 1")

    runs: list[Run] = []
    faults = []
    for file in options.add.split(",") if options.add else ():
        runs += [Run(**run) for run in json.loads(Path(file).read_text())["runs"]]
    with TemporaryDirectory() as folder:
        remarks, fault = in_a_process("prepare", systems, folder)
        if fault:
            parser.error(fault)
        for system in systems:
            for backend in backends:
                done = []
                for seed in range(options.seeds):
                    result, fault = in_a_process("train", system, backend, seed, folder, options.epochs)
                    if fault:
                        faults.append(f"{system}, {backend}, seed {seed}: {fault}")
                        break
                    run = Run(**result)
                    done.append(run)
                    print(
                        f"{system}, {backend}, seed {seed}: loss {run.loss:.4g} after {run.epochs} epochs, "
                        f"{duration(run.seconds)}",
                        file=sys.stderr,
                        flush=True,
                    )
                runs += done
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.system, run.backend), []).append(run)
    rows = [cells(group) for group in groups.values()]
    circumstances = machine()
    remarks = [*circumstances, *notes(), *remarks, *(f"FAILED: {fault}" for fault in faults)]
    print("\n".join([text_table(rows), "", *remarks]))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": circumstances, "runs": [asdict(run) for run in runs]}, indent=2) + "\n"
        )
    if options.markdown:
        options.markdown.write_text(markdown(rows, remarks))
    return 1 if faults or any("NO" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
