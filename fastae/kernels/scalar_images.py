"""The kernels on images in plain Python loops; ``scalar.py`` has the others and says how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastae.kernels.scalar_maths import ACTIVATIONS, GRADIENTS, divide, root

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

_ABSENT = memoryview(b"")


# --- geometry ------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    """Where windows of (height, width) lie on an image; every pair is one for height and width."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # above and at the left
    dilation: tuple[int, int] = (1, 1)

    def at(self, p: int, q: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (u, v, i, j): element (u, v) of the window (p, q) is element (i, j), inside the image."""
        top = p * self.stride[0] - self.padding[0]
        left = q * self.stride[1] - self.padding[1]
        for u in range(self.kernel[0]):
            i = top + u * self.dilation[0]
            if 0 <= i < self.image[0]:
                for v in range(self.kernel[1]):
                    j = left + v * self.dilation[1]
                    if 0 <= j < self.image[1]:
                        yield u, v, i, j


def _places(image) -> Iterator[tuple[int, int]]:
    """Yield the places of an image [n, c, h, w], row by row."""
    height, width = image.shape[2:]
    for i in range(height):
        for j in range(width):
            yield i, j


# --- convolution ---------------------------------------------------------------------------------
#
# Three loops over the same pairs of an output and an input element, which differ in what is summed. A
# transposed convolution is the gradient of a convolution's input: what it reads are a convolution's outputs.


def _gather(x, w, windows: _Windows, groups: int, b, activation: int, y) -> None:
    """y[o] = f(b + sum over the window of x[c] w[o, c])."""
    f = ACTIVATIONS[activation]
    outputs, inputs = w.shape[:2]
    for n in range(len(x)):
        for o in range(outputs):
            first = o // (outputs // groups) * inputs
            for p, q in _places(y):
                total = 0.0
                for c in range(inputs):
                    for u, v, i, j in windows.at(p, q):
                        total += x[n, first + c, i, j] * w[o, c, u, v]
                if len(b):
                    total += b[o]
                y[n, o, p, q] = f(total)


def _scatter(a, w, windows: _Windows, groups: int) -> Iterator[tuple[int, int, int, int, float]]:
    """Yield (n, c, i, j, sum of a[o] w[o, c] over the windows that reach (i, j)); one of `a` for each."""
    outputs, inputs = w.shape[:2]
    height, width = windows.image
    each = outputs // groups
    for n in range(len(a)):
        for c in range(inputs * groups):
            group, within = divmod(c, inputs)
            sums = [[0.0] * width for _ in range(height)]
            for o in range(group * each, (group + 1) * each):
                for p, q in _places(a):
                    for u, v, i, j in windows.at(p, q):
                        sums[i][j] += a[n, o, p, q] * w[o, within, u, v]
            for i in range(height):
                for j in range(width):
                    yield n, c, i, j, sums[i][j]


def _correlate(a, x, windows: _Windows, groups: int, dw) -> None:
    """dw[o, c] = sum over all windows of a[o] x[c]."""
    outputs, inputs, kh, kw = dw.shape
    for o in range(outputs):
        first = o // (outputs // groups) * inputs
        for c in range(inputs):
            sums = [[0.0] * kw for _ in range(kh)]
            for n in range(len(a)):
                for p, q in _places(a):
                    for u, v, i, j in windows.at(p, q):
                        sums[u][v] += a[n, o, p, q] * x[n, first + c, i, j]
            for u in range(kh):
                for v in range(kw):
                    dw[o, c, u, v] = sums[u][v]


def _sum_channels(da, db) -> None:
    """db[o] = sum of da[n, o] over rows and places."""
    for o in range(len(db)):
        total = 0.0
        for n in range(len(da)):
            for p, q in _places(da):
                total += da[n, o, p, q]
        db[o] = total


def _differentiate(dy, y, activation: int, dx) -> None:
    """dx = dy f'(y)."""
    gradient = GRADIENTS[activation]
    for n in range(len(dy)):
        for c in range(dy.shape[1]):
            for i, j in _places(dy):
                dx[n, c, i, j] = gradient(dy[n, c, i, j], y[n, c, i, j])


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
    windows = _Windows(x.shape[2:], w.shape[2:], strides, padding, dilation)
    _gather(x, w, windows, groups, b, activation, y)


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
    _differentiate(dy, y, activation, da)
    conv2d_input_grad(da, w, _ABSENT, 0, *geometry, room, dx)
    conv2d_weight_grad(x, da, *geometry, room, dw, db)


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
    gradient = GRADIENTS[activation]
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _Windows(dx.shape[2:], w.shape[2:], strides, padding, dilation)
    saved = len(x) > 0
    for n, c, i, j, total in _scatter(da, w, windows, groups):
        dx[n, c, i, j] = gradient(total, x[n, c, i, j]) if saved else total


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
    _correlate(da, x, _Windows(x.shape[2:], dw.shape[2:], strides, padding, dilation), groups, dw)
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
    f = ACTIVATIONS[activation]
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _Windows(y.shape[2:], w.shape[2:], strides, padding, dilation)
    for n, o, p, q, total in _scatter(x, w, windows, groups):
        y[n, o, p, q] = f(total + b[o] if len(b) else total)


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
    geometry = (
        stride_h,
        stride_w,
        padding_top,
        padding_left,
        padding_bottom,
        padding_right,
        output_padding_h,
        output_padding_w,
        dilation_h,
        dilation_w,
        groups,
    )
    _differentiate(dy, y, activation, da)
    conv_transpose2d_input_grad(da, w, _ABSENT, 0, *geometry, room, dx)
    conv_transpose2d_weight_grad(x, da, *geometry, room, dw, db)


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
    windows = _Windows(da.shape[2:], w.shape[2:], strides, padding, dilation)
    _gather(da, w, windows, groups, _ABSENT, 0, dx)
    if len(x):
        _differentiate(dx, x, activation, dx)


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
    _correlate(x, da, _Windows(da.shape[2:], dw.shape[2:], strides, padding, dilation), groups, dw)
    _sum_channels(da, db)


# --- weights of an upsampling and a convolution in one ----------------------------------------------


def upsample_conv2d_weight(w, factor_h: int, factor_w: int, v) -> None:
    """v = w turned by half a turn, each element added to a field of the factors."""
    outputs, inputs, kh, kw = w.shape
    for o in range(outputs):
        for c in range(inputs):
            for p, q in _places(v):
                total = 0.0
                for a in range(factor_h):
                    for b in range(factor_w):
                        if 0 <= p - a < kh and 0 <= q - b < kw:
                            total += w[o, c, kh - 1 - (p - a), kw - 1 - (q - b)]
                v[c, o, p, q] = total


def upsample_conv2d_weight_grad(dv, factor_h: int, factor_w: int, dw) -> None:
    """dw = the sums of dv over the fields that its elements were added to."""
    outputs, inputs, kh, kw = dw.shape
    for o in range(outputs):
        for c in range(inputs):
            for u, v in _places(dw):
                total = 0.0
                for a in range(factor_h):
                    for b in range(factor_w):
                        total += dv[c, o, kh - 1 - u + a, kw - 1 - v + b]
                dw[o, c, u, v] = total


def upsample_conv_transpose2d_weight(w, factor_h: int, factor_w: int, v) -> None:
    """v = w, each element added to a field of the factors."""
    inputs, outputs, kh, kw = w.shape
    for c in range(inputs):
        for o in range(outputs):
            for p, q in _places(v):
                total = 0.0
                for a in range(factor_h):
                    for b in range(factor_w):
                        if 0 <= p - a < kh and 0 <= q - b < kw:
                            total += w[c, o, p - a, q - b]
                v[c, o, p, q] = total


def upsample_conv_transpose2d_weight_grad(dv, factor_h: int, factor_w: int, dw) -> None:
    """dw = the sums of dv over the fields that its elements were added to."""
    inputs, outputs = dw.shape[:2]
    for c in range(inputs):
        for o in range(outputs):
            for u, v in _places(dw):
                total = 0.0
                for a in range(factor_h):
                    for b in range(factor_w):
                        total += dv[c, o, u + a, v + b]
                dw[c, o, u, v] = total


# --- pooling -------------------------------------------------------------------------------------


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
    padding = (padding_top, padding_left)
    windows = _Windows(x.shape[2:], (kernel_h, kernel_w), (stride_h, stride_w), padding)
    for n in range(len(x)):
        for c in range(x.shape[1]):
            for p, q in _places(y):
                top, place = None, 0
                for u, v, i, j in windows.at(p, q):
                    value = x[n, c, i, j]
                    if top is None or value > top or (value != value and top == top):  # NaN is the largest
                        top, place = value, u * kernel_w + v
                y[n, c, p, q] = top
                if len(position):
                    position[n, c, p, q] = place


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
    gradient = GRADIENTS[activation]
    padding = (padding_top, padding_left)
    windows = _Windows(dx.shape[2:], (kernel_h, kernel_w), (stride_h, stride_w), padding)
    height, width = dx.shape[2:]
    for n in range(len(dy)):
        for c in range(dy.shape[1]):
            sums = [[0.0] * width for _ in range(height)]
            for p, q in _places(dy):
                slope = gradient(dy[n, c, p, q], y[n, c, p, q]) if len(y) else dy[n, c, p, q]
                for u, v, i, j in windows.at(p, q):
                    if position[n, c, p, q] == u * kernel_w + v:
                        sums[i][j] += slope
            for i in range(height):
                for j in range(width):
                    dx[n, c, i, j] = sums[i][j]


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
    f = ACTIVATIONS[activation]
    strides, padding, dilation = (stride_h, stride_w), (padding_top, padding_left), (dilation_h, dilation_w)
    windows = _Windows(x.shape[2:], w.shape[2:], strides, padding, dilation)
    outputs, inputs = w.shape[:2]
    for n in range(len(x)):
        for o in range(outputs):
            first = o // (outputs // groups) * inputs
            for p, q in _places(y):
                top, place = None, 0
                for k in range(pool_h * pool_w):
                    total = 0.0
                    for c in range(inputs):
                        for u, v, i, j in windows.at(p * pool_h + k // pool_w, q * pool_w + k % pool_w):
                            total += x[n, first + c, i, j] * w[o, c, u, v]
                    value = f(total + b[o] if len(b) else total)
                    if top is None or value > top or (value != value and top == top):
                        top, place = value, k
                y[n, o, p, q] = top
                if len(position):
                    position[n, o, p, q] = place


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
    padding = (padding_top, padding_left)
    windows = _Windows(x.shape[2:], (kernel_h, kernel_w), (stride_h, stride_w), padding)
    for n in range(len(x)):
        for c in range(x.shape[1]):
            for p, q in _places(y):
                total, count = 0.0, 0
                for _u, _v, i, j in windows.at(p, q):
                    total += x[n, c, i, j]
                    count += 1
                y[n, c, p, q] = total / (kernel_h * kernel_w if count_include_pad else count)


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
    gradient = GRADIENTS[activation]
    padding = (padding_top, padding_left)
    windows = _Windows(dx.shape[2:], (kernel_h, kernel_w), (stride_h, stride_w), padding)
    height, width = dx.shape[2:]
    for n in range(len(dy)):
        for c in range(dy.shape[1]):
            sums = [[0.0] * width for _ in range(height)]
            for p, q in _places(dy):
                inside = list(windows.at(p, q))
                each = dy[n, c, p, q] / (kernel_h * kernel_w if count_include_pad else len(inside))
                for _u, _v, i, j in inside:
                    sums[i][j] += each
            for i in range(height):
                for j in range(width):
                    dx[n, c, i, j] = gradient(sums[i][j], x[n, c, i, j]) if len(x) else sums[i][j]


# --- upsampling ----------------------------------------------------------------------------------


def upsample2d_forward(x, factor_h: int, factor_w: int, y) -> None:
    """y[p, q] = x[p // factor_h, q // factor_w]."""
    for n in range(len(x)):
        for c in range(x.shape[1]):
            for p, q in _places(y):
                y[n, c, p, q] = x[n, c, p // factor_h, q // factor_w]


def upsample2d_backward(dy, x, activation: int, factor_h: int, factor_w: int, dx) -> None:
    """dx = f'(x) times the sum of dy over what each place was repeated to."""
    gradient = GRADIENTS[activation]
    for n in range(len(dx)):
        for c in range(dx.shape[1]):
            for i, j in _places(dx):
                total = 0.0
                for a in range(factor_h):
                    for b in range(factor_w):
                        total += dy[n, c, i * factor_h + a, j * factor_w + b]
                dx[n, c, i, j] = gradient(total, x[n, c, i, j]) if len(x) else total


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
    f = ACTIVATIONS[activation]
    rows = range(len(x))
    count = len(x) * x.shape[2] * x.shape[3]
    for c in range(x.shape[1]):
        average = 0.0
        for n in rows:
            for i, j in _places(x):
                average += x[n, c, i, j]
        average /= count
        variance = 0.0
        for n in rows:
            for i, j in _places(x):
                deviation = x[n, c, i, j] - average
                variance += deviation * deviation
        variance /= count
        scale = divide(1.0, root(variance + epsilon))
        for n in rows:
            for i, j in _places(x):
                y[n, c, i, j] = f(gamma[c] * (x[n, c, i, j] - average) * scale + beta[c])
        mean[c] = average
        inv_std[c] = scale
        unbiased = variance * count / max(count - 1, 1)
        running_mean[c] += momentum * (average - running_mean[c])
        running_var[c] += momentum * (unbiased - running_var[c])


def batchnorm2d_inference(
    x, gamma, beta, running_mean, running_var, activation: int, epsilon: float, y
) -> None:
    """y = f(gamma (x - running_mean) / sqrt(running_var + epsilon) + beta)."""
    f = ACTIVATIONS[activation]
    for c in range(x.shape[1]):
        scale = divide(gamma[c], root(running_var[c] + epsilon))
        for n in range(len(x)):
            for i, j in _places(x):
                y[n, c, i, j] = f(scale * (x[n, c, i, j] - running_mean[c]) + beta[c])


def batchnorm2d_backward(dy, x, gamma, y, mean, inv_std, activation: int, dx, dgamma, dbeta) -> None:
    """dx = gamma inv_std (da - dbeta / count - h dgamma / count), da = dy f'(y), h = (x - mean) inv_std."""
    gradient = GRADIENTS[activation]
    rows = range(len(x))
    count = len(x) * x.shape[2] * x.shape[3]
    for c in range(x.shape[1]):
        total = 0.0  # of da
        along = 0.0  # of da h
        for n in rows:
            for i, j in _places(x):
                da = gradient(dy[n, c, i, j], y[n, c, i, j])
                total += da
                along += da * ((x[n, c, i, j] - mean[c]) * inv_std[c])
        for n in rows:
            for i, j in _places(x):
                da = gradient(dy[n, c, i, j], y[n, c, i, j])
                h = (x[n, c, i, j] - mean[c]) * inv_std[c]
                dx[n, c, i, j] = gamma[c] * inv_std[c] * (da - total / count - h * along / count)
        dgamma[c] = along
        dbeta[c] = total


# --- images and rows -----------------------------------------------------------------------------


def images_from_rows(x, y) -> None:
    """y = x, the numbers of a row as channels, rows and columns."""
    height, width = y.shape[2:]
    for n in range(len(y)):
        for c in range(y.shape[1]):
            for i, j in _places(y):
                y[n, c, i, j] = x[n, (c * height + i) * width + j]


def rows_from_images(x, y) -> None:
    """y = x, the numbers of an image as a row."""
    height, width = x.shape[2:]
    for n in range(len(x)):
        for c in range(x.shape[1]):
            for i, j in _places(x):
                y[n, (c * height + i) * width + j] = x[n, c, i, j]
