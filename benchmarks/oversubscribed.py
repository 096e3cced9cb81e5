"""A machine that has other work: what a training step costs beside busy processes, and what is fair.

::

    python -m benchmarks.oversubscribed [--systems NAME,...] [--backends NAME,...] [--seconds S]
                                        [--rounds N] [--out FOLDER]

Two busy processes for each processor take what they can get, and a step is measured alone and beside them:
seconds of one update, over stretches so long that the scheduler has dealt out its time many times over. Each
stretch has an executor of its own, which knows nothing of the others.

What is fair: a scheduler that treats all threads alike gives each of H busy processes and of a team's T
threads P / (H + T) of a processor, where alone a thread has min(1, P / T). So the step of a team takes
min(1, P / T) (H + T) / P times as long: with 4 on 2 processors 2.5 times for one thread, 3 times for two.
Where fastae chooses the threads, what it chose is not asked for: fair is the least fair time of any number.
More than that is lost: to threads that wait for each other while neither has a processor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from fastae import backend
from fastae.executor import processors_present
from fastae.plots import duration

from . import contenders
from .peers import circumstances, installed, markdown, text
from .probe import limits

SYSTEMS = ("autoencnet", "quark_mlp", "deep_mlp")
BUSY_PER_PROCESSOR = 2
THREADS = (1, 2, None)  # None: as fastae chooses
#: Processors that others may have while a step is alone, before a run is called disturbed.
MOST_FOREIGN = 0.15

#: What a busy process does, once it has said that it has begun.
BUSY = "print(flush=True)\nwhile True: pass"


@dataclass(frozen=True)
class Measured:
    """Seconds of an update, and processors that the process had meanwhile, alone and beside the others.

    ``foreign`` is how many processors other processes had while it was to be alone; None where nobody tells.
    """

    system: str
    backend: str
    threads: int | None
    alone: float
    beside: float
    processors_alone: float
    processors_beside: float
    foreign: float | None = None

    @property
    def slower(self) -> float:
        """How many times as long it takes beside the others."""
        return self.beside / self.alone


def fair_share(processors: int, busy: int, threads: int) -> float:
    """How many times as long a team's step may take beside so many busy processes.

    Parameters
    ----------
    processors : int
        Of the machine.
    busy : int
        Processes of one thread that never rest.
    threads : int
        Of the team, which share its work evenly.
    """
    return min(1.0, processors / threads) * (busy + threads) / processors


def fair_time(results: Sequence[Measured], of: Measured, processors: int, busy: int) -> float:
    """Seconds that a step may take beside the others; of any number of threads where fastae chooses it."""
    return min(
        r.alone * fair_share(processors, busy, r.threads)
        for r in results
        if (r.system, r.backend) == (of.system, of.backend)
        and r.threads is not None
        and of.threads in (r.threads, None)
    )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that never rest, ended at the end."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"a busy process ended with {process.wait()}")
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def machine_seconds() -> float:
    """Processor seconds that all processes together have had; NaN where the system does not tell."""
    try:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4]  # user, nice, system
    except OSError:
        return math.nan
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def stretch(system: str, name: str, threads: int | None, seconds: float) -> tuple[float, float, float]:
    """Seconds of an update over so many seconds, and processors that this process and all others had.

    Losses are compared with the reference first.
    """
    problem = contenders.problem(system)
    one = contenders.Fastae(problem, backend.load(name).module, "float32", threads)
    problem.check(one.losses(contenders.CHECKED), "float32", f"{name} on {threads} threads")
    one.train()
    updates, begin, had, machine = 0, perf_counter(), process_time(), machine_seconds()
    while (taken := perf_counter() - begin) < seconds or not updates:
        one.train()
        updates += contenders.UPDATES
    own, everyone = process_time() - had, machine_seconds() - machine
    return taken / updates, own / taken, (everyone - own) / taken


def measure(
    systems: Sequence[str], names: Sequence[str], busy: int, seconds: float, rounds: int
) -> list[Measured]:
    """Medians of several rounds, each alone first and then beside the others."""
    keys = [(system, name, n) for system in systems for name in names for n in THREADS]
    found: dict[bool, dict[tuple, list[tuple[float, float, float]]]] = {
        beside: {key: [] for key in keys} for beside in (False, True)
    }
    for _ in range(rounds):
        for beside, times in found.items():
            with busy_processes(busy if beside else 0):
                for key in keys:
                    times[key].append(stretch(*key, seconds))
    results = []
    for key in keys:
        (alone, had_alone, foreign), (beside, had_beside, _) = (
            [median(values) for values in zip(*times[key], strict=True)] for times in found.values()
        )
        known = None if math.isnan(foreign) else foreign
        results.append(Measured(*key, alone, beside, had_alone, had_beside, known))
    return results


def table(results: Sequence[Measured], processors: int, busy: int) -> list[list[str]]:
    """A row for each system, backend and number of threads."""
    rows = [
        [
            "training step",
            "n_threads",
            "alone",
            "beside",
            "slower",
            "fair",
            "measured / fair",
            "processors alone",
            "beside",
        ]
    ]
    for r in results:
        fair = fair_time(results, r, processors, busy)
        rows.append(
            [
                f"{r.system}, {r.backend}",
                str(r.threads),
                duration(r.alone),
                duration(r.beside),
                f"{r.slower:.2f}x",
                duration(fair),
                f"{r.beside / fair:.2f}",
                f"{r.processors_alone:.2f}",
                f"{r.processors_beside:.2f}",
            ]
        )
    return rows


def worst(results: Sequence[Measured], processors: int, busy: int) -> str:
    """The row that is farthest beyond what is fair, in words."""
    ratios = {r: r.beside / fair_time(results, r, processors, busy) for r in results}
    most = max(results, key=lambda r: ratios[r])
    return (
        f"At most {ratios[most]:.2f} times what is fair: {most.system} by {most.backend}, "
        f"n_threads={most.threads}."
    )


def disturbed(results: Sequence[Measured]) -> str:
    """Say so where others computed while a step was to be alone; else empty."""
    most = max((r.foreign for r in results if r.foreign is not None), default=0.0)
    if most < MOST_FOREIGN:
        return ""
    return (
        f"The machine was BUSY: others had {most:.2f} processors while a step was to be alone. Measure again."
    )


def report(results: Sequence[Measured], processors: int, busy: int, said: Sequence[str]) -> str:
    """The whole as Markdown."""
    lines = ["# A step on a machine that has other work", "", *(f"- {line}" for line in said), ""]
    lines += [explained(processors, busy), "", markdown(table(results, processors, busy)), ""]
    lines += [worst(results, processors, busy), disturbed(results)]
    return "\n".join(lines).rstrip() + "\n"


def explained(processors: int, busy: int) -> str:
    """What was done, and what is fair."""
    shares = ", ".join(
        f"{n} thread{'s' * (n > 1)} {fair_share(processors, busy, n):.3g} times"
        for n in THREADS
        if n is not None
    )
    return (
        f"float32, seconds of an update; beside: with {busy} busy processes on {processors} "
        f"processor{'s' * (processors > 1)}. Fair is as long as alone times what a scheduler that treats all "
        f"threads alike leaves: {shares}; for n_threads=None the least of these times. Processors: the "
        "process's own processor seconds a second."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write files where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.oversubscribed", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--systems", default=",".join(SYSTEMS), help="comma-separated (default: %(default)s)")
    add("--backends", default="cython", help="cython, numba or both (default: %(default)s)")
    add("--seconds", type=float, default=1.0, help="of a stretch (default: %(default)s)")
    add("--rounds", type=int, default=3, help="(default: %(default)s)")
    add("--out", type=Path, help="folder for oversubscribed.json and oversubscribed.md")
    options = parser.parse_args(arguments)
    systems, names = options.systems.split(","), options.backends.split(",")
    for name, given, known in (
        ("systems", systems, contenders.SYSTEMS),
        ("backends", names, ("cython", "numba")),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"--{name}: expected some of {', '.join(known)}, given {', '.join(sorted(unknown))}")
    if not options.seconds > 0 or options.rounds < 1:
        parser.error("--seconds, --rounds: expected numbers above 0")
    processors = processors_present()
    busy = BUSY_PER_PROCESSOR * processors
    said = circumstances(installed(["fastae"])[0], {n: limits(n) for n in sorted({1, processors})})
    results = measure(systems, names, busy, options.seconds, options.rounds)
    run = {
        "circumstances": said,
        "processors": processors,
        "busy": busy,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "results": [
            {**asdict(r), "slower": r.slower, "fair": fair_time(results, r, processors, busy)}
            for r in results
        ],
    }
    print(text(table(results, processors, busy)))
    print("\n".join(["", worst(results, processors, busy), explained(processors, busy), *said]))
    if warning := disturbed(results):
        print(warning)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "oversubscribed.json").write_text(json.dumps(run, indent=1) + "\n")
        (options.out / "oversubscribed.md").write_text(report(results, processors, busy, said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
