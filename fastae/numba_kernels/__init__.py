"""The kernels of the ``numba`` backend inside your own ``@njit`` code, without Python and without the GIL.

::

    @njit(cache=True, nogil=True)          numba_kernels.dense_forward(x, w, b, "relu", y)
    def yours(...): ──────────────────┐      │ while yours is compiled: types are compared with the table
        numba_kernels.dense_forward ──┘      └─> the body that the backend runs too, linked into yours

One function for each row of :mod:`fastae.kernels.table`, with the row's arguments by position in the order
stated there: inputs, saved tensors, constants, workspaces, states, outputs (``help`` of a function lists
them)::

    from numba import njit
    from fastae import numba_kernels

    @njit(cache=True, nogil=True)
    def layer(x, w, b, y):
        numba_kernels.dense_forward(x, w, b, "relu", y)

- Arrays are C-contiguous, float32 or float64, one dtype for the call (int64 for indices). Where they are
  not, compiling fails with a line that names the argument. Shapes are not compared: they must be as stated.
- An optional array may be None. An activation is its name, in quotes, or its code as an int.
- Outputs are overwritten, states updated, nothing is allocated, raised or returned. Nothing written may
  overlap anything else. Calls on separate arrays may run in several threads at once.
- Bits are those of the backend ``numba``, provided BLAS, which multiplies the matrices, runs on one thread
  as it does there: ``with numba_kernels.one_thread(): ...`` around the call from Python sees to it.

The body of a kernel is compiled on a machine once, as that of the backend, and kept beside fastae. With
``cache=True`` your function is kept as well, the kernels in it included: a second process compiles nothing.
Numba knows nothing of what is inside: when fastae is replaced by another version, delete your cache (its
``*.nbi`` files), or your function goes on with the kernels it was compiled with.

From Python the functions can be called too; `fastae.ops` checks what these do not. The kernels of the backend
``cython`` and trained models are in `fastae.numba_kernels.cython`, called in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastae.kernels.table import KERNELS, Kernel

# isort: split
from fastae.kernels import jitted  # an ImportError names the extra
from fastae.kernels.jitted_runtime import OPTIONS, REALS, one_thread

# isort: split
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastae.numba_kernels.calls import compare, document, from_python, listed, make, taught

__all__ = ["one_thread"]
__all__ += KERNELS


@intrinsic(prefer_literal=True)
def _nothing(typing, like, ndim):
    """An array of `like`'s dtype with all of its dims 0, which takes no memory."""
    signature = types.Array(like.dtype, ndim.literal_value, "C")(like, ndim)

    def generate(context, builder, signature, arguments):
        kind = signature.return_type
        result = context.make_array(kind)(context, builder)
        zero = context.get_constant(types.intp, 0)
        itemsize = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        populate_array(result, start, [zero] * kind.ndim, [itemsize] * kind.ndim, itemsize, meminfo=None)
        return result._getvalue()

    return signature, generate


def _choose(row: Kernel, given: Sequence[Any]) -> Callable[..., None]:
    """Return what a call with arguments of these types is compiled to."""
    first = next(a.name for a in row.arrays if a.kind == "real")
    real, passed = compare(row, given, lambda a: f"nothing({first}, {len(a.dims)})")
    names = {
        "body": jitted._body(row.name, next(char for char, known in REALS.items() if known == real)),
        "nothing": _nothing,
        "float64": types.float64,
        "int64": types.int64,
    }
    return make(row.name, f"def {row.name}({listed(row)}):\n    body({', '.join(passed)}, 0, 1)\n", names)


def _function(row: Kernel) -> Callable[..., None]:
    """Make the function of a row."""
    run = partial(from_python, jitted, row)
    return taught(row.name, listed(row), partial(_choose, row), run, document(row), __name__, OPTIONS)


globals().update({name: _function(row) for name, row in KERNELS.items()})
