"""fastae beside the frameworks: every system's training step and inference, in one interleaved run.

::

    python -m benchmarks.peers [--systems NAME,...] [--threads 1,2] [--seconds S]
                               [--out FOLDER] [--readme FILE]

Every library has a process of its own for each number of threads (Keras one more on PyTorch, its faster
backend for images); they take turns, in another order each round, the others resting meanwhile. All begin
from the same weights and see the same float32 batches, and nothing is timed before losses and
reconstructions agree with those of a float64 reference. On several threads fastae chooses how many of them
to take, as it does where nobody says. A turn is as many updates as take 100 ms, in epochs of 50 where those
are more, which JAX's scan and Keras's fit always do at once: after its rest a library finds its caches cold,
and its threads asleep, and it is no matter of its speed for how many updates that counts. A step's time is
the median over the turns.

The limits of the machine are measured in the same run by a small compiled probe. FLOPs and bytes are those
of the network as published, nothing fused, for every contender; what saves FLOPs may pass the limit. What a
second thread can bring depends on how fast a cache line goes between the processors, which on a virtual
machine changes from minute to minute: that is measured before and after each system, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastae.plots import duration

from . import contenders
from .peer_worker import LIBRARIES, NO_ZEROS, WHOLE
from .probe import Limits, limits, round_trip
from .summary import PEER_GOALS, TORCH

#: The packages of the libraries, their own first, for versions and for what is missing.
PACKAGES = {
    "fastae": ("fastae",),
    "torch": ("torch",),
    "jax": ("jax",),
    "keras": ("keras", "jax"),
    "keras-torch": ("keras", "torch"),
}
OURS = ("cython", NO_ZEROS, "numba", "numpy")
ROWS = (1, 1000)  # of inference
LEAST_ROUNDS = 7
TURN = 0.1  # seconds
#: Of a float32 reconstruction, a number between 0 and 1 or so.
OUTPUT_TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}

MLP_CANNOT = (
    "MLPRegressor, with one activation for all hidden layers and none at the end, can be none of these "
    "networks; see Autoencoder.fit in the benchmarks"
)

HATCHES = ("", "////", "....")  # of bars, where colours begin again

BEGIN, END = "<!-- begin: output of make peers -->", "<!-- end: output of make peers -->"


@dataclass(frozen=True)
class Measured:
    """Seconds of one unit of a task: an update, or a call of inference."""

    system: str
    task: str
    contender: str
    threads: int
    median: float
    minimum: float
    rounds: int


@dataclass(frozen=True)
class Verdict:
    """A contender at its best number of threads, beside the best of the others at theirs."""

    system: str
    ours: Measured
    best: Measured
    torch: Measured | None
    goals: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times faster than the best peer."""
        return self.best.median / self.ours.median

    @property
    def ratio_to_torch(self) -> float | None:
        """How many times faster than the best of PyTorch."""
        return self.torch and self.torch.median / self.ours.median


class Process:
    """A library in a process of its own."""

    def __init__(self, library: str, threads: int) -> None:
        self.library, self.threads = library, threads
        count = str(threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, count)}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "KERAS_BACKEND": "torch" if library == "keras-torch" else "jax",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer_worker", library, count],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, task: str, *arguments: Any) -> Any:
        """Have it do something and wait for the answer; RuntimeError with its own traceback."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([task, *arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.library} on {self.threads} threads ended with {self.process.wait()}")
        said = json.loads(line)
        if "error" in said:
            raise RuntimeError(f"{self.library} on {self.threads} threads:\n{said['error']}")
        return said["answer"]

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def installed(libraries: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Version of each library that is there, and what each of the others lacks."""
    found, missing = {}, {}
    for library in libraries:
        try:
            found[library], *_ = [version(package) for package in PACKAGES[library]]
        except PackageNotFoundError as error:
            missing[library] = f"{error.name} is not installed"
    return found, missing


def check(system: str, name: str, said: Mapping[str, Any], outputs: np.ndarray) -> None:
    """Compare first losses and reconstructions with the reference's; AssertionError when they differ."""
    contenders.problem(system).check(np.array(said["losses"]), "float32", name)
    if said["outputs"] is not None:
        what = f"reconstructions of {system} by {name}"
        np.testing.assert_allclose(np.array(said["outputs"]), outputs, **OUTPUT_TOLERANCE, err_msg=what)


def reference_outputs(system: str, rows: int) -> np.ndarray:
    """Reconstructions by the initial weights in float64."""
    from fastae import Trainer

    problem = contenders.problem(system)
    trainer = Trainer.from_recipe(problem.net, backend="numpy", dtype="float64")
    trainer.set_weights(problem.weights)
    images = problem.images[:rows].reshape(-1, *problem.net.input_shape)
    return trainer.reconstruct(images).reshape(rows, -1)


Key = tuple[str, int]  # a contender and its number of threads


@dataclass
class Field:
    """Contenders of a system that are ready to be timed, those that infer, and why the others are not."""

    there: dict[Key, Process]
    infers: list[Key]
    missing: dict[str, str]
    wrong: list[str]

    def turns(self, task: str, keys: Sequence[Key], *before: Any) -> dict[Key, Callable[[int], float]]:
        """What has each do so many units of a task; seconds by its own clock."""
        return {key: lambda n, k=key: self.there[k].ask(task, k[0], *before, n) for key in keys}


def prepare(system: str, processes: Sequence[Process], *options: Any) -> Field:
    """Have the processes make their contenders, with options of `peer_worker.Worker.make`, and check them."""
    outputs = reference_outputs(system, 3)
    field = Field({}, [], {}, [])
    for process in processes:
        for name, said in process.ask("make", system, 3, *options).items():
            label = f"{name}, {process.threads} threads"
            if "missing" in said:
                field.missing[f"{system}: {label}"] = said["missing"]
                continue
            try:
                check(system, label, said, outputs)
            except AssertionError as error:
                field.wrong.append(" ".join(str(error).split())[:300])
                continue
            field.there[name, process.threads] = process
            if said["outputs"] is not None:
                field.infers.append((name, process.threads))
    return field


def interleave(
    turns: Mapping[Key, Callable[[int], float]],
    units: Mapping[Key, int],
    seconds: float,
    rounds: int = LEAST_ROUNDS,
) -> dict[Key, list[float]]:
    """Let every contender have its turn again and again, so many times at least; seconds of a unit.

    Each round has another order: what a turn leaves behind, threads that still spin and a processor that has
    slept or has not, falls to nobody in particular.
    """
    times: dict[Key, list[float]] = {key: [] for key in turns}
    order, shuffle = list(turns.items()), Random(11).shuffle
    begin, done = perf_counter(), 0
    while turns and (done < rounds or perf_counter() - begin < seconds):
        done += 1
        shuffle(order)
        for key, turn in order:
            times[key].append(turn(units[key]) / units[key])
    return times


def step_times(field: Field, seconds: float, rounds: int = LEAST_ROUNDS) -> dict[Key, list[float]]:
    """Seconds of an update of each contender, turn by turn."""
    epoch = contenders.UPDATES
    train, units = field.turns("train", list(field.there), epoch), {}
    for key, turn in train.items():
        tried = epoch if key[0] in WHOLE else 3
        turn(tried)
        units[key] = max(int(TURN * tried / turn(tried)), 2)
        if units[key] > epoch or key[0] in WHOLE:
            units[key] = max(round(TURN / turn(epoch)), 1) * epoch
    return interleave(train, units, seconds, rounds)


def measure(
    system: str, processes: Sequence[Process], seconds: float
) -> tuple[list[Measured], Field, list[float | None]]:
    """One system: what was measured, by whom, and round trips before and after."""
    field = prepare(system, processes)
    results = []

    def collect(task: str, times: Mapping[Key, list[float]]) -> None:
        for (name, threads), t in times.items():
            results.append(Measured(system, task, name, threads, median(t), min(t), len(t)))

    before = round_trip()  # now that all processes rest
    collect("training step", step_times(field, seconds))
    for rows in ROWS:
        calls = field.turns("infer", field.infers, rows)
        units = {}
        for key, call in calls.items():
            call(2)
            units[key] = max(int(TURN / 10 * 3 / call(3)), 1)
        name = f"inference of {rows} row{'s' * (rows > 1)}"
        collect(name, interleave(calls, units, seconds / 4))
    return results, field, [before, round_trip()]


def verdict(results: Sequence[Measured], system: str, task: str = "training step") -> Verdict | None:
    """Cython at its best beside the best of the peers; None where one of the two is missing."""
    mine = [r for r in results if (r.system, r.task) == (system, task)]
    ours = [r for r in mine if r.contender == "cython"]
    peers = [r for r in mine if r.contender not in OURS]
    if not (ours and peers):
        return None
    torch = [r for r in peers if r.contender.startswith(TORCH.split()[0])]

    def least(rs: Sequence[Measured]) -> Measured:
        return min(rs, key=lambda r: r.median)

    return Verdict(system, least(ours), least(peers), least(torch) if torch else None, PEER_GOALS[system])


# -- what is shown -------------------------------------------------------------------------------------


def tables(results: Sequence[Measured], roof: Mapping[int, Limits]) -> list[tuple[str, list[list[str]]]]:
    """A table for every system: contenders down, tasks and threads across."""
    found = []
    for system in dict.fromkeys(r.system for r in results):
        mine = [r for r in results if r.system == system]
        columns = list(dict.fromkeys((r.task, r.threads) for r in mine))
        flops = contenders.problem(system).cost("float32", updates=1)["flops"]
        head = [""]
        for task, threads in columns:
            head.append(f"{task}, {threads} thread{'s' * (threads > 1)}")
            if task == "training step":
                head.append("of peak")
        rows = [head]
        for name in dict.fromkeys(r.contender for r in mine):
            row = [name]
            for task, threads in columns:
                cell = [r for r in mine if (r.contender, r.task, r.threads) == (name, task, threads)]
                row.append(duration(cell[0].median) if cell else "-")
                if task == "training step":
                    share = flops / cell[0].median / 1e9 / roof[threads].gflops if cell else 0
                    row.append(f"{share:.0%}" if cell else "-")
            rows.append(row)
        batch = contenders.problem(system).batch
        found.append((f"{system}, B={batch}, {flops / 1e6:.3g} MFLOP a step", rows))
    return found


def headlines(results: Sequence[Measured]) -> list[list[str]]:
    """The table of ratios."""
    head = [
        "training step",
        "cython",
        "best peer",
        "",
        "ahead",
        "goal",
        "best of PyTorch",
        "ahead of it",
        "goal",
        "2nd thread",
        "ahead, no zero pixels",
    ]
    rows = [head]
    for system in dict.fromkeys(r.system for r in results):
        v = verdict(results, system)
        if v is None:
            continue
        cython = {
            r.threads: r.median
            for r in results
            if (r.system, r.task, r.contender) == (system, "training step", "cython")
        }
        without = [
            r.median
            for r in results
            if (r.system, r.task, r.contender) == (system, "training step", NO_ZEROS)
        ]
        torch = v.ratio_to_torch
        rows.append(
            [
                system,
                f"{duration(v.ours.median)} ({v.ours.threads})",
                f"{v.best.contender} ({v.best.threads})",
                duration(v.best.median),
                f"{v.ratio:.2f}x",
                f"{v.goals[0]:g}x",
                duration(v.torch.median) if v.torch else "-",
                f"{torch:.2f}x" if torch else "-",
                f"{v.goals[1]:g}x" if v.goals[1] else "",
                f"{cython[1] / cython[2]:.2f}x" if {1, 2} <= set(cython) else "-",
                f"{v.best.median / min(without):.2f}x" if without else "-",
            ]
        )
    return rows


def text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def circumstances(libraries: Mapping[str, str], roof: Mapping[int, Limits]) -> list[str]:
    """When, on what, with what."""
    from cpuinfo import get_cpu_info

    from fastae import backend

    cpu = get_cpu_info().get("brand_raw", platform.machine())
    described = backend.load("cython").module.describe()
    peaks = "; ".join(
        f"{r.threads} thread{'s' * (r.threads > 1)}: {r.gflops:.0f} GFLOP/s, {r.bandwidth:.0f} GB/s"
        + ("" if r.round_trip is None else f", a cache line there and back {r.round_trip:.0f} ns")
        for r in roof.values()
    )
    machine = f"{date.today()}, {cpu}, {os.cpu_count()} processors, {platform.system()}"
    versions = ", ".join(
        f"{PACKAGES[name][0]} {number}" + "".join(f" on {other}" for other in PACKAGES[name][1:])
        for name, number in libraries.items()
    )
    return [
        f"{machine}, Python {platform.python_version()}, NumPy {np.__version__}.",
        f"{versions}; cython: {described['instruction set']}, {described['compiler']}.",
        f"Limits measured in the same run (float32): {peaks}.",
    ]


NOTE = (
    "float32; medians of interleaved turns; in brackets the number of threads that was fastest, where fastae "
    "chooses how many of several to take. 'of peak': "
    "the FLOPs of the network as published a second, of what the processor reaches in multiply-adds. Most "
    "pixels of the images are zero: cython and numba pass over their terms, as over those that ReLU and "
    f"pooling have made zero. '{NO_ZEROS}' and 'ahead, no zero pixels' are of images that have none."
)


def way(trips: Sequence[float | None]) -> str:
    """How far apart the processors were before and after a system was measured; "" where there is one."""
    before, after = trips
    if before is None or after is None:
        return ""
    return (
        f"A cache line from one processor to another and back: {before:.0f} ns before these were measured, "
        f"{after:.0f} ns after."
    )


def report(run: Mapping[str, Any], results: Sequence[Measured], pictures: Sequence[str]) -> str:
    """The whole as Markdown."""
    roof = {int(n): Limits(**r) for n, r in run["limits"].items()}
    lines = ["# fastae beside the frameworks", "", *(f"- {c}" for c in run["circumstances"]), "", NOTE, ""]
    lines += [markdown(headlines(results)), ""]
    for picture in pictures:
        lines += [f"![{Path(picture).stem}]({picture})", ""]
    for title, rows in tables(results, roof):
        lines += [f"## {title}", "", markdown(rows), ""]
        if said := way(run["round_trips"][title.partition(",")[0]]):
            lines += [said, ""]
    lines += [f"- missing: {name}: {why}" for name, why in run["missing"].items()]
    lines += [f"- WRONG, not timed: {what}" for what in run["wrong"]]
    return "\n".join(lines).rstrip() + "\n"


def draw(results: Sequence[Measured], roof: Mapping[int, Limits], folder: Path) -> list[str]:
    """The picture of ratios and a roofline for every system; gives their names."""
    from matplotlib.figure import Figure

    from fastae.plots import COLOURS, roofline

    systems = list(dict.fromkeys(r.system for r in results))
    steps = [r for r in results if r.task == "training step"]
    names = list(dict.fromkeys(r.contender for r in steps))
    figure = Figure(
        figsize=(9, 1.2 + 0.16 * len(steps) / 2 + 0.2 * len(systems)), dpi=100, layout="constrained"
    )
    ax = figure.subplots()
    place, ticks = 0, []
    for system in systems:
        begin = place
        best = {n: [r.median for r in steps if (r.system, r.contender) == (system, n)] for n in names}
        for name, taken in best.items():
            if taken:
                turn, of = divmod(names.index(name), len(COLOURS))
                look = {"color": COLOURS[of], "hatch": HATCHES[turn], "edgecolor": "white"}
                ax.barh(place, min(taken), label=name, linewidth=0, **look)
                place += 1
        ticks.append((begin + place - 1) / 2)
        place += 1
    ax.set_yticks(ticks, systems)
    ax.set_xscale("log")
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set_xlabel("seconds of a training step at the best number of threads (logarithmic, median)")
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    ax.legend(once.values(), once.keys(), loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(folder / "peers.png")

    columns = 2
    lines = -(-len(systems) // columns)
    figure = Figure(figsize=(18, 4 * lines), dpi=70, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    one = roof[min(roof)]
    for system, ax in zip(systems, axes, strict=False):
        cost = contenders.problem(system).cost("float32", updates=1)
        points = [
            (r.contender, cost["flops"] / cost["bytes"], cost["flops"] / r.median / 1e9)
            for r in steps
            if (r.system, r.threads) == (system, one.threads)
        ]
        roofline(
            points,
            peak=one.gflops,
            bandwidth=one.bandwidth,
            ax=ax,
            title=f"{system}, a training step, one thread",
        )
    for ax in axes[len(systems) :]:
        ax.set_axis_off()
    figure.savefig(folder / "roofline.png")
    return ["peers.png", "roofline.png"]


def put_into(readme: Path, results: Sequence[Measured], run: Mapping[str, Any]) -> None:
    """Replace the section of the README that this run's output is."""
    before, found, rest = readme.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{readme}: expected the lines {BEGIN} and {END}")
    body = "\n\n".join([markdown(headlines(results)), " ".join([*run["circumstances"], NOTE])])
    readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write files where asked; 1 when a contender computed something else."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--systems", default=",".join(contenders.SYSTEMS), help="comma-separated (default: all)")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--threads", default=",".join(map(str, sorted({1, processors}))), help="(default: %(default)s)")
    add("--libraries", default=",".join(LIBRARIES), help="comma-separated (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=15.0,
        help="for the training steps of a system (default: %(default)s)",
    )
    add("--out", type=Path, help="folder for peers.json, peers.md and pictures")
    add("--readme", type=Path, help="the README whose section is to be replaced")
    options = parser.parse_args(arguments)
    systems, libraries = options.systems.split(","), options.libraries.split(",")
    for name, given, known in (("systems", systems, contenders.SYSTEMS), ("libraries", libraries, LIBRARIES)):
        if unknown := set(given) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, given {', '.join(sorted(unknown))}")
    try:
        threads = [int(t) for t in options.threads.split(",")]
    except ValueError:
        threads = []
    if not threads or min(threads) < 1 or not options.seconds > 0:
        parser.error("--threads, --seconds: expected numbers above 0")

    versions, missing = installed(libraries)
    missing["scikit-learn"] = MLP_CANNOT
    wrong: list[str] = []
    results: list[Measured] = []
    roof = {n: limits(n) for n in threads}
    trips: dict[str, list[float | None]] = {}
    processes = [Process(name, n) for name in versions for n in threads]
    try:
        for system in systems:
            measured, field, trips[system] = measure(system, processes, options.seconds)
            results += measured
            missing |= field.missing
            wrong += field.wrong
            for title, rows in tables(measured, roof):
                print(f"{title}\n{text(rows)}\n{way(trips[system])}\n", flush=True)
    finally:
        for process in processes:
            process.close()
    run = {
        "circumstances": circumstances(versions, roof),
        "limits": {n: asdict(r) for n, r in roof.items()},
        "round_trips": trips,
        "missing": missing,
        "wrong": wrong,
        "results": [asdict(r) for r in results],
    }
    print(text(headlines(results)))
    print("\n".join(["", *run["circumstances"], NOTE]))
    for name, why in missing.items():
        print(f"missing: {name}: {why}")
    for what in wrong:
        print(f"WRONG, not timed: {what}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "peers.json").write_text(json.dumps(run, indent=1) + "\n")
        pictures = draw(results, roof, options.out)
        (options.out / "peers.md").write_text(report(run, results, pictures))
    if options.readme:
        put_into(options.readme, results, run)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
