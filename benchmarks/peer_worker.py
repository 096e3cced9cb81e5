"""A process of `benchmarks.peers`: one library on so many threads, which runs what it is told.

A line of JSON in, a line of JSON out. Each library has processes of its own, so that the threads, denormal
flags and allocators of one are not those of another, and rests while the others have their turns.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np

#: Name of cython where no number of an image is zero.
NO_ZEROS = "cython, no zero pixels"

Contenders = Iterator[tuple[str, Callable[[], Any]]]


def fastae_contenders(problem: Any, threads: int, exact: bool) -> Contenders:
    """Each backend; what is run is the backend's executor, and the Trainer's call for inference."""
    from fastae import Trainer, backend

    from .contenders import Fastae
    from .machine import unavailable

    class Ours(Fastae):
        def __init__(self, name: str) -> None:
            module = backend.load(name).module
            # What a user gets who does not say how many: at most as many as the environment grants, which
            # has also set the number of NumPy's BLAS.
            team = threads if threads == 1 or (exact and name in ("cython", "numba")) else None
            super().__init__(problem, module, "float32", team)
            self.trainer = Trainer.from_recipe(problem.net, backend=name, dtype="float32", n_threads=team)
            self.trainer.set_weights(problem.weights)
            self.infer = self.trainer.reconstruct

    class WithoutZeros(Ours):
        """Checked on the images, then trained on such as have no zeros, which a product could pass over."""

        def losses(self, updates: int) -> np.ndarray:
            found = super().losses(updates)
            noise = np.random.default_rng(12).uniform(0.05, 1, self.images.shape).astype(self.images.dtype)
            self.images = np.where(self.images == 0, noise, self.images)
            return found

    for name in ("cython", "numba", "numpy", "scalar"):
        if name not in unavailable():
            yield name, lambda name=name: Ours(name)
    if "cython" not in unavailable():
        yield NO_ZEROS, lambda: WithoutZeros("cython")


def torch_contenders(problem: Any, threads: int, exact: bool) -> Contenders:
    """PyTorch eager with its fused optimiser, and compiled."""
    from .contenders import TorchEager
    from .summary import TORCH, TORCH_COMPILED

    for name, compiled in ((TORCH, False), (TORCH_COMPILED, True)):
        yield name, lambda c=compiled: TorchEager(problem, "float32", compiled=c, n_threads=threads)


def jax_contenders(problem: Any, threads: int, exact: bool) -> Contenders:
    """JAX a step at a time, and as a scan."""
    from .contenders_jax import Jax

    for name, scan in (("JAX jit", False), ("JAX scan", True)):
        yield name, lambda scan=scan: Jax(problem, "float32", scan=scan)


def keras_contenders(problem: Any, threads: int, exact: bool) -> Contenders:
    """Keras a batch at a time, and as the fit of an epoch."""
    from .contenders_keras import Keras

    for name, fit in (("Keras train_on_batch", False), ("Keras fit", True)):
        yield name, lambda fit=fit: Keras(problem, "float32", fit=fit)


def keras_torch_contenders(problem: Any, threads: int, exact: bool) -> Contenders:
    """Keras on PyTorch, where that is its fastest backend: for images. A fit takes as long as its batches."""
    import torch

    from .contenders import IMAGE_SYSTEMS
    from .contenders_keras import Keras

    torch.set_num_threads(threads)
    if problem.name in IMAGE_SYSTEMS:
        yield "Keras on PyTorch", lambda: Keras(problem, "float32", fit=False)


LIBRARIES = {
    "fastae": fastae_contenders,
    "torch": torch_contenders,
    "jax": jax_contenders,
    "keras": keras_contenders,
    "keras-torch": keras_torch_contenders,
}

#: Contenders that only ever run all updates of an epoch in one call.
WHOLE = ("JAX scan", "Keras fit")
#: Contenders whose inference is that of another of their library.
NO_INFERENCE = ("PyTorch compiled", "JAX scan", "Keras fit", NO_ZEROS)
#: Contenders that take part only where they are named: a step of it takes seconds or minutes.
SLOW = ("scalar",)
#: Libraries that compute with XLA.
OF_XLA = ("jax", "keras")


class Worker:
    """Contenders by name, and what they are asked for."""

    def __init__(self, library: str, threads: int) -> None:
        self.library, self.threads = library, threads
        self.contenders: dict[str, Any] = {}

    def make(
        self, system: str, rows: int, names: list[str] | None = None, exact: bool = False
    ) -> dict[str, Any]:
        """Make the contenders of a system; first losses, outputs of so many rows, or why there are none.

        Parameters
        ----------
        system : str
            Name of a problem.
        rows : int
            So many are reconstructed.
        names : list of str, optional
            Of the contenders; all but SLOW when not given.
        exact : bool
            Whether fastae takes all threads, too, where it would choose how many.
        """
        from .contenders import CHECKED, problem

        self.contenders.clear()
        found: dict[str, Any] = {}
        one = problem(system)
        self.x = np.ascontiguousarray(one.images, "float32").reshape(-1, *one.net.input_shape)
        for name, make in LIBRARIES[self.library](one, self.threads, exact):
            if name in SLOW if names is None else name not in names:
                continue
            try:
                contender = make()
                said: dict[str, Any] = {"outputs": None}
                if name not in NO_INFERENCE:
                    said["outputs"] = contender.infer(self.x[:rows]).reshape(rows, -1).tolist()
                said["losses"] = contender.losses(1 if name in SLOW else CHECKED).tolist()
            except Exception as error:  # told, and shown as missing
                found[name] = {"missing": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
                continue
            self.contenders[name] = contender
            found[name] = said
        return found

    def train(self, name: str, epoch: int, updates: int) -> float:
        """Seconds of so many updates in one turn, no more than an epoch in a call."""
        run = self.contenders[name].train
        start = perf_counter()
        for first in range(0, updates, epoch):
            run(min(epoch, updates - first))
        return perf_counter() - start

    def infer(self, name: str, rows: int, times: int) -> float:
        """Seconds of so many calls."""
        run, x = self.contenders[name].infer, self.x[:rows]
        start = perf_counter()
        for _ in range(times):
            run(x)
        return perf_counter() - start


def main() -> None:
    """Answer until the input ends."""
    library, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    if library in OF_XLA:
        # XLA makes as many threads as there are processors when it starts.
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(processors)[:threads])
        import jax

        jax.block_until_ready(jax.numpy.zeros(1) + 1)
        os.sched_setaffinity(0, processors)
    worker = Worker(library, threads)
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        try:
            answer = {"answer": getattr(worker, task)(*arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
