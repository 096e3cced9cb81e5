"""The limits of this machine: peak rate of fused multiply-adds, bandwidth of memory, a cache line's way."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

SOURCE = Path(__file__).with_name("probe.c")
ELEMENTS = 8 << 20  # of each of three arrays, 32 MiB: more than a cache holds


@dataclass(frozen=True)
class Limits:
    """GFLOP/s in float32, and GB/s of memory, of so many threads.

    ``round_trip`` is how many nanoseconds a cache line takes from one processor to another and back: what it
    costs at least that two threads wait for each other once. None for one thread, and for one processor.
    """

    threads: int
    gflops: float
    bandwidth: float
    round_trip: float | None = None


@cache
def library() -> ctypes.CDLL:
    """Compile probe.c for the processor at hand; RuntimeError where no compiler does."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "probe.so"
        # Tuned for Zen, GCC would rather multiply and add apart.
        tune = ["-mtune=generic"] if platform.machine().lower() in ("x86_64", "amd64") else []
        command = [compiler, "-O3", "-march=native", *tune, "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            subprocess.run([*command, str(SOURCE), "-o", str(file)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"the probe needs a C compiler; {compiler}: {error}") from None
        made = ctypes.CDLL(str(file))
    real = np.ctypeslib.ndpointer("float32", flags="C_CONTIGUOUS")
    made.fma_float.restype = made.triad.restype = ctypes.c_double
    made.fma_float.argtypes = [ctypes.c_long, real]
    made.triad.argtypes = [ctypes.c_size_t, ctypes.c_float, real, real, real]
    made.pass_on.restype = None
    made.pass_on.argtypes = [ctypes.POINTER(ctypes.c_long), ctypes.c_long, ctypes.c_long]
    return made


def _rate(work: Callable[[int], float], threads: int, rounds: int) -> float:
    """Most work a second that so many threads did together in one round."""
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
        for _ in range(rounds):
            start = perf_counter()
            done = sum(pool.map(work, range(threads)))
            best = max(best, done / (perf_counter() - start))
    return best / 1e9


def limits(threads: int, rounds: int = 15) -> Limits:
    """Measure what so many threads reach, the best of several rounds."""
    lib = library()
    sums = [np.empty(16, "float32") for _ in range(threads)]
    share = ELEMENTS // threads
    arrays = [[np.ones(share, "float32") for _ in range(3)] for _ in range(threads)]
    return Limits(
        threads,
        _rate(lambda t: lib.fma_float(4_000_000, sums[t]), threads, rounds),
        _rate(lambda t: lib.triad(share, 0.5, *arrays[t]), threads, rounds),
        round_trip() if threads > 1 else None,
    )


def round_trip(trips: int = 10_000, stretches: int = 21) -> float | None:
    """Nanoseconds of a cache line between the first two processors this process may use, there and back.

    Parameters
    ----------
    trips : int
        In a stretch, of which the mean is taken.
    stretches : int
        Of which the median is taken. A virtual machine's processors can be moved nearer and farther by its
        host at any time, so one who wants to know what a figure was measured with asks before and after.

    Returns
    -------
    float or None
        None where there is one processor.
    """
    pinned = hasattr(os, "sched_setaffinity")
    processors = sorted(os.sched_getaffinity(0)) if pinned else list(range(os.cpu_count() or 1))
    if len(processors) < 2:
        return None
    lib = library()
    line = (ctypes.c_long * 64)()  # so long that nothing else lies in the line of its middle
    count = ctypes.pointer(ctypes.c_long.from_buffer(line, 32 * ctypes.sizeof(ctypes.c_long)))

    def player(which: int) -> list[float]:
        if pinned:
            os.sched_setaffinity(0, processors[which : which + 1])  # this thread's, which ends with the pool
        taken = []
        for stretch in range(stretches + 1):
            start = perf_counter()
            lib.pass_on(count, 2 * trips * stretch + which, trips)
            taken.append((perf_counter() - start) / trips * 1e9)
        return taken[1:]  # in the first they also waited for the other to begin

    with ThreadPoolExecutor(2) as pool:
        first, _ = pool.map(player, range(2))
    return median(first)
