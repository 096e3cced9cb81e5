"""The limits of this machine: peak rate of fused multiply-adds, and bandwidth of memory."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

SOURCE = Path(__file__).with_name("probe.c")
ELEMENTS = 8 << 20  # of each of three arrays, 32 MiB: more than a cache holds


@dataclass(frozen=True)
class Limits:
    """GFLOP/s in float32, and GB/s of memory, of so many threads."""

    threads: int
    gflops: float
    bandwidth: float


@cache
def library() -> ctypes.CDLL:
    """Compile probe.c for the processor at hand; RuntimeError where no compiler does."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "probe.so"
        command = [compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            subprocess.run([*command, str(SOURCE), "-o", str(file)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"the probe needs a C compiler; {compiler}: {error}") from None
        made = ctypes.CDLL(str(file))
    real = np.ctypeslib.ndpointer("float32", flags="C_CONTIGUOUS")
    made.fma_float.restype = made.triad.restype = ctypes.c_double
    made.fma_float.argtypes = [ctypes.c_long, real]
    made.triad.argtypes = [ctypes.c_size_t, ctypes.c_float, real, real, real]
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
    )
