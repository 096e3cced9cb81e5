"""A backend: the kernels of ``numpy``, each with a count around it."""

import sys
import time

from fastae.executor import PythonExecutor
from fastae.kernels import vector
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array
from fastae_counting.counts import COUNTS, Count

BORROWS = ("numpy",)  # without this line the kernels would be refused: their figures would be another's
PADDED = vector.PADDED
FUSED_UPDATE = vector.FUSED_UPDATE
prepare = vector.prepare

_ACTIVATIONS = {activation.code: name for name, activation in ACTIVATIONS.items()}


def describe():
    """What ``fastae.show_versions()`` prints of this backend."""
    return vector.describe() | {"counts": "calls, seconds, FLOPs"}


def _flops(row, arguments):
    """Count the operations of a call: the row knows its formula, the arrays have the dims."""
    dims, constants = {}, {}
    for argument, value in zip(row.arguments, arguments, strict=True):
        if not isinstance(argument, Array):
            constants[argument.name] = _ACTIVATIONS[value] if argument.kind == "activation" else value
        elif value.size or not argument.optional:
            dims.update(zip(argument.dims, value.shape, strict=True))
    return row.count_flops(dims, constants)


def _counted(row):
    kernel = getattr(vector, row.name)

    def call(*arguments):
        start = time.perf_counter()
        kernel(*arguments)
        stop = time.perf_counter()
        count = COUNTS.setdefault(row.name, Count())
        count.calls += 1
        count.seconds += stop - start
        count.flops += _flops(row, arguments)

    return call


globals().update({name: _counted(row) for name, row in KERNELS.items()})


class Executor(PythonExecutor):
    """Runs a Program with the kernels of this module."""

    kernels = sys.modules[__name__]
