"""The bundled digits and their preparation."""

import hashlib

import numpy as np
import pytest

from fastae import datasets


def test_digits_are_the_uci_digits():
    images, labels = datasets.digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.uint8)
    assert images.max() == 16
    assert labels[:10].tolist() == list(range(10))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # of the bytes, so that a file made anew can differ in its compression but not in a pixel
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits_equal_scikit_learns():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    theirs = sklearn_datasets.load_digits()
    images, labels = datasets.digits()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


@pytest.mark.parametrize(("size", "first"), [(8, 0), (9, 1), (15, 4), (16, 4), (28, 10)])
def test_canvas_holds_each_digit_in_its_middle(size, first):
    canvas = datasets.digits_canvas(size)
    assert (canvas.shape, canvas.dtype) == ((1797, size, size), np.uint8)
    inside = canvas[:, first : first + 8, first : first + 8]
    images, _ = datasets.digits()
    np.testing.assert_array_equal(inside, np.rint(images / 16 * 255))
    assert inside.max() == 255
    assert canvas.sum(dtype=int) == inside.sum(dtype=int)  # nothing outside


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (7, ValueError, "size: expected at least 8"),
        (15.0, TypeError, "size: expected an int"),
        (True, TypeError, "size: expected an int"),
    ],
)
def test_canvas_refuses(size, error, message):
    with pytest.raises(error, match=message):
        datasets.digits_canvas(size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autoencnet_data_subtracts_the_mean_image(dtype):
    images = datasets.digits_canvas()
    x, mean = datasets.autoencnet_data(images[:1000], dtype=dtype)
    assert (x.shape, x.dtype, mean.shape, mean.dtype) == ((1000, 225), dtype, (225,), dtype)
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_allclose(x * 255 + mean, images[:1000].reshape(1000, -1), atol=1e-4)
    test, same = datasets.autoencnet_data(images[1000:], mean, dtype)
    np.testing.assert_array_equal(same, mean)
    np.testing.assert_allclose(test, (images[1000:].reshape(797, -1) - mean) / 255, atol=1e-7)


def test_autoencnet_data_takes_flat_images():
    images = datasets.digits_canvas()[:5]
    np.testing.assert_array_equal(
        datasets.autoencnet_data(images.reshape(5, -1))[0], datasets.autoencnet_data(images)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(225),), ValueError, "images: expected shape"),
        ((np.zeros((0, 15, 15)),), ValueError, "images: expected shape"),
        ((np.zeros((2, 3, 15, 15)),), ValueError, "images: expected shape"),
        ((np.array([["a", "b"]]),), TypeError, "images: expected real numbers"),
        ((np.zeros((2, 4), complex),), TypeError, "images: expected real numbers"),
        ((np.zeros((2, 4)), np.zeros(3)), ValueError, "mean: expected 4 values"),
        ((np.zeros((2, 4)), None, "int64"), TypeError, "dtype: expected float32 or float64"),
    ],
)
def test_autoencnet_data_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        datasets.autoencnet_data(*arguments)
