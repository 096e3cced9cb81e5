"""Every kernel in Numba, and the epoch that runs a Program without Python.

::

    body _dense_forward(x, w, b, activation, y, part, parts)
      ├── array form        dense_forward(x, w, b, activation, y)          called by people
      └── instruction form  dense_forward_<hash>(arena, operands, part, parts)
                                │  its address, in a vector with one place for each row of the table
                            _run_batches: gather, every instruction, the update; one call an epoch

Both forms are generated from the row of ``table.py`` and compiled when they are first asked for, by
kernel and dtype, with explicit signatures; Numba keeps them on disk. No network is ever compiled.

A body computes the share of its outputs that falls to ``part`` of ``parts``. Sums are never split and
products are cut into the same blocks for any number of parts, so their bits do not depend on it.
"""

from __future__ import annotations

import hashlib
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastae.kernels.table import KERNELS, Array, Kernel

try:
    import numba
    import scipy.linalg.cython_blas  # noqa: F401  (Numba finds its BLAS there)
    from llvmlite import ir
    from numba import carray, cfunc, njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic, overload
    from threadpoolctl import ThreadpoolController
except ImportError as error:
    raise ImportError(
        f'the numba backend needs {error.name or "numba"}: pip install "fastae[numba]"'
    ) from error

if TYPE_CHECKING:
    from fastae.program import Program, Routine, Slot

PADDED = False
FUSED_UPDATE = False

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_REALS = {"f": types.float32, "d": types.float64}

# Products of fewer multiply-adds than this are one block, and so one thread's.
_GRAIN = 1 << 19
_MOST_BLOCKS = 8
_NARROWEST = 64

_SPINS = 4000  # looks at a barrier, some microseconds, before the thread gives up its core


def prepare(array: np.ndarray) -> np.ndarray:
    """Numba kernels take the array itself."""
    return array


def describe() -> dict[str, str]:
    """What compiles the kernels of this backend, and for what."""
    from llvmlite import binding

    return {
        "numba": numba.__version__,
        "compiler": "LLVM " + ".".join(map(str, binding.llvm_version_info)),
        "instruction set": binding.get_host_cpu_name(),
        "cache": "on disk" if _cache_works() else "no writable folder",
    }


@cache
def _cache_works() -> bool:
    """Whether there is a folder to keep compiled code in."""
    try:
        njit(cache=True)(_total.py_func)  # looks for the folder, compiles nothing
    except RuntimeError:
        return False
    return True


# --- what Numba has no words for -----------------------------------------------------------------


@intrinsic
def _at(typing, pointer, offset, dtype):
    """``(dtype *)(pointer + offset)``."""
    signature = types.CPointer(dtype.dtype)(pointer, offset, dtype)

    def generate(context, builder, signature, arguments):
        moved = builder.gep(arguments[0], [arguments[1]])
        return builder.bitcast(moved, context.get_value_type(signature.return_type))

    return signature, generate


def _data(context, builder, type_, value):
    return context.make_array(type_)(context, builder, value).data


@intrinsic
def _gemm(typing, m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc):
    """c[m, n] = a b, either factor transposed where its flag is set; rows lie lda, ldb, ldc apart.

    The routine behind ``np.dot``, which itself copies a block of columns before it multiplies.
    """
    signature = types.void(m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc)

    def generate(context, builder, signature, arguments):
        m, n, k, a, lda, a_turned, b, ldb, b_turned, c, ldc = arguments
        real, char = signature.args[9].dtype, ir.IntType(8)
        size, pointer = context.get_value_type(types.intp), cgutils.voidptr_t

        def number(value):
            return builder.bitcast(
                cgutils.alloca_once_value(builder, context.get_constant(real, value)), pointer
            )

        def start(place, value):
            return builder.bitcast(_data(context, builder, signature.args[place], value), pointer)

        def letter(turned):
            return builder.select(
                cgutils.is_not_null(builder, turned), ir.Constant(char, ord("t")), ir.Constant(char, ord("n"))
            )

        routine = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(
                ir.IntType(32),
                [char] * 3 + [size] * 3 + [pointer] * 2 + [size, pointer, size, pointer, pointer, size],
            ),
            "numba_xxgemm",
        )
        kind = ir.Constant(char, ord("s" if real == types.float32 else "d"))
        # BLAS counts along columns: it is given the transposed product, c^T = b^T a^T.
        shape_and_factors = (n, m, k, number(1.0), start(6, b), ldb, start(3, a), lda)
        builder.call(
            routine,
            (kind, letter(b_turned), letter(a_turned), *shape_and_factors, number(0.0), start(9, c), ldc),
        )
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _call(typing, address, arena, code, line, part, parts):
    """Call the instruction form at an address with a line of the code."""
    signature = types.void(address, arena, code, line, part, parts)

    def generate(context, builder, signature, arguments):
        address, arena, code, line, part, parts = arguments
        size, pointer = ir.IntType(64), cgutils.voidptr_t
        width = context.make_array(signature.args[2])(context, builder, code).shape
        first = builder.add(builder.mul(line, builder.extract_value(width, 1)), ir.Constant(size, 2))
        operands = builder.gep(_data(context, builder, signature.args[2], code), [first])
        form = ir.FunctionType(ir.VoidType(), [pointer, pointer, size, size])
        builder.call(
            builder.inttoptr(address, form.as_pointer()),
            (
                builder.bitcast(_data(context, builder, signature.args[1], arena), pointer),
                builder.bitcast(operands, pointer),
                part,
                parts,
            ),
        )
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _pick(typing, condition, a, b):
    """``a if condition else b`` without a branch, which could keep a loop from becoming vector code."""
    signature = a(condition, a, b)

    def generate(context, builder, signature, arguments):
        condition = context.cast(builder, arguments[0], signature.args[0], types.boolean)
        return builder.select(condition, arguments[1], arguments[2])

    return signature, generate


@intrinsic
def _fetch_add(typing, array, place, value):
    """Add to ``array[place]`` atomically and return what was there."""
    signature = types.int64(array, place, value)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(_data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        return builder.atomic_rmw("add", spot, arguments[2], "seq_cst")

    return signature, generate


@intrinsic
def _load(typing, array, place):
    """Read ``array[place]`` atomically."""
    signature = types.int64(array, place)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(_data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        return builder.load_atomic(spot, "seq_cst", 8)

    return signature, generate


@intrinsic
def _store(typing, array, place, value):
    """Write ``array[place]`` atomically."""
    signature = types.void(array, place, value)

    def generate(context, builder, signature, arguments):
        spot = builder.gep(_data(context, builder, signature.args[0], arguments[0]), [arguments[1]])
        builder.store_atomic(arguments[2], spot, "seq_cst", 8)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _yield_core(typing):
    """Let another thread have this core."""
    signature = types.void()

    def generate(context, builder, signature, arguments):
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        form = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, form, name), ())
        return context.get_dummy_value()

    return signature, generate


@njit(**_OPTIONS)
def _meet(state, parts):
    """Barrier: ``state[0]`` threads have arrived, ``state[8]`` counts the meetings."""
    if parts == 1:
        return
    meeting = _load(state, 8)
    if _fetch_add(state, 0, 1) == parts - 1:
        _store(state, 0, 0)
        _store(state, 8, meeting + 1)
        return
    looks = 0
    while _load(state, 8) == meeting:
        looks += 1
        if looks > _SPINS:
            _yield_core()


# --- exponentials --------------------------------------------------------------------------------
#
# exp(z) = 2^n exp(r) with z = n log 2 + r, |r| <= log(2)/2, and exp(r) - 1 by its Taylor series: a
# form without a branch, which LLVM turns into vector code (a call of libm's exp it does not).


@intrinsic
def _power_of_two(typing, shifted):
    """2^n, where n is what the lowest bits of the mantissa hold."""
    signature = shifted(shifted)

    def generate(context, builder, signature, arguments):
        real = context.get_value_type(signature.return_type)
        integer, mantissa, bias = (
            (ir.IntType(32), 23, 127)
            if signature.return_type == types.float32
            else (ir.IntType(64), 52, 1023)
        )
        n = builder.add(builder.bitcast(arguments[0], integer), ir.Constant(integer, bias))
        return builder.bitcast(builder.shl(n, ir.Constant(integer, mantissa)), real)

    return signature, generate


def _exp_parts(z):
    """For z <= 0, not too small: 2^n and exp(r) - 1."""


@overload(_exp_parts)
def _exp_parts_of(z):
    # `shift` rounds what it is added to and leaves the integer in the lowest bits. `high` is log 2 cut
    # to so few bits that n high is exact.
    single = z == types.float32
    real: Any = np.float32 if single else np.float64
    terms = 7 if single else 13
    shift = real(1.5 * 2**23 if single else 1.5 * 2**52)
    high = real(0.693359375 if single else float.fromhex("0x1.62e42feep-1"))
    low = real(-2.12194440054690583e-4 if single else 1.90821492927058770e-10)
    inverse = real(1 / math.log(2))
    series = tuple(real(1 / math.factorial(i)) for i in range(terms, 0, -1))

    def implementation(z):
        shifted = z * inverse + shift
        n = shifted - shift
        r = (z - n * high) - n * low
        p = series[0]
        for i in range(1, len(series)):
            p = p * r + series[i]
        return _power_of_two(shifted), p * r

    return implementation


def _lowest(x):
    """Where exp of it is still a normal number."""


@overload(_lowest)
def _lowest_of(x):
    value = np.float32(-87.0) if x == types.float32 else np.float64(-708.0)
    return lambda x: value


# --- one row -------------------------------------------------------------------------------------
#
# Numba takes a bare 1.0 for double precision: constants are made in the type of the array.


@njit(**_OPTIONS)
def _activate(y, activation):
    """y = f(y) for a row: in place, as LLVM makes no vector code where an input may be the output."""
    zero, one, two = y.dtype.type(0), y.dtype.type(1), y.dtype.type(2)
    if activation == 1:
        for j in range(y.size):
            y[j] = _pick(y[j] <= zero, zero, y[j])  # NaN stays NaN
    elif activation == 2:
        lowest = _lowest(one)
        for j in range(y.size):
            v = y[j]
            z = -abs(v)
            scale, p = _exp_parts(_pick(z < lowest, lowest, z))
            e = _pick(z < lowest, zero, scale + scale * p)
            y[j] = _pick(v < zero, e, one) / (one + e)
    elif activation == 3:
        lowest = _lowest(one)
        for j in range(y.size):
            v = y[j]
            z = -two * abs(v)
            scale, p = _exp_parts(_pick(z < lowest, lowest, z))
            e1 = scale * p + (scale - one)  # exp(z) - 1, precise near 0 too
            t = -e1 / (two + e1)
            y[j] = _pick(v < zero, -t, t)


@njit(**_OPTIONS)
def _differentiate(dx, y, activation):
    """dx = dx f'(y) for a row."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if activation == 1:
        for j in range(y.size):
            dx[j] = _pick(y[j] > zero, dx[j], zero)
    elif activation == 2:
        for j in range(y.size):
            dx[j] *= y[j] * (one - y[j])
    elif activation == 3:
        for j in range(y.size):
            dx[j] *= one - y[j] * y[j]


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
def _error_row(y, target, error, factor):
    """error = factor (y - target); return sum (y - target)^2, added in the order vectors like."""
    total = y.dtype.type(0)
    for j in range(y.size):
        e = y[j] - target[j]
        total += e * e
        error[j] = factor * e
    return total


@njit(**_OPTIONS)
def _add(total, x):
    """total += x for a row."""
    for j in range(total.size):
        total[j] += x[j]


@njit(**_OPTIONS)
def _copy(x, y):
    """y = x for a row."""
    for j in range(y.size):
        y[j] = x[j]


@njit(**_OPTIONS)
def _descend(w, g, rate):
    """w -= rate g for a row."""
    for j in range(w.size):
        w[j] -= rate * g[j]


# --- shares of the outputs -----------------------------------------------------------------------


@njit(**_OPTIONS)
def _share(size, part, parts):
    """Range of a part."""
    return size * part // parts, size * (part + 1) // parts


@njit(**_OPTIONS)
def _count_blocks(size, work):
    """Number of blocks that `size` rows or columns of a product are cut into: a matter of its dims alone."""
    return max(1, min(size // _NARROWEST, work // _GRAIN, _MOST_BLOCKS))


@njit(**_OPTIONS)
def _edge(size, block, blocks):
    """Where a block begins: at a multiple of 16."""
    return size if block == blocks else size * block // blocks // 16 * 16


# --- the bodies: one for each row of the table, its arguments, then the share --------------------


@njit(**_OPTIONS)
def _dense_forward(x, w, b, activation, y, part, parts):
    n, k = x.shape
    m = w.shape[1]
    blocks = _count_blocks(m, n * k * m)
    for block in range(*_share(blocks, part, parts)):
        start, stop = _edge(m, block, blocks), _edge(m, block + 1, blocks)
        _gemm(n, stop - start, k, x, k, False, w[:, start:], m, False, y[:, start:], m)
        for i in range(n):
            row = y[i, start:stop]
            if b.size:
                _add(row, b[start:stop])
            _activate(row, activation)


@njit(**_OPTIONS)
def _dense_input_grad(da, w, x, activation, dx, part, parts):
    n, m = da.shape
    k = w.shape[0]
    blocks = _count_blocks(k, n * k * m)
    for block in range(*_share(blocks, part, parts)):
        start, stop = _edge(k, block, blocks), _edge(k, block + 1, blocks)
        _gemm(n, stop - start, m, da, m, False, w[start:], m, True, dx[:, start:], k)
        if activation and x.size:
            for i in range(n):
                _differentiate(dx[i, start:stop], x[i, start:stop], activation)


@njit(**_OPTIONS)
def _column_sums(da, sums, start):
    """sums = sum_n da, from column `start` on; four rows at a time: fewer roundings, fewer passes."""
    n = da.shape[0]
    _copy(da[0, start:], sums)
    whole = 1 + (n - 1) // 4 * 4
    for i in range(1, whole, 4):
        a, b, c, d = da[i, start:], da[i + 1, start:], da[i + 2, start:], da[i + 3, start:]
        for j in range(sums.size):
            sums[j] += (a[j] + b[j]) + (c[j] + d[j])
    for i in range(whole, n):
        _add(sums, da[i, start:])


@njit(**_OPTIONS)
def _dense_weight_grad(x, da, dw, db, part, parts):
    n, k = x.shape
    m = da.shape[1]
    blocks = _count_blocks(k, n * k * m)
    for block in range(*_share(blocks, part, parts)):
        start, stop = _edge(k, block, blocks), _edge(k, block + 1, blocks)
        _gemm(stop - start, m, n, x[:, start:], k, True, da, m, False, dw[start:], m)
    if db.size:
        start, stop = _share(m, part, parts)
        _column_sums(da, db[start:stop], start)


@njit(**_OPTIONS)
def _dense_sgd(x, da, learning_rate, dw, w, b, part, parts):
    n, k = x.shape
    m = da.shape[1]
    rate = w.dtype.type(learning_rate)
    blocks = _count_blocks(k, n * k * m)
    for block in range(*_share(blocks, part, parts)):
        start, stop = _edge(k, block, blocks), _edge(k, block + 1, blocks)
        _gemm(stop - start, m, n, x[:, start:], k, True, da, m, False, dw[start:], m)
        for c in range(start, stop):
            _descend(w[c], dw[c], rate)
    if b.size:
        for j in range(*_share(m, part, parts)):
            total = w.dtype.type(0)
            for i in range(n):
                total += da[i, j]
            b[j] -= rate * total


@njit(**_OPTIONS)
def _dense_backward(dy, x, w, y, activation, da, dx, dw, db, part, parts):
    if part:  # the products need all of da: the pieces of this kernel are what a team runs
        return
    for i in range(dy.shape[0]):
        _copy(dy[i], da[i])
        _differentiate(da[i], y[i], activation)
    _dense_input_grad(da, w, x[:0], 0, dx, 0, 1)
    _dense_weight_grad(x, da, dw, db, 0, 1)


@njit(**_OPTIONS)
def _activation_forward(x, activation, y, part, parts):
    for i in range(*_share(x.shape[0], part, parts)):
        _copy(x[i], y[i])
        _activate(y[i], activation)


@njit(**_OPTIONS)
def _activation_backward(dy, y, activation, dx, part, parts):
    for i in range(*_share(dy.shape[0], part, parts)):
        _copy(dy[i], dx[i])
        _differentiate(dx[i], y[i], activation)


@njit(**_OPTIONS)
def _subsample_forward(x, stride, y, part, parts):
    for i in range(*_share(y.shape[0], part, parts)):
        row, source = y[i], x[i]
        for j in range(row.size):
            row[j] = source[stride * j]


@njit(**_OPTIONS)
def _subsample_backward(dy, stride, dx, part, parts):
    for i in range(*_share(dx.shape[0], part, parts)):
        row, source = dx[i], dy[i]
        row[:] = 0
        for j in range(source.size):
            row[stride * j] = source[j]


@njit(**_OPTIONS)
def _branch_sum(x1, x2, y, part, parts):
    for i in range(*_share(y.shape[0], part, parts)):
        row, a, b = y[i], x1[i], x2[i]
        for j in range(row.size):
            row[j] = a[j] + b[j]


@njit(**_OPTIONS)
def _sse(y, target, activation, row_loss, da, part, parts):
    two = y.dtype.type(2)
    for i in range(*_share(y.shape[0], part, parts)):
        row_loss[i] = _error_row(y[i], target[i], da[i], two)
        _differentiate(da[i], y[i], activation)


@njit(**_OPTIONS)
def _mse(y, target, activation, row_loss, da, part, parts):
    count = y.dtype.type(y.size)
    factor = y.dtype.type(2) / count
    for i in range(*_share(y.shape[0], part, parts)):
        row_loss[i] = _error_row(y[i], target[i], da[i], factor) / count
        _differentiate(da[i], y[i], activation)


@njit(**_OPTIONS)
def _total(row_loss, loss, part, parts):
    if part == 0:
        result = loss.dtype.type(0)
        for i in range(row_loss.size):
            result += row_loss[i]
        loss[0] = result


@njit(**_OPTIONS)
def _sgd(g, learning_rate, w, part, parts):
    start, stop = _share(w.size, part, parts)
    _descend(w[start:stop], g[start:stop], w.dtype.type(learning_rate))


@njit(**_OPTIONS)
def _gather_rows(data, order, x, part, parts):
    for i in range(*_share(x.shape[0], part, parts)):
        _copy(data[order[i]], x[i])


# --- the epoch -----------------------------------------------------------------------------------

# Places in the plan of a run.
_ROWS, _BATCH, _ORDERED, _TRAINS, _CHECK, _LOSS, _INPUT, _TARGET, _OUTPUT = range(9)


@njit(**_OPTIONS)
def _fetch(data, order, ordered, start, count, arena, offset, part, parts):
    """Rows of the data into the arena."""
    width = data.shape[1]
    for i in range(*_share(count, part, parts)):
        row = order[start + i] if ordered else start + i
        _copy(data[row], arena[offset + i * width : offset + (i + 1) * width])


def _run_batches(
    functions, arena, header, code, tail, plan, data, target, order, losses, out, control, state, part, parts
):
    """One thread's part of a run; arrays that were not given are empty."""
    rows, size, ordered = plan[_ROWS], plan[_BATCH], plan[_ORDERED] != 0
    check, width = plan[_CHECK], out.shape[1]
    for batch in range((rows + size - 1) // size):
        start = batch * size
        count = min(size, rows - start)
        lines = code if count == size else tail
        _fetch(data, order, ordered, start, count, arena, plan[_INPUT], part, parts)
        if target.size:
            _fetch(target, order, ordered, start, count, arena, plan[_TARGET], part, parts)
        _meet(state, parts)
        for i in range(lines.shape[0] + 1):
            if check and i == check:  # behind a barrier: every thread sees the same loss
                loss = arena[plan[_LOSS]]
                if part == 0 and losses.size:
                    losses[batch] = loss
                if not np.isfinite(loss):
                    if part == 0:
                        control[2] = batch
                    return
            if i < lines.shape[0]:
                _call(functions[lines[i, 0]], arena, lines, i, part, parts)
                if lines[i, 1]:
                    _meet(state, parts)
        if out.size:
            for i in range(*_share(count, part, parts)):
                first = plan[_OUTPUT] + i * width
                _copy(arena[first : first + width], out[start + i])
        if part == 0:
            if plan[_TRAINS]:
                header[0] += 1
            control[1] = batch + 1
            state[16] = _load(control, 0)  # seen by all threads after the same batch
        _meet(state, parts)
        if state[16]:
            return


# --- compiled when first asked for ---------------------------------------------------------------


def _compile(function: Callable[..., None], signature: Any) -> Any:
    return njit(signature, cache=_cache_works(), **_OPTIONS)(function)


@cache
def _body(name: str, char: str) -> Any:
    """Compiled body of a kernel for a dtype. What it does not write may be read-only."""
    real = _REALS[char]
    arguments = []
    for a in KERNELS[name].arguments:
        if isinstance(a, Array):
            element = types.int64 if a.kind == "index" else real
            arguments.append(types.Array(element, len(a.dims), "C", readonly=not a.written))
        else:
            arguments.append(types.float64 if a.kind == "real" else types.int64)
    function = globals()[f"_{name}"].py_func
    return _compile(function, types.void(*arguments, types.int64, types.int64))


class _Bodies(dict):
    """Bodies by kernel and dtype.char, compiled when looked up."""

    def __missing__(self, key: tuple[str, str]) -> Any:
        body = self[key] = _body(*key)
        return body


_bodies = _Bodies()


def _array_form(kernel: Kernel) -> str:
    """Source of what is called by the kernel's name."""
    names = [a.name for a in kernel.arguments]
    first = next(a.name for a in kernel.arrays if a.kind == "real")
    lines = [f"def {kernel.name}({', '.join(names)}):", f"    {kernel.formula + '.'!r}"]
    for a in kernel.arrays:
        if a.optional and len(a.dims) > 1:  # absent comes with one dim
            lines += [
                f"    if {a.name}.ndim == 1:",
                f"        {a.name} = {a.name}.reshape({'0, ' * len(a.dims)})",
            ]
    lines.append(f"    _bodies[{kernel.name!r}, {first}.dtype.char]({', '.join(names)}, 0, 1)")
    return "\n".join(lines) + "\n"


def _instruction_form(kernel: Kernel) -> tuple[str, str]:
    """Name and source of what a Program calls. The name tells the source: Numba's cache goes by it."""
    lines = []
    count = len(kernel.arguments)
    lines += [f"    n_{dim} = operands[{count + i}]" for i, dim in enumerate(kernel.dims)]
    for i, a in enumerate(kernel.arguments):
        if not isinstance(a, Array):
            value = f"_at(operands, {i}, float64)[0]" if a.kind == "real" else f"operands[{i}]"
        else:
            shape = [d if d.isdigit() else f"n_{d}" for d in a.dims]
            if a.optional:
                shape[0] += f" if operands[{i}] >= 0 else 0"
            element = "int64" if a.kind == "index" else "real"
            value = f"carray(_at(arena, operands[{i}], {element}), ({', '.join(shape)},))"
        lines.append(f"    a_{a.name} = {value}")
    lines.append(f"    body({', '.join('a_' + a.name for a in kernel.arguments)}, part, parts)")
    body = "\n".join(lines) + "\n"
    name = f"{kernel.name}_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    return name, f"def {name}(arena, operands, part, parts):\n{body}"


@cache
def _instruction(name: str, char: str) -> Any:
    """Compiled instruction form of a kernel for a dtype: an object with an ``address``."""
    real = _REALS[char]
    title, source = _instruction_form(KERNELS[name])
    names = {
        "_at": _at,
        "body": _body(name, char),
        "carray": carray,
        "float64": types.float64,
        "int64": types.int64,
        "real": real,
        "__name__": __name__,
    }
    exec(compile(source, __file__, "exec"), names)
    signature = types.void(types.CPointer(real), types.CPointer(types.int64), types.int64, types.int64)
    return cfunc(signature, cache=_cache_works(), **_OPTIONS)(names[title])


@cache
def _epoch(char: str) -> Any:
    """Compiled `_run_batches` for a dtype."""
    real = _REALS[char]

    def array(element, dims, readonly=False):
        return types.Array(element, dims, "C", readonly=readonly)

    vector, code = array(types.int64, 1), array(types.int64, 2)
    rows = array(real, 2, True)
    signature = types.void(
        *(vector, array(real, 1), vector, code, code, vector, rows, rows, array(types.int64, 1, True)),
        *(array(types.float64, 1), array(real, 2), vector, vector, types.int64, types.int64),
    )
    return _compile(_run_batches, signature)


for _kernel in KERNELS.values():
    exec(compile(_array_form(_kernel), f"<array form of {_kernel.name}>", "exec"))


# --- the executor --------------------------------------------------------------------------------


class _Blas:
    """BLAS held to one thread while any run needs it, whichever ends last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._libraries: list[Any] | None = None
        self._before: list[int] = []

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        with self._lock:
            if self._libraries is None:  # looked for once: it takes milliseconds
                found = ThreadpoolController().select(user_api="blas").lib_controllers
                # SciPy's, which Numba calls, has its own in a wheel; NumPy's is left alone then.
                self._libraries = [library for library in found if "scipy." in library.filepath] or found
            if self._running == 0:
                self._before = [library.num_threads for library in self._libraries]
                for library in self._libraries:
                    library.set_num_threads(1)
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    for library, threads in zip(self._libraries, self._before, strict=True):
                        library.set_num_threads(threads)


_blas = _Blas()


class Executor:
    """Runs a Program as compiled code: a run is one call for each thread.

    Parameters
    ----------
    program : Program
        A lowered program with contiguous (not padded) slots.
    arena : ndarray of shape (program.arena_size,) and program.dtype
        The block all its arrays live in.
    n_threads : int
        Threads of the team, the calling one among them.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.
    """

    def __init__(self, program: Program, arena: np.ndarray, n_threads: int = 1) -> None:
        if n_threads < 1:
            raise ValueError(f"n_threads: expected at least 1, got {n_threads}")
        self._arena = arena
        self._header = arena[: 64 // arena.itemsize].view(np.int64)
        self._batch_size = int(program.batch_size)
        self._n_threads = n_threads
        self._functions = np.zeros(len(KERNELS), np.int64)

    def _prepare(self, code: np.ndarray) -> None:
        """Compile what the code needs and has not been compiled."""
        names = tuple(KERNELS)
        for place in set(code[:, 0].tolist()):
            if not self._functions[place]:
                self._functions[place] = _instruction(names[place], self._arena.dtype.char).address

    def run(
        self,
        routine: Routine,
        data: np.ndarray,
        target: np.ndarray | None,
        order: np.ndarray | None,
        *,
        losses: np.ndarray | None = None,
        out: np.ndarray | None = None,
        control: np.ndarray | None = None,
    ) -> None:
        """Run a routine over the rows of `data`, a batch at a time.

        Parameters
        ----------
        routine : Routine
            What to run.
        data : ndarray of shape (n, k) and program.dtype
            Gathered into the routine's input.
        target : ndarray of shape (n, m) and program.dtype, or None
            Gathered into the routine's target; None where the routine reads none of its own.
        order : int64 ndarray, or None
            Rows of `data` in the order to take them; None for all of them as they lie.
        losses : float64 ndarray, optional
            Receives the loss of each batch.
        out : ndarray of shape (len(order), ...), optional
            Receives the routine's output.
        control : int64 ndarray of 8, optional
            ``[0]`` set by another thread stops the run after the batch at hand, ``[1]`` batches done,
            ``[2]`` the batch whose loss was not finite, or -1.
        """
        rows = len(data) if order is None else len(order)
        if control is None:
            control = np.zeros(8, np.int64)
        control[1] = 0
        control[2] = -1
        if rows == 0:
            return
        size = self._batch_size
        code = routine.encode(min(size, rows))
        tail = routine.encode(rows % size) if rows > size and rows % size else code
        self._prepare(code)
        nothing = np.empty((0, 0), self._arena.dtype)

        def offset(slot: Slot | None) -> int:
            return 0 if slot is None else slot.offset

        plan = np.array(
            [
                *(rows, min(size, rows), order is not None, routine.trains, routine.check),
                *(offset(s) for s in (routine.loss, routine.input, routine.target, routine.output)),
            ],
            np.int64,
        )
        arguments = (
            *(self._functions, self._arena, self._header, code, tail, plan, data),
            nothing if target is None else target,
            np.empty(0, np.int64) if order is None else order,
            np.empty(0) if losses is None else losses,
            nothing if out is None else out.reshape(rows, -1),
            control,
            np.zeros(24, np.int64),
        )
        epoch = _epoch(self._arena.dtype.char)
        with _blas.one_thread():
            if self._n_threads == 1:
                epoch(*arguments, 0, 1)
            else:
                self._run_team(epoch, arguments)

    def _run_team(self, epoch: Any, arguments: tuple[Any, ...]) -> None:
        """Run the epoch on all threads, or, when one cannot be started, on none."""
        parts = self._n_threads
        ready = threading.Event()
        complete = False

        def work(part: int) -> None:
            ready.wait()
            if complete:
                epoch(*arguments, part, parts)

        team: list[threading.Thread] = []
        try:
            for part in range(1, parts):
                thread = threading.Thread(target=work, args=(part,), name=f"fastae-{part}", daemon=True)
                thread.start()
                team.append(thread)
            complete = True
        finally:
            ready.set()
        epoch(*arguments, 0, parts)
        for thread in team:
            thread.join()
