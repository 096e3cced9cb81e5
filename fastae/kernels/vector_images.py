"""The kernels on images in NumPy; ``vector.py`` has the others and says how they are written.

A convolution is one product of its weight with *columns*, which hold what each window sees:

    images [n,c,h,w] ──fill──> columns [c,kh,kw,n,p,q] ── w[o,c kh kw] columns ──> [o,n,p,q] ──> y[n,o,p,q]

The gradient of its input is the way back, columns added to the images, and so is a transposed convolution.
As many images are worked on at a time as leave their columns in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastae.kernels.vector_maths import BITS, ONE, SCRATCH, activate, differentiate

__all__ = [
    "avg_pool2d_backward",
    "avg_pool2d_forward",
    "batchnorm2d_backward",
    "batchnorm2d_forward",
    "batchnorm2d_inference",
    "conv2d_backward",
    "conv2d_forward",
    "conv2d_input_grad",
    "conv2d_max_pool2d_forward",
    "conv2d_max_pool2d_weight_grad",
    "conv2d_weight_grad",
    "conv_transpose2d_backward",
    "conv_transpose2d_forward",
    "conv_transpose2d_input_grad",
    "conv_transpose2d_weight_grad",
    "images_from_rows",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "rows_from_images",
    "upsample2d_backward",
    "upsample2d_forward",
    "upsample_conv2d_weight",
    "upsample_conv2d_weight_grad",
    "upsample_conv_transpose2d_weight",
    "upsample_conv_transpose2d_weight_grad",
]

_COLUMNS = 1 << 20  # bytes of columns, and of what they are multiplied with or to, at a time

_ABSENT = {c: np.empty(0, c) for c in "fd"}


# --- geometry ------------------------------------------------------------------------------------


class _Element(NamedTuple):
    """An element (u, v) of all windows: those windows in which it lies inside the image, and where."""

    u: int
    v: int
    windows: tuple[slice, slice]  # of rows and of columns of windows
    image: tuple[slice, slice]
    inside: bool  # in every window
    # Where windows lie as densely as the places of a row, the numbers of an image follow each other in the
    # columns too: a stretch of them, with what has run over from the next row at the left or at the right.
    stretch: slice
    source: slice
    left: int
    right: int


def _reach(offset: int, stride: int, size: int, count: int) -> tuple[slice, slice]:
    """Find the windows whose element at an offset is inside a size, and the places of these elements."""
    first = max(0, -(offset // stride))
    stop = max(first, min(count, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    if stop == first:
        return slice(0, 0), slice(0, 0)
    return slice(first, stop), slice(start, start + (stop - first - 1) * stride + 1, stride)


class _Windows:
    """Where windows lie on an image; every pair is one for height and width. Made once for a geometry."""

    def __init__(
        self,
        image: tuple[int, int],
        grid: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None:
        self.image = image
        self.grid = grid
        self.kernel = kernel
        self.places = grid[0] * grid[1]
        self.apart = stride[0] >= kernel[0] and stride[1] >= kernel[1]
        # One window that is the image: a convolution is a dense layer.
        self.dense = grid == (1, 1) and kernel == image and padding == (0, 0)
        self.flat = stride == (1, 1) and grid[1] == image[1]
        self.elements = []
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                down, along = u * dilation[0] - padding[0], v * dilation[1] - padding[1]
                rows, i = _reach(down, stride[0], image[0], grid[0])
                columns, j = _reach(along, stride[1], image[1], grid[1])
                inside = (rows.stop - rows.start, columns.stop - columns.start) == grid
                left, right = columns.start, grid[1] - columns.stop
                if rows.stop == rows.start or columns.stop == columns.start:
                    stretch = source = slice(0, 0)
                else:
                    stretch = slice(rows.start * grid[1] + left, rows.stop * grid[1] - right)
                    shift = down * grid[1] + along
                    source = slice(stretch.start + shift, stretch.stop + shift)
                self.elements.append(
                    _Element(u, v, (rows, columns), (i, j), inside, stretch, source, left, right)
                )
        self._counts: dict[str, np.ndarray] = {}

    def fill(self, x: np.ndarray, columns: np.ndarray) -> None:
        """Put what each window sees of x [n,c,h,w] into columns [c,kh,kw,n,p,q], 0 beyond the edges."""
        n, c = x.shape[:2]
        images = x.transpose(1, 0, 2, 3)
        if self.flat:
            lines = x.reshape(n, c, -1).transpose(1, 0, 2)
        for e in self.elements:
            slab = columns[:, e.u, e.v]
            if not self.flat:
                if not e.inside:
                    slab.fill(0)
                np.copyto(slab[:, :, *e.windows], images[:, :, *e.image])
                continue
            line = slab.reshape(c, n, -1)
            np.copyto(line[:, :, e.stretch], lines[:, :, e.source])
            if not e.inside:
                line[:, :, : e.stretch.start] = 0
                line[:, :, e.stretch.stop :] = 0
                slab[..., : e.left] = 0
                slab[..., self.grid[1] - e.right :] = 0

    def add(self, columns: np.ndarray, x: np.ndarray) -> None:
        """Let x [n,c,h,w] be the sum of the columns [c,kh,kw,n,p,q] at the places they were filled from.

        What stands in columns beyond the edges is overwritten.
        """
        n, c = x.shape[:2]
        x.fill(0)
        images = x.transpose(1, 0, 2, 3)
        if self.flat:
            lines = x.reshape(n, c, -1).transpose(1, 0, 2)
        for e in self.elements:
            slab = columns[:, e.u, e.v]
            if self.flat:
                slab[..., : e.left] = 0
                slab[..., self.grid[1] - e.right :] = 0
                part, target = slab.reshape(c, n, -1)[:, :, e.stretch], lines[:, :, e.source]
            else:
                part, target = slab[:, :, *e.windows], images[:, :, *e.image]
            np.add(target, part, target)

    def counts(self, char: str) -> np.ndarray:
        """Elements of each window that are inside the image, as an array of the type."""
        if char not in self._counts:
            counts = np.zeros(self.grid, char)
            for e in self.elements:
                counts[e.windows] += 1
            self._counts[char] = counts
        return self._counts[char]


_windows = lru_cache(maxsize=512)(_Windows)


def _per_time(n: int, each: int, itemsize: int) -> int:
    """Count the images to work on at a time, of n, if each takes so many numbers."""
    return min(n, max(1, _COLUMNS // (each * itemsize)))


# --- convolution ---------------------------------------------------------------------------------
#
# `images` have the windows on them and `a` has a number for each window and each of w's outputs: in a
# transposed convolution `a` is the input.


def _gather(images, w, windows: _Windows, groups: int, b, activation: int, room, a, take=None) -> None:
    """a[o] = f(b + sum over the window of images[c] w[o, c]); `take` has the results in place of a."""
    n, outputs, size = len(images), len(w), w[0].size
    if windows.dense and groups == 1 and take is None:
        results = a.reshape(n, outputs)
        images.reshape(n, size).dot(w.reshape(outputs, size).T, results)
        if b.size:
            np.add(results, b, results)
        if activation:
            activate(results, activation, results)
        return
    places, depth = windows.places, size * groups
    weight = w.reshape(groups, outputs // groups, size)
    per_time = _per_time(n, (depth + outputs) * places, images.itemsize)
    for start in range(0, n, per_time):
        part = images[start : start + per_time]
        count = len(part)
        columns = room[: depth * count * places]
        windows.fill(part, columns.reshape(-1, *windows.kernel, count, *windows.grid))
        if count == 1 and take is None:
            results = a[start]
        else:
            results = room[columns.size : columns.size + outputs * count * places]
        np.matmul(weight, columns.reshape(groups, size, -1), results.reshape(groups, outputs // groups, -1))
        flat = results.reshape(outputs, -1)
        if b.size:
            np.add(flat, b[:, None], flat)
        if activation:
            activate(flat, activation, flat)
        found = flat.reshape(outputs, count, *windows.grid).transpose(1, 0, 2, 3)
        if take is not None:
            take(start, found)
        elif count > 1:
            np.copyto(a[start : start + count], found)


def _by_channel(a: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Images [n,o,p,q] as [o, n p q], in the room unless they lie like that already."""
    n, outputs = a.shape[:2]
    if n == 1:
        return a.reshape(outputs, -1)
    rows = room[: a.size].reshape(outputs, n, -1)
    np.copyto(rows, a.reshape(n, outputs, -1).transpose(1, 0, 2))
    return rows.reshape(outputs, -1)


def _scatter(a, w, windows: _Windows, groups: int, room, images) -> None:
    """images[c] = sum of a[o] w[o, c] over the windows that reach a place."""
    n, outputs, size = len(a), len(w), w[0].size
    if windows.dense and groups == 1:
        a.reshape(n, outputs).dot(w.reshape(outputs, size), images.reshape(n, size))
        return
    places, depth = windows.places, size * groups
    weight = w.reshape(groups, outputs // groups, size).transpose(0, 2, 1)
    per_time = _per_time(n, (depth + outputs) * places, a.itemsize)
    for start in range(0, n, per_time):
        part = a[start : start + per_time]
        count = len(part)
        columns = room[: depth * count * places]
        factors = _by_channel(part, room[columns.size :])
        np.matmul(weight, factors.reshape(groups, outputs // groups, -1), columns.reshape(groups, size, -1))
        windows.add(columns.reshape(-1, *windows.kernel, count, *windows.grid), images[start : start + count])


def _correlate(a, images, windows: _Windows, groups: int, room, dw) -> None:
    """dw[o, c] = sum over all windows of a[o] images[c]."""
    n, outputs, size = len(a), len(dw), dw[0].size
    if windows.dense and groups == 1:
        a.reshape(n, outputs).T.dot(images.reshape(n, size), dw.reshape(outputs, size))
        return
    places, depth = windows.places, size * groups
    products = dw.reshape(groups, outputs // groups, size)
    per_time = _per_time(n, (depth + outputs) * places, a.itemsize)
    for start in range(0, n, per_time):
        part = images[start : start + per_time]
        count = len(part)
        columns = room[: depth * count * places]
        windows.fill(part, columns.reshape(-1, *windows.kernel, count, *windows.grid))
        factors = _by_channel(a[start : start + count], room[columns.size :])
        more = products if start == 0 else SCRATCH.take(a.dtype.char, products.shape)
        np.matmul(
            factors.reshape(groups, outputs // groups, -1),
            columns.reshape(groups, size, -1).transpose(0, 2, 1),
            more,
        )
        if start:
            np.add(products, more, products)


def _sum_channels(x: np.ndarray, sums: np.ndarray) -> None:
    """sums[c] = sum of x[n, c] over rows and places."""
    n, c = x.shape[:2]
    rows = SCRATCH.take(x.dtype.char, (n, c))
    np.add.reduce(x.reshape(n, c, -1), 2, out=rows)
    np.add.reduce(rows, 0, out=sums)


def conv2d_forward(
    x,
    w,
    b,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    y,
) -> None:
    """y = f(b + the sum over each window of x w)."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(x.shape[2:], y.shape[2:], w.shape[2:], strides, padding, dilation)
    _gather(x, w, windows, groups, b, activation, room, y)


def conv2d_backward(
    dy,
    x,
    w,
    y,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    da,
    dx,
    dw,
    db,
) -> None:
    """da = dy f'(y), and from it dx, dw and db."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(x.shape[2:], y.shape[2:], w.shape[2:], strides, padding, dilation)
    differentiate(dy, y, activation, da)
    _scatter(da, w, windows, groups, room, dx)
    _correlate(da, x, windows, groups, room, dw)
    _sum_channels(da, db)


def conv2d_input_grad(
    da,
    w,
    x,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    dx,
) -> None:
    """dx = f'(x) times the sum of da w over the windows that reach each place."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(dx.shape[2:], da.shape[2:], w.shape[2:], strides, padding, dilation)
    _scatter(da, w, windows, groups, room, dx)
    if activation and x.size:
        differentiate(dx, x, activation, dx)


def conv2d_weight_grad(
    x,
    da,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    dw,
    db,
) -> None:
    """dw = the sum over all windows of da x; db = that of da."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(x.shape[2:], da.shape[2:], dw.shape[2:], strides, padding, dilation)
    _correlate(da, x, windows, groups, room, dw)
    if db.size:
        _sum_channels(da, db)


def conv_transpose2d_forward(
    x,
    w,
    b,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    output_padding_h: int,
    output_padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    y,
) -> None:
    """y = f(b + the sum of x w over the windows, one for each element of x, that reach each place)."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(y.shape[2:], x.shape[2:], w.shape[2:], strides, padding, dilation)
    _scatter(x, w, windows, groups, room, y)
    if b.size:
        np.add(y, b[:, None, None], y)
    if activation:
        activate(y, activation, y)


def conv_transpose2d_backward(
    dy,
    x,
    w,
    y,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    output_padding_h: int,
    output_padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    da,
    dx,
    dw,
    db,
) -> None:
    """da = dy f'(y), and from it dx, dw and db."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(y.shape[2:], x.shape[2:], w.shape[2:], strides, padding, dilation)
    differentiate(dy, y, activation, da)
    _gather(da, w, windows, groups, _ABSENT[x.dtype.char], 0, room, dx)
    _correlate(x, da, windows, groups, room, dw)
    _sum_channels(da, db)


def conv_transpose2d_input_grad(
    da,
    w,
    x,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    output_padding_h: int,
    output_padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    dx,
) -> None:
    """dx = f'(x) times the sum over each window of da w: a convolution."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(da.shape[2:], dx.shape[2:], w.shape[2:], strides, padding, dilation)
    _gather(da, w, windows, groups, _ABSENT[da.dtype.char], 0, room, dx)
    if activation and x.size:
        differentiate(dx, x, activation, dx)


def conv_transpose2d_weight_grad(
    x,
    da,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    output_padding_h: int,
    output_padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    room,
    dw,
    db,
) -> None:
    """dw = the sum over all windows of x da; db = that of da."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _windows(da.shape[2:], x.shape[2:], dw.shape[2:], strides, padding, dilation)
    _correlate(x, da, windows, groups, room, dw)
    if db.size:
        _sum_channels(da, db)


# --- weights of an upsampling and a convolution in one ----------------------------------------------


def _spread(w: np.ndarray, factor_h: int, factor_w: int, v: np.ndarray) -> None:
    """v = w, each element added to a field of the factors."""
    kh, kw = w.shape[2:]
    v.fill(0)
    for a in range(factor_h):
        for b in range(factor_w):
            field = v[:, :, a : a + kh, b : b + kw]
            np.add(field, w, field)


def _collect(dv: np.ndarray, factor_h: int, factor_w: int, dw: np.ndarray) -> None:
    """dw = the sums of dv over the fields that its elements were added to."""
    kh, kw = dw.shape[2:]
    dw.fill(0)
    for a in range(factor_h):
        for b in range(factor_w):
            np.add(dw, dv[:, :, a : a + kh, b : b + kw], dw)


def upsample_conv2d_weight(w, factor_h: int, factor_w: int, v) -> None:
    """v = w turned by half a turn, each element added to a field of the factors."""
    _spread(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), factor_h, factor_w, v)


def upsample_conv2d_weight_grad(dv, factor_h: int, factor_w: int, dw) -> None:
    """dw = the sums of dv over the fields that its elements were added to."""
    _collect(dv, factor_h, factor_w, dw[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))


def upsample_conv_transpose2d_weight(w, factor_h: int, factor_w: int, v) -> None:
    """v = w, each element added to a field of the factors."""
    _spread(w, factor_h, factor_w, v)


def upsample_conv_transpose2d_weight_grad(dv, factor_h: int, factor_w: int, dw) -> None:
    """dw = the sums of dv over the fields that its elements were added to."""
    _collect(dv, factor_h, factor_w, dw)


# --- pooling -------------------------------------------------------------------------------------


def _largest(x: np.ndarray, windows: _Windows, y: np.ndarray, position: np.ndarray) -> None:
    """y = the largest number of each window, position = which element is the first such."""
    first = windows.elements[0]
    if first.inside:
        np.copyto(y, x[:, :, *first.image])
    else:
        y.fill(-np.inf)
    for e in windows.elements[1 if first.inside else 0 :]:
        part = y[:, :, *e.windows]
        np.maximum(part, x[:, :, *e.image], out=part)  # NaN is the largest
    if not position.size:
        return
    # Counted rather than chosen: the elements before the first that is the largest, in bytes if they fit.
    char = "B" if len(windows.elements) < 1 << 8 else "I"
    before = SCRATCH.take(char, y.shape)
    missed, differ, of_nan = SCRATCH.take("?", (3, *y.shape))
    np.not_equal(y, y, missed)
    nans = missed.any()
    missed.fill(True)
    before.fill(0)
    for e in windows.elements[:-1]:
        number, part = x[:, :, *e.image], differ[:, :, *e.windows]
        np.not_equal(number, y[:, :, *e.windows], part)
        if nans:
            equal = of_nan[:, :, *e.windows]
            np.equal(number, number, equal)
            np.logical_and(part, equal, part)
        still = missed[:, :, *e.windows]
        np.logical_and(still, part, still)
        np.add(before, missed, before)
    np.copyto(position, before)


def max_pool2d_forward(
    x,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    y,
    position,
) -> None:
    """y = the largest number of each window, position = where in the window the first such stands."""
    kernel, strides, padding = (kernel_h, kernel_w), (stride_h, stride_w), (padding_top, padding_left)
    _largest(x, _windows(x.shape[2:], y.shape[2:], kernel, strides, padding, (1, 1)), y, position)


def max_pool2d_backward(
    dy,
    position,
    y,
    activation: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dx,
) -> None:
    """dx = dy f'(y) at the place each y came from; y and what it came from are one number."""
    kernel, strides, padding = (kernel_h, kernel_w), (stride_h, stride_w), (padding_top, padding_left)
    windows = _windows(dx.shape[2:], dy.shape[2:], kernel, strides, padding, (1, 1))
    char = dx.dtype.char
    bits = BITS[char]
    slope, part = dy, SCRATCH.take(char, (2, *dy.shape))[1]
    if activation and y.size:
        # The room that differentiate works in is that of the slope, where it may write.
        slope = SCRATCH.take(char, (2, *dy.shape))[1]
        differentiate(dy, y, activation, slope)
        part = SCRATCH.take(char, (2, *dy.shape))[0]
    chosen, here = part.view(bits), SCRATCH.take("?", dy.shape)
    dx.fill(0)
    for e in windows.elements:
        np.equal(position, e.u * kernel_w + e.v, here)
        # The bits of the slope times 0 or 1: an infinite one leaves nothing where it is not.
        np.copyto(chosen, here)
        np.multiply(slope.view(bits), chosen, chosen)
        target = dx[:, :, *e.image]
        if windows.apart:
            np.copyto(target, part[:, :, *e.windows])
        else:
            np.add(target, part[:, :, *e.windows], target)


def conv2d_max_pool2d_forward(
    x,
    w,
    b,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    pool_h: int,
    pool_w: int,
    room,
    y,
    position,
) -> None:
    """y = the largest of pool_h pool_w numbers of a convolution, position = which."""
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    pool = (pool_h, pool_w)
    height = x.shape[2] + padding_top + padding_bottom - dilation_h * (w.shape[2] - 1) - 1
    width = x.shape[3] + padding_left + padding_right - dilation_w * (w.shape[3] - 1) - 1
    grid = (height // stride_h + 1, width // stride_w + 1)
    windows = _windows(x.shape[2:], grid, w.shape[2:], strides, padding, dilation)
    pooling = _windows(grid, y.shape[2:], pool, pool, (0, 0), (1, 1))

    def take(start: int, found: np.ndarray) -> None:
        stop = start + len(found)
        _largest(found, pooling, y[start:stop], position[start:stop])

    _gather(x, w, windows, groups, b, activation, room, None, take)


def conv2d_max_pool2d_weight_grad(
    x,
    dy,
    position,
    y,
    activation: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    pool_h: int,
    pool_w: int,
    room,
    da,
    dw,
    db,
) -> None:
    """dw = the sum over all windows of da x, db = that of da, with dy f'(y) as da where each y came from."""
    max_pool2d_backward(dy, position, y, activation, pool_h, pool_w, pool_h, pool_w, 0, 0, 0, 0, da)
    geometry = (
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        dilation_h,
        dilation_w,
        groups,
    )
    conv2d_weight_grad(x, da, *geometry, room, dw, db)


def _in_each(windows: _Windows, count_include_pad: int, char: str):
    """Count what a mean is over, for each window or for all."""
    return windows.kernel[0] * windows.kernel[1] if count_include_pad else windows.counts(char)


def avg_pool2d_forward(
    x,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    count_include_pad: int,
    y,
) -> None:
    """y = the mean of each window."""
    kernel, strides, padding = (kernel_h, kernel_w), (stride_h, stride_w), (padding_top, padding_left)
    windows = _windows(x.shape[2:], y.shape[2:], kernel, strides, padding, (1, 1))
    y.fill(0)
    for e in windows.elements:
        part = y[:, :, *e.windows]
        np.add(part, x[:, :, *e.image], part)
    np.divide(y, _in_each(windows, count_include_pad, y.dtype.char), y)


def avg_pool2d_backward(
    dy,
    x,
    activation: int,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_top: int,
    padding_left: int,
    padding_bottom: int,
    padding_right: int,
    count_include_pad: int,
    dx,
) -> None:
    """dx = f'(x) times the sum of dy / count over the windows that reach each place."""
    kernel, strides, padding = (kernel_h, kernel_w), (stride_h, stride_w), (padding_top, padding_left)
    windows = _windows(dx.shape[2:], dy.shape[2:], kernel, strides, padding, (1, 1))
    share = SCRATCH.take(dy.dtype.char, dy.shape)
    np.divide(dy, _in_each(windows, count_include_pad, dy.dtype.char), share)
    dx.fill(0)
    for e in windows.elements:
        target = dx[:, :, *e.image]
        np.add(target, share[:, :, *e.windows], target)
    if activation and x.size:
        differentiate(dx, x, activation, dx)


# --- upsampling ----------------------------------------------------------------------------------


def upsample2d_forward(x, factor_h: int, factor_w: int, y) -> None:
    """y[p, q] = x[p // factor_h, q // factor_w]."""
    n, c, height, _ = x.shape
    rows = y.reshape(n, c, height, factor_h, -1)
    for b in range(factor_w):
        np.copyto(rows[:, :, :, 0, b::factor_w], x)
    np.copyto(rows[:, :, :, 1:], rows[:, :, :, :1])


def upsample2d_backward(dy, x, activation: int, factor_h: int, factor_w: int, dx) -> None:
    """dx = f'(x) times the sum of dy over what each place was repeated to."""
    n, c, height, width = dx.shape
    rows = dy.reshape(n, c, height, factor_h, -1)
    sums = SCRATCH.take(dy.dtype.char, (n, c, height, width * factor_w))
    np.copyto(sums, rows[:, :, :, 0])
    for a in range(1, factor_h):
        np.add(sums, rows[:, :, :, a], sums)
    np.copyto(dx, sums[..., ::factor_w])
    for b in range(1, factor_w):
        np.add(dx, sums[..., b::factor_w], dx)
    if activation and x.size:
        differentiate(dx, x, activation, dx)


# --- batch normalisation -------------------------------------------------------------------------


def batchnorm2d_forward(
    x,
    gamma,
    beta,
    activation: int,
    epsilon: float,
    momentum: float,
    running_mean,
    running_var,
    y,
    mean,
    inv_std,
) -> None:
    """y = f(gamma (x - mean) inv_std + beta), with the mean and the variance of each channel."""
    n, c = x.shape[:2]
    char, count = x.dtype.char, x.size // c
    images, found = x.reshape(n, c, -1), y.reshape(n, c, -1)
    _sum_channels(x, mean)
    np.divide(mean, count, mean)
    np.subtract(images, mean[:, None], found)
    # As in batchnorm_forward: the sum of what a long sum of large numbers left is what it erred by.
    _sum_channels(y, inv_std)
    np.divide(inv_std, count, inv_std)
    np.add(mean, inv_std, mean)
    np.subtract(found, inv_std[:, None], found)
    # A dot product of each image's channel with itself: the squares are stored nowhere.
    rows = SCRATCH.take(char, (n, c))
    np.matmul(found[:, :, None, :], found[:, :, :, None], rows[:, :, None, None])
    np.add.reduce(rows, 0, out=inv_std)

    row = rows[0]
    np.subtract(mean, running_mean, row)
    np.multiply(row, momentum, row)
    np.add(running_mean, row, running_mean)
    np.divide(inv_std, max(count - 1, 1), row)
    np.subtract(row, running_var, row)
    np.multiply(row, momentum, row)
    np.add(running_var, row, running_var)

    np.divide(inv_std, count, inv_std)
    np.add(inv_std, epsilon, inv_std)
    np.sqrt(inv_std, inv_std)
    np.divide(ONE[char], inv_std, inv_std)
    np.multiply(gamma, inv_std, row)
    np.multiply(found, row[:, None], found)
    np.add(found, beta[:, None], found)
    if activation:
        activate(y, activation, y)


def batchnorm2d_inference(
    x, gamma, beta, running_mean, running_var, activation: int, epsilon: float, y
) -> None:
    """y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    n, c = x.shape[:2]
    found, scale = y.reshape(n, c, -1), SCRATCH.take(x.dtype.char, gamma.shape)
    np.add(running_var, epsilon, scale)
    np.sqrt(scale, scale)
    np.divide(gamma, scale, scale)
    np.subtract(x.reshape(n, c, -1), running_mean[:, None], found)
    np.multiply(found, scale[:, None], found)
    np.add(found, beta[:, None], found)
    if activation:
        activate(y, activation, y)


def batchnorm2d_backward(dy, x, gamma, y, mean, inv_std, activation: int, dx, dgamma, dbeta) -> None:
    """dx = gamma inv_std (da - dbeta / count - h dgamma / count), da = dy f'(y), h = (x - mean) inv_std."""
    n, c = x.shape[:2]
    count = x.size // c
    da = dy
    if activation:
        differentiate(dy, y, activation, dx)
        da = dx
    _sum_channels(da, dbeta)
    room = SCRATCH.take(x.dtype.char, (x.size + n * c,))
    h, rows = room[: x.size].reshape(n, c, -1), room[x.size :].reshape(n, c)
    along, result = da.reshape(n, c, -1), dx.reshape(n, c, -1)
    np.subtract(x.reshape(n, c, -1), mean[:, None], h)
    np.multiply(h, inv_std[:, None], h)
    np.matmul(along[:, :, None, :], h[:, :, :, None], rows[:, :, None, None])
    np.add.reduce(rows, 0, out=dgamma)
    row = rows[0]
    np.divide(dgamma, count, row)
    np.multiply(h, row[:, None], h)
    np.divide(dbeta, count, row)
    np.subtract(along, row[:, None], result)
    np.subtract(result, h, result)
    np.multiply(gamma, inv_std, row)
    np.multiply(result, row[:, None], result)


# --- images and rows -----------------------------------------------------------------------------


def images_from_rows(x, y) -> None:
    """y = x, the numbers of a row as channels, rows and columns."""
    np.copyto(y, x.reshape(y.shape))


def rows_from_images(x, y) -> None:
    """y = x, the numbers of an image as a row."""
    np.copyto(y.reshape(x.shape), x)
