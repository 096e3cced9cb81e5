"""What the scalar kernels are made of: arithmetic as IEEE 754 has it, and the activations."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["ACTIVATIONS", "GRADIENTS", "divide", "log", "log1p", "root", "sigmoid"]

# --- as IEEE 754 has them, where Python raises ---------------------------------------------------


def divide(a: float, b: float) -> float:
    """Return a / b."""
    if b != 0.0:
        return a / b
    return math.copysign(math.inf, a) * math.copysign(1.0, b) if abs(a) > 0.0 else math.nan


def root(x: float) -> float:
    """Return the square root of x, NaN below 0."""
    return math.sqrt(x) if x >= 0.0 else math.nan


def log(x: float) -> float:
    """Return the natural logarithm of x."""
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def log1p(x: float) -> float:
    """Return the natural logarithm of 1 + x."""
    return math.log1p(x) if x > -1.0 else -math.inf if x == -1.0 else math.nan


def _expm1(x: float) -> float:
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


# --- activations: y = f(x), and dy f'(y) from the output y ---------------------------------------


def _linear(x: float) -> float:
    return x


def _relu(x: float) -> float:
    return 0.0 if x <= 0.0 else x  # written so that NaN stays NaN


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x))."""
    e = math.exp(-abs(x))  # at most 1: cannot overflow
    return e / (1.0 + e) if x < 0.0 else 1.0 / (1.0 + e)


def _leaky_relu(x: float) -> float:
    return x if x > 0.0 else 0.01 * x


def _elu(x: float) -> float:
    return x if x > 0.0 else math.expm1(x)  # precise near 0, where exp(x) - 1 is not


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))  # max keeps its first argument if that is NaN


def _linear_gradient(dy: float, y: float) -> float:
    return dy


def _relu_gradient(dy: float, y: float) -> float:
    return dy if y > 0.0 else 0.0  # a choice, not a product: an infinite dy does not pass either


def _sigmoid_gradient(dy: float, y: float) -> float:
    return dy * (y * (1.0 - y))


def _tanh_gradient(dy: float, y: float) -> float:
    return dy * (1.0 - y * y)


def _leaky_relu_gradient(dy: float, y: float) -> float:
    return dy if y > 0.0 else 0.01 * dy


def _elu_gradient(dy: float, y: float) -> float:
    return dy if y > 0.0 else dy * (y + 1.0)


def _softplus_gradient(dy: float, y: float) -> float:
    return dy * -_expm1(-y)


# Indexed by Activation.code.
ACTIVATIONS: tuple[Callable[[float], float], ...] = (
    _linear,
    _relu,
    sigmoid,
    math.tanh,
    _leaky_relu,
    _elu,
    _softplus,
)
GRADIENTS: tuple[Callable[[float, float], float], ...] = (
    _linear_gradient,
    _relu_gradient,
    _sigmoid_gradient,
    _tanh_gradient,
    _leaky_relu_gradient,
    _elu_gradient,
    _softplus_gradient,
)
