"""Arrays of other libraries, seen as NumPy arrays on the same memory: nothing is copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OFFERS", "view"]

#: What an object may offer in place of an ndarray, for messages.
OFFERS = "an ndarray, or an object with __dlpack__, __array_interface__ or the buffer protocol"

# Kinds of memory that a CPU addresses, of dlpack.h: its own, and what CUDA and ROCm pin of it.
_HOST = {1, 3, 11}
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}
_DEVICES |= {12: "an extension", 15: "WebGPU", 16: "Hexagon"}

# From NumPy 2.1 on it passes on that a copy is not wanted.
_NO_COPY = {"copy": False} if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else {}


class _Holder:
    """Shows an `__array_interface__` alone, and keeps alive whose it is."""

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner, self.__array_interface__ = owner, interface


def view(value: Any, label: str) -> npt.NDArray[Any] | None:
    """Show an object's memory as an ndarray.

    Parameters
    ----------
    value : object
        With ``__dlpack__`` (a tensor of PyTorch or JAX on the CPU, an array of Arrow), else with
        ``__array_interface__``, else with the buffer protocol (memoryview, bytearray, array.array, ctypes).
    label : str
        How messages name it.

    Returns
    -------
    ndarray or None
        On the same memory, read-only where the owner wants it so, and with NumPy before 2.1 wherever it
        comes by DLPack; None for an object that offers none of
        the three, such as a list. The ndarray keeps the memory alive.

    Raises
    ------
    TypeError
        If the memory is not the CPU's, or cannot be shown without a copy or as a type NumPy has.
    """
    kind = type(value).__name__
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        try:
            device = int(value.__dlpack_device__()[0])
        except Exception as error:  # the owner's, of a device that DLPack has no number for
            raise TypeError(f"{label}: expected memory of the CPU, given {kind}: {error}") from error
        if device not in _HOST:
            name = _DEVICES.get(device, f"number {device}")
            raise TypeError(f"{label}: expected memory of the CPU, given {kind} on a device of {name}")
        try:
            try:
                return np.from_dlpack(value, **_NO_COPY)  # type: ignore[arg-type]
            except TypeError:  # it knows no such argument, being older, and then never copies
                return np.from_dlpack(value)
        except Exception as error:  # the owner's: it needs a gradient, is sparse, has no such type in NumPy
            raise TypeError(
                f"{label}: expected what NumPy can show as it is, given {kind}: {error}"
            ) from error
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"{label}: expected memory of the CPU, given {kind} on a device of CUDA")
    if (interface := getattr(value, "__array_interface__", None)) is not None:
        try:
            return np.asarray(_Holder(value, interface))
        except Exception as error:
            raise TypeError(
                f"{label}: expected a valid __array_interface__, given {kind}: {error}"
            ) from error
    try:
        memory = memoryview(value)
    except (TypeError, BufferError):
        return None
    try:
        array = np.asarray(memory)
        # ctypes says "<d" where "d" is meant, and who reads the buffer after NumPy takes it for another.
        return array.view(array.dtype.newbyteorder("=")) if array.dtype.isnative else array
    except Exception as error:
        raise TypeError(f"{label}: expected a buffer of numbers, given {kind}: {error}") from error
