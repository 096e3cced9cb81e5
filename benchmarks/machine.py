"""What this machine and installation have: backends, one BLAS thread, and the rate of a large product."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from fastae import backend

from . import BACKENDS, DTYPES
from .summary import TORCH


@cache
def unavailable() -> dict[str, str]:
    """Contenders that cannot run here, each with its reason."""
    reasons = {}
    for name in BACKENDS:
        try:
            backend.load(name)
        except ImportError as error:  # an incomplete backend is an error, not a missing one
            reasons[name] = str(error).splitlines()[0]
    if find_spec("torch") is None:
        reasons[TORCH] = "torch is not installed"
    return reasons


def one_thread() -> threadpool_limits:
    """Hold the BLAS and OpenMP libraries to one thread, once everything that brings one is loaded."""
    if TORCH not in unavailable():
        import torch

        torch.set_num_threads(1)
    return threadpool_limits(1)


def instruction_set(module: object) -> str:
    """What a backend says it computes with."""
    return module.describe().get("instruction set", "-")


@cache
def matmul_rates(size: int = 512, rounds: int = 40) -> dict[str, float]:
    """GFLOP/s of NumPy's matmul on one thread: what large products reach here, dtype by dtype."""
    rates = {}
    with one_thread():
        for dtype in DTYPES:
            a = np.random.default_rng(0).uniform(-1, 1, (size, size)).astype(dtype)
            out = np.empty_like(a)
            best = np.inf
            for _ in range(rounds):
                start = perf_counter()
                np.matmul(a, a, out=out)
                best = min(best, perf_counter() - start)
            rates[dtype] = 2 * size**3 / best / 1e9
    return rates


def info() -> dict[str, Any]:
    """What the summary and the report need to know beside the records."""
    described = {name: backend.load(name).module.describe() for name in BACKENDS if name not in unavailable()}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"matmul": matmul_rates(), "missing": unavailable(), "backends": described, "load": load}


#: What is imported in a fresh process, by label; fastae leaves most of itself to the first use.
IMPORTS = {
    "numpy": "import numpy",
    "numpy, fastae": "import numpy, fastae",
    "numpy, fastae.Trainer": "import numpy; from fastae import Trainer, models",
}


def fresh_python(*arguments: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout
