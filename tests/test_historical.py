"""The published comparison: both forms compute the layer, and the record of it is what was published."""

import numpy as np
import pytest

from fastae import historical


def test_both_forms_are_the_input_layer():
    rng = np.random.default_rng(1)
    x, w = rng.integers(-5, 6, (3, 7)).astype(float), rng.integers(-5, 6, (7, 4)).astype(float)
    b = rng.integers(-5, 6, 4).astype(float)
    expected = np.maximum(np.einsum("nk,km->nm", x, w) + b, 0)
    np.testing.assert_array_equal(historical.scalar_input_layer(x, w, b), expected)
    np.testing.assert_array_equal(historical.vector_input_layer(x, w, b), expected)
    assert (expected == 0).any()
    assert (expected > 0).any()


def test_arguments_have_the_published_shape():
    x, w, b = historical.input_layer()
    assert (x.shape, w.shape, b.shape) == ((20, 225), (225, 75), (75,))
    assert x.dtype == w.dtype == b.dtype == np.float64
    assert np.abs(w).max() <= np.sqrt(6 / 300)


def test_published_figures():
    assert historical.PUBLISHED == (0.1991, 0.0004, 475.6281)


def test_compare_times_both():
    result = historical.compare(1, 2, (2, 9, 3))
    assert result.scalar > 0
    assert result.ratio == result.scalar / result.vector


def test_compare_refuses_forms_that_disagree(monkeypatch):
    monkeypatch.setattr(historical, "vector_input_layer", lambda x, w, b: np.ones((len(x), len(b))))
    with pytest.raises(ArithmeticError, match="disagree"):
        historical.compare(shape=(2, 3, 4))
