"""Arithmetic for the loops of the Numba backend, in forms that LLVM turns into vector code.

No branch, no call of libm, no change of the order of a sum that is not asked for by name (`plus`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastae.kernels.jitted_runtime import (  # says what to install where it is missing
    OPTIONS,
    apart,
    vector,
)

# isort: split
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload


@intrinsic
def pick(typing, condition, a, b):
    """``a if condition else b`` without a branch, which could keep a loop from becoming vector code."""
    signature = a(condition, a, b)

    def generate(context, builder, signature, arguments):
        condition = context.cast(builder, arguments[0], signature.args[0], types.boolean)
        return builder.select(condition, arguments[1], arguments[2])

    return signature, generate


def _integer(real: Any) -> tuple[ir.IntType, int, int]:
    """Integer as wide as a real type, the bits of the mantissa, and the bias of the exponent."""
    return (ir.IntType(32), 23, 127) if real == types.float32 else (ir.IntType(64), 52, 1023)


@intrinsic
def _power_of_two(typing, shifted):
    """2^n, where n is what the lowest bits of the mantissa hold."""
    signature = shifted(shifted)

    def generate(context, builder, signature, arguments):
        integer, mantissa, bias = _integer(signature.return_type)
        n = builder.add(builder.bitcast(arguments[0], integer), ir.Constant(integer, bias))
        shifted = builder.shl(n, ir.Constant(integer, mantissa))
        return builder.bitcast(shifted, context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def _split(typing, x):
    """Return n and m with x = 2^n m and m in [sqrt(1/2), sqrt(2)), for a positive normal x."""
    signature = types.UniTuple(x, 2)(x)

    def generate(context, builder, signature, arguments):
        integer, mantissa, _ = _integer(signature.args[0])
        real = context.get_value_type(signature.args[0])
        half = builder.bitcast(ir.Constant(real, 0.5**0.5), integer)
        above = builder.sub(builder.bitcast(arguments[0], integer), half)
        n = builder.sitofp(builder.ashr(above, ir.Constant(integer, mantissa)), real)
        rest = builder.and_(above, ir.Constant(integer, (1 << mantissa) - 1))
        m = builder.bitcast(builder.add(rest, half), real)
        return context.make_tuple(builder, signature.return_type, (n, m))

    return signature, generate


def _flip(builder, bits, integer):
    """Turn the bits of a real to an integer that is ordered as the reals are, or back."""
    sign = builder.ashr(bits, ir.Constant(integer, integer.width - 1))
    return builder.xor(bits, builder.and_(sign, ir.Constant(integer, (1 << (integer.width - 1)) - 1)))


@intrinsic
def rank(typing, x):
    """An integer that is larger where x is: of integers, not of reals, vector code finds the largest."""
    signature = (types.int32 if x == types.float32 else types.int64)(x)

    def generate(context, builder, signature, arguments):
        integer = context.get_value_type(signature.return_type)
        return _flip(builder, builder.bitcast(arguments[0], integer), integer)

    return signature, generate


@intrinsic
def of_rank(typing, rank):
    """Return the real of a `rank`."""
    signature = (types.float32 if rank == types.int32 else types.float64)(rank)

    def generate(context, builder, signature, arguments):
        integer = context.get_value_type(signature.args[0])
        bits = _flip(builder, arguments[0], integer)
        return builder.bitcast(bits, context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def root(typing, x):
    """Square root as an instruction: a call of libm's would keep a loop from becoming vector code."""
    signature = x(x)

    def generate(context, builder, signature, arguments):
        real = context.get_value_type(signature.return_type)
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [real]), arguments)

    return signature, generate


@intrinsic
def plus(typing, total, x):
    """``total + x`` of a sum whose order LLVM may choose, and so add up in vectors."""
    signature = total(total, total)

    def generate(context, builder, signature, arguments):
        return builder.fadd(*arguments, flags=("reassoc",))

    return signature, generate


# --- exponentials and logarithms -----------------------------------------------------------------
#
#     exp(z) = 2^n exp(r) with z = n log 2 + r, |r| <= log(2)/2, and exp(r) - 1 by its Taylor series;
#     log(x) = n log 2 + log(m) with x = 2^n m, log(m) = 2 atanh(s) by its series, s = (m - 1) / (m + 1).


def _constants(z):
    """Type of z, whether it is the short one, and log 2 in two: n times the first has no rounding."""
    if z == types.float32:
        return np.float32, True, np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)
    high = float.fromhex("0x1.62e42fee00000p-1")
    return np.float64, False, np.float64(high), np.float64(1.90821492927058770002e-10)


def _exp_parts(z):
    """For z <= 0, not too small: 2^n and exp(r) - 1."""


@overload(_exp_parts)
def _exp_parts_of(z):
    real, short, high, low = _constants(z)
    # What it is added to is rounded, and the integer left in the lowest bits.
    shift = real(1.5 * 2**23 if short else 1.5 * 2**52)
    inverse = real(1 / math.log(2))
    series = tuple(real(1 / math.factorial(i)) for i in range(7 if short else 13, 0, -1))

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


def exp(z):
    """exp(z) for z <= 0; 0 where it is not a normal number."""


@overload(exp)
def _exp_of(z):
    zero = _constants(z)[0](0)

    def implementation(z):
        lowest = _lowest(z)
        scale, p = _exp_parts(pick(z < lowest, lowest, z))
        return pick(z < lowest, zero, scale + scale * p)

    return implementation


def expm1(z):
    """exp(z) - 1 for z <= 0, precise near 0 too."""


@overload(expm1)
def _expm1_of(z):
    one = _constants(z)[0](1)

    def implementation(z):
        lowest = _lowest(z)
        scale, p = _exp_parts(pick(z < lowest, lowest, z))
        return scale * p + (scale - one)

    return implementation


def _two_atanh(s):
    """2 atanh(s) for abs(s) <= 3 - sqrt(8), precise near 0 too."""


@overload(_two_atanh)
def _two_atanh_of(s):
    real, short, *_ = _constants(s)
    series = tuple(real(2 / (2 * i + 1)) for i in range(4 if short else 10, -1, -1))

    def implementation(s):
        square = s * s
        p = series[0]
        for i in range(1, len(series)):
            p = p * square + series[i]
        return p * s

    return implementation


def log1p(x):
    """log(1 + x) for 0 <= x <= 1, precise near 0 too."""


@overload(log1p)
def _log1p_of(x):
    real, _, high, low = _constants(x)
    zero, one, two, three, middle = (real(v) for v in (0, 1, 2, 3, math.sqrt(2) - 1))

    def implementation(x):
        upper = x > middle  # log 2 + log((1 + x) / 2) there
        s = pick(upper, x - one, x) / (pick(upper, three, two) + x)
        return pick(upper, high, zero) + (pick(upper, low, zero) + _two_atanh(s))

    return implementation


def log(x):
    """log(x) for 0 <= x <= 1, at least -100; NaN for a negative x."""


@overload(log)
def _log_of(x):
    real, _, high, low = _constants(x)
    zero, one, least, nan = real(0), real(1), real(-100), real(math.nan)
    tiny, up, less = np.finfo(real).tiny, real(2**64), real(64)  # a subnormal number is taken up

    def implementation(x):
        n, m = _split(pick(x < tiny, x * up, x))
        n = pick(x < tiny, n - less, n)
        y = n * high + (n * low + _two_atanh((m - one) / (m + one)))
        bounded = pick(y < least, least, y)
        return pick(x > zero, bounded, pick(x == zero, least, nan))

    return implementation


def log_of_rest(x):
    """log(1 - x) for 0 <= x <= 1, at least -100; NaN for an x above 1."""


@overload(log_of_rest)
def _log_of_rest_of(x):
    real = _constants(x)[0]
    zero, half, one = real(0), real(0.5), real(1)

    def implementation(x):
        rest = one - x
        lost = (one - rest) - x  # to rounding
        return log(rest) + pick(rest > half, lost / rest, zero)

    return implementation


def cosine_of_turn(v):
    """cos(2 pi v) for 0 <= v <= 1."""


@overload(cosine_of_turn)
def _cosine_of_turn_of(v):
    # It is sin(2 pi t) with t = |v - 1/2| - 1/4, an angle of at most a quarter turn either way.
    real, short, *_ = _constants(v)
    half, quarter = real(0.5), real(0.25)
    series = tuple(
        real((-1) ** i * math.tau ** (2 * i + 1) / math.factorial(2 * i + 1))
        for i in range(6 if short else 11, -1, -1)
    )

    def implementation(v):
        t = abs(v - half) - quarter
        square = t * t
        p = series[0]
        for i in range(1, len(series)):
            p = p * square + series[i]
        return p * t

    return implementation


# --- one row -------------------------------------------------------------------------------------
#
# Numba takes a bare 1.0 for double precision: constants are made in the type of the array.


@apart(lambda real: (vector(real), types.int64))
@njit(**OPTIONS)
def activate(y, activation):
    """y = f(y) for a row: in place, as LLVM makes no vector code where an input may be the output."""
    zero, one, two = y.dtype.type(0), y.dtype.type(1), y.dtype.type(2)
    if activation == 1:
        for j in range(y.size):
            y[j] = pick(y[j] <= zero, zero, y[j])  # NaN stays NaN
    elif activation == 2:
        for j in range(y.size):
            e = exp(-abs(y[j]))
            y[j] = pick(y[j] < zero, e, one) / (one + e)
    elif activation == 3:
        for j in range(y.size):
            e = expm1(-two * abs(y[j]))
            t = -e / (two + e)
            y[j] = pick(y[j] < zero, -t, t)
    elif activation == 4:
        leak = y.dtype.type(0.01)
        for j in range(y.size):
            y[j] = pick(y[j] > zero, y[j], leak * y[j])
    elif activation == 5:
        for j in range(y.size):
            y[j] = pick(y[j] > zero, y[j], expm1(pick(y[j] > zero, zero, y[j])))
    elif activation == 6:
        for j in range(y.size):
            y[j] = pick(y[j] <= zero, zero, y[j]) + log1p(exp(-abs(y[j])))


@apart(lambda real: (vector(real), vector(real, readonly=True), types.int64))
@njit(**OPTIONS)
def differentiate(dx, y, activation):
    """dx = dx f'(y) for a row."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if activation == 1:
        for j in range(y.size):
            dx[j] = pick(y[j] > zero, dx[j], zero)
    elif activation == 2:
        for j in range(y.size):
            dx[j] *= y[j] * (one - y[j])
    elif activation == 3:
        for j in range(y.size):
            dx[j] *= one - y[j] * y[j]
    elif activation == 4:
        leak = y.dtype.type(0.01)
        for j in range(y.size):
            dx[j] = pick(y[j] > zero, dx[j], leak * dx[j])
    elif activation == 5:
        for j in range(y.size):
            dx[j] = pick(y[j] > zero, dx[j], dx[j] * (y[j] + one))
    elif activation == 6:
        for j in range(y.size):
            dx[j] *= -expm1(-y[j])


@njit(**OPTIONS)
def add(total, x):
    """total += x for a row."""
    for j in range(total.size):
        total[j] += x[j]


# --- random bits ---------------------------------------------------------------------------------


@njit(**OPTIONS)
def _mix64(z):
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(**OPTIONS)
def key(counter, stream):
    """Two halves of the key of a draw, of 32 bits each."""
    whole = _mix64(_mix64(_mix64(np.uint64(counter[1])) + np.uint64(counter[0])) + np.uint64(stream))
    return np.uint32(whole & np.uint64(0xFFFFFFFF)), np.uint32(whole >> np.uint64(32))


@intrinsic
def bits(typing, element, low, high):
    """Random bits of an element; Numba would make 64 bits of every product of 32."""
    signature = types.uint32(element, low, high)

    def generate(context, builder, signature, arguments):
        word = ir.IntType(32)

        def times(h, factor):
            return builder.mul(h, ir.Constant(word, factor))

        def folded(h, shift):
            return builder.xor(h, builder.lshr(h, ir.Constant(word, shift)))

        element, low, high = arguments
        h = builder.add(times(builder.trunc(element, word), 0x9E3779B9), low)
        h = times(folded(builder.xor(h, high), 16), 0x7FEB352D)
        return folded(times(folded(h, 15), 0x846CA68B), 16)

    return signature, generate
