"""The ops of image layers, and which of them are computed in one.

An op reads and writes images [n, c, h, w]; `_Lowering.face` gives it that face of what it reads. Where
a max-pooling follows a convolution, or a convolution an upsampling, `chained` makes one op of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastae.graph import Op, Operand, Value, build, fused_note
from fastae.layers import AvgPool2D, Conv2D, ConvTranspose2D, MaxPool2D, Upsample2D
from fastae.network import Placed
from fastae.program import Slot

if TYPE_CHECKING:
    from fastae.lowering import _Lowering

__all__ = ["chained"]

#: Most elements of a window of the pooling that is computed with the convolution before it.
_MOST_POOLED = 16

#: Filters, sums in registers and sums in all that the gradient of a weight goes on with at once, as
#: compiled/correlate.h has them for AVX-512. With fewer registers what is made as read may be made again.
_ROWS, _TILE, _SUMS = 8, 24, 224

#: Places of a channel with its margin, and elements of the kernel, for which it may come image by image
#: instead, as compiled/image_zeros.h has them for AVX-512.
_FIELD, _TAPS = 256, 32


class ConvOp(Op):
    """y = f(b + the convolution of x and w), or the transposed one."""

    def __init__(self, to: _Lowering, placed: Placed, layer: Conv2D | ConvTranspose2D, x: Value) -> None:
        self.name, self.trainable, self.kernel = placed.name, layer.trainable, layer.kind
        self.w = to.slots[f"{placed.name}.weight"]
        self.b = to.slots[f"{placed.name}.bias"] if layer.use_bias else None
        self.shape, self.geometry = placed.input_shape, layer.geometry(placed.input_shape)
        self.inputs = (x,)

    def weight(self, to: _Lowering) -> Slot:
        """Return what the kernels take for a weight."""
        return self.w

    def input(self, to: _Lowering) -> Slot:
        """Where the images it reads are."""
        return to.face(to.place(self.inputs[0]), self.shape)

    def convolve_back(self, to: _Lowering, da: Slot, weight: bool = True) -> None:
        """Emit the gradients from that of the convolution before its activation."""
        (x,) = self.inputs
        if x.needs_gradient:
            f = x.fusable
            dx = to.gradient_slot(x, self.name, self.shape, fused=True)
            saved = self.input(to) if f != "linear" else None
            kernel, w = f"{self.kernel}_input_grad", self.weight(to)
            to.emit(kernel, fused_note(x, f), da=da, w=w, x=saved, activation=f, dx=dx, **self.geometry)
        if self.trainable and weight:
            self.weight_grad(to, da)

    def gradients(self, to: _Lowering) -> tuple[Slot, Slot | None]:
        """Where the gradients of weight and bias are."""
        return to.gradient_of[self.w.name], None if self.b is None else to.gradient_of[self.b.name]

    def weight_grad(self, to: _Lowering, da: Slot) -> None:
        """Emit the gradients of weight and bias."""
        dw, db = self.gradients(to)
        self.emit_weight_grad(to, f"{self.kernel}_weight_grad", "", da=da, dw=dw, db=db)

    def emit_weight_grad(self, to: _Lowering, kernel: str, note: str, **operands: Operand) -> None:
        """Emit a sum over images, with room for that of one half of them, if each half is worth a thread.

        Of images of one place, made or pooled, there is little to read, and the product of matrices is one.
        """
        x, dw = self.input(to), operands["dw"]
        windows = operands.get("da") or operands["dy"] if self.kernel == "conv2d" else x
        assert isinstance(windows, Slot)
        assert isinstance(dw, Slot)
        several = to.batch_size > to.unit and math.prod(windows.shape[2:]) > 1
        channels = max(dw.shape[0], dw.shape[1] * int(self.geometry["groups"]))
        to.emit(
            kernel, note, {"room": dw.size + channels} if several else {}, x=x, **operands, **self.geometry
        )


class PlainConvOp(ConvOp):
    """A convolution by itself."""

    def __init__(self, to: _Lowering, placed: Placed, layer: Conv2D | ConvTranspose2D, x: Value) -> None:
        super().__init__(to, placed, layer, x)
        self.output = to.value(placed.name, placed.output_shape, [x], layer.activation, layer.trainable)

    def forward(self, to: _Lowering) -> None:
        y, f = self.output, to.activation(self.output)
        note = f"{f} fused" if f != "linear" else ""
        x, w = self.input(to), self.weight(to)
        to.emit(f"{self.kernel}_forward", note, x=x, w=w, b=self.b, activation=f, y=y.slot, **self.geometry)

    def backward(self, to: _Lowering, da: Slot) -> None:
        self.convolve_back(to, to.face(da, self.output.slot.shape[1:]))


class UpsampleConvOp(PlainConvOp):
    """An upsampling and a convolution: a transposed convolution whose stride is the factor."""

    def __init__(
        self, to: _Lowering, upsample: Placed, placed: Placed, layer: Conv2D | ConvTranspose2D, x: Value
    ) -> None:
        super().__init__(to, placed, layer, x)
        self.make = f"upsample_{self.kernel}_weight"
        before = upsample.layer
        assert isinstance(before, Upsample2D)
        self.factors = before.geometry(upsample.input_shape)
        self.shape = upsample.input_shape
        composed = composed_layer(before, layer, placed)
        assert composed is not None
        self.kernel, self.geometry = composed.kind, composed.geometry(self.shape)
        kh, kw = composed.kernel_size  # type: ignore[misc]
        self.v = to.slot(f"{self.name}.composed", (self.shape[0], layer.filters, kh, kw))
        self.both = f"{upsample.name} and {self.name}"

    def weight(self, to: _Lowering) -> Slot:
        return self.v

    def forward(self, to: _Lowering) -> None:
        to.emit(self.make, f"{self.both} as one transposed convolution", w=self.w, v=self.v, **self.factors)
        super().forward(to)

    def weight_grad(self, to: _Lowering, da: Slot) -> None:
        dw, db = self.gradients(to)
        dv = to.slot(f"{self.name}.composed.grad", self.v.shape)
        self.emit_weight_grad(to, f"{self.kernel}_weight_grad", "", da=da, dw=dv, db=db)
        to.emit(f"{self.make}_grad", f"back to the weight of {self.name}", dv=dv, dw=dw, **self.factors)


class PooledConvOp(ConvOp):
    """A convolution, its activation and a max-pooling of windows side by side."""

    def __init__(self, to: _Lowering, placed: Placed, layer: Conv2D, pooling: Placed, x: Value) -> None:
        super().__init__(to, placed, layer, x)
        assert isinstance(pooling.layer, MaxPool2D)
        self.f, self.whole = layer.activation, placed.output_shape
        geometry = pooling.layer.geometry(placed.output_shape)
        self.pool = {f"pool_{end}": geometry[f"kernel_{end}"] for end in ("h", "w")}
        self.pooling = geometry
        # Its activation is differentiated with the pooling: nobody has to fuse it.
        self.output = to.value(pooling.name, pooling.output_shape, [x], trainable=layer.trainable)
        self.output.nonnegative = to.is_nonnegative(self.f)
        self.position = to.slot(f"{pooling.name}.position", self.output.slot.shape, batched=True)
        self.what = f"{layer.activation} and {pooling.name}" if self.f != "linear" else pooling.name

    def forward(self, to: _Lowering) -> None:
        x, y = self.input(to), self.output.slot
        to.emit(
            "conv2d_max_pool2d_forward",
            f"{self.what} fused",
            x=x,
            w=self.w,
            b=self.b,
            activation=self.f,
            y=y,
            position=self.position if to.mode == "train" else None,
            **self.geometry,
            **self.pool,
        )

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,), y = self.inputs, self.output
        note = f"derivative of {self.name}'s {self.f} fused" if self.f != "linear" else ""
        back: dict[str, Operand] = {
            "dy": to.face(da, y.slot.shape[1:]),
            "position": self.position,
            "y": y.slot if self.f != "linear" else None,
            "activation": self.f,
        }
        fused = to.padded and self._reads_windows(to, x)
        if x.needs_gradient or not fused:
            whole = to.slot(f"{self.name}.da", (to.batch_size, *self.whole), batched=True)
            to.emit("max_pool2d_backward", note, dx=whole, **back, **self.pooling)
            self.convolve_back(to, whole, weight=not fused)
        if self.trainable and fused:
            dw, db = self.gradients(to)
            kernel = "conv2d_max_pool2d_weight_grad"
            self.emit_weight_grad(to, kernel, note, dw=dw, db=db, **back, **self.pool)

    def _reads_windows(self, to: _Lowering, x: Value) -> bool:
        """Whether the gradient of the weight is made from the windows, not from what they were made of.

        Either it is its one reader, who lays that out as it goes, and but once; or it comes image by image,
        with channels side by side, and reads the largest number of each window and no other.
        """
        filters, channels, kh, kw = self.w.shape
        rows = min(filters // int(self.geometry["groups"]), _ROWS)
        once = rows * (channels if channels > 1 else kw) <= _TILE and rows * channels * kh * kw <= _SUMS
        _, height, width = self.whole
        pool_h, pool_w = int(self.pool["pool_h"]), int(self.pool["pool_w"])
        field = math.prod(
            (size - 1) * int(self.geometry[f"stride_{end}"])
            + int(self.geometry[f"dilation_{end}"]) * (kernel - 1)
            + 1
            for end, size, kernel in (("h", height, kh), ("w", width, kw))
        )
        by_image = pool_h * pool_w >= 4 and channels >= to.unit and kh * kw <= _TAPS and kw <= 8
        all_pooled = height % pool_h == width % pool_w == 0
        return all_pooled and ((by_image and field <= _FIELD) or (once and not x.needs_gradient))


class WindowOp(Op):
    """Pooling or upsampling."""

    def __init__(self, to: _Lowering, placed: Placed, layer: MaxPool2D | AvgPool2D | Upsample2D, x: Value):
        self.name, self.kernel = placed.name, layer.kind
        self.shape, self.geometry = placed.input_shape, layer.geometry(placed.input_shape)
        self.inputs = (x,)
        self.output = to.value(placed.name, placed.output_shape, [x])
        self.output.nonnegative = x.nonnegative
        self.position: Slot | None = None
        if isinstance(layer, MaxPool2D):
            self.position = to.slot(f"{placed.name}.position", self.output.slot.shape, batched=True)

    def forward(self, to: _Lowering) -> None:
        x = to.face(to.place(self.inputs[0]), self.shape)
        more: dict[str, Operand] = {}
        if self.position is not None and to.mode == "train":
            more["position"] = self.position
        to.emit(f"{self.kernel}_forward", "", x=x, y=self.output.slot, **more, **self.geometry)

    def backward(self, to: _Lowering, da: Slot) -> None:
        (x,), y = self.inputs, self.output.slot
        f = x.fusable
        dx = to.gradient_slot(x, self.name, self.shape, fused=True)
        saved: dict[str, Operand] = {"x": None if f == "linear" else to.face(to.place(x), self.shape)}
        if self.position is not None:  # the largest number and what it came from are one
            saved = {"y": None if f == "linear" else y, "position": self.position}
        dy, note = to.face(da, y.shape[1:]), fused_note(x, f)
        to.emit(f"{self.kernel}_backward", note, dy=dy, activation=f, dx=dx, **saved, **self.geometry)


@build.register(Conv2D)
@build.register(ConvTranspose2D)
def _(layer: Conv2D | ConvTranspose2D, to: _Lowering, placed: Placed, x: Value) -> Value:
    return to.add(PlainConvOp(to, placed, layer, x))


@build.register(MaxPool2D)
@build.register(AvgPool2D)
@build.register(Upsample2D)
def _(layer: MaxPool2D | AvgPool2D | Upsample2D, to: _Lowering, placed: Placed, x: Value) -> Value:
    return to.add(WindowOp(to, placed, layer, x))


# -- two in one ----------------------------------------------------------------------------------------


def composed_layer(
    upsample: Upsample2D, layer: Conv2D | ConvTranspose2D, placed: Placed
) -> ConvTranspose2D | None:
    """Return the transposed convolution that both are; None where there is none or it costs more."""
    geometry = layer.geometry(placed.input_shape)
    ones = ("stride_h", "stride_w", "dilation_h", "dilation_w", "groups")
    if any(geometry[name] != 1 for name in ones) or any(
        geometry.get(name) for name in ("output_padding_h", "output_padding_w")
    ):
        return None
    (kh, kw), (fh, fw) = layer.kernel_size, upsample.factor  # type: ignore[misc]
    sides = [geometry[f"padding_{side}"] for side in ("top", "left", "bottom", "right")]
    if isinstance(layer, Conv2D):  # a window reads what a transposed one, turned round, writes
        sides = [k - 1 - side for k, side in zip((kh, kw, kh, kw), sides, strict=True)]
        if min(sides) < 0:
            return None
        _, height, width = placed.output_shape
    else:
        _, height, width = placed.input_shape
    # Products of each pair of channels, apart for each image.
    fh, fw = int(fh), int(fw)
    small = placed.input_shape[1] // fh * (placed.input_shape[2] // fw)
    if (kh + fh - 1) * (kw + fw - 1) * small >= kh * kw * height * width:
        return None
    return ConvTranspose2D(layer.filters, (kh + fh - 1, kw + fw - 1), (fh, fw), tuple(sides))


def chained(to: _Lowering, chain: Sequence[Placed], x: Value) -> Value:
    """Add the ops of layers one behind the other, two in one where that is less work; the last output.

    Within a chain nothing else reads what is between two layers.
    """
    left = list(chain)
    while left:
        placed = left.pop(0)
        layer, following = placed.layer, left[0] if left else None
        if following is not None:
            after = following.layer
            if (
                isinstance(layer, Upsample2D)
                and isinstance(after, Conv2D | ConvTranspose2D)
                and composed_layer(layer, after, following) is not None
            ):
                left.pop(0)
                to.notes.append(f"{placed.name}: made part of {following.name}, which then has fewer FLOPs")
                x = to.add(UpsampleConvOp(to, placed, following, after, x))
                continue
            if isinstance(layer, Conv2D) and isinstance(after, MaxPool2D) and _side_by_side(after, placed):
                left.pop(0)
                to.notes.append(f"{following.name}: fused into {placed.name}")
                x = to.add(PooledConvOp(to, placed, layer, following, x))
                continue
        x = build(layer, to, placed, x)
    return x


def _side_by_side(pooling: MaxPool2D, placed: Placed) -> bool:
    """Whether the windows of a pooling lie side by side, without padding, and are small."""
    geometry = pooling.geometry(placed.output_shape)
    kernel = geometry["kernel_h"], geometry["kernel_w"]
    return (
        kernel == (geometry["stride_h"], geometry["stride_w"])
        and kernel[0] * kernel[1] <= _MOST_POOLED
        and not any(geometry[f"padding_{side}"] for side in ("top", "left", "bottom", "right"))
    )
