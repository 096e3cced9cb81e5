"""A streaming anomaly scorer: cffi gives the GIL up for the whole loop."""

from _streaming_cffi import ffi, lib

from fastae import ctypes_kernels

if lib.streaming_use(ctypes_kernels.api_address()) < 0:
    raise ImportError("built with another fastae.h than that of the installed fastae: build it again")


class Scorer:
    """Scores rows one after the other; one Scorer for each thread.

    Parameters
    ----------
    plan : bytes
        Of a float32 model with the routine "reconstruct", from fastae.plan.
    """

    def __init__(self, plan: bytes) -> None:
        code = ffi.new("int *")
        self._plan = ffi.from_buffer(plan)  # the plan must stay where it is
        scorer = lib.streaming_new(self._plan, len(plan), code)
        if scorer == ffi.NULL:
            if code[0]:
                raise ValueError(ffi.string(lib.streaming_error(code[0])).decode())
            raise MemoryError
        self._scorer = ffi.gc(scorer, lib.streaming_free)
        self._columns = lib.streaming_columns(scorer)

    def score(self, rows, scores) -> None:
        """Write the mean squared error of the reconstruction of each row to `scores`."""
        if (
            rows.dtype != "float32"
            or scores.dtype != "float32"
            or rows.shape[1:] != (self._columns,)
            or scores.shape != rows.shape[:1]
        ):
            raise ValueError(f"expected float32 arrays (n, {self._columns}) and (n,)")
        source = ffi.from_buffer("float[]", rows)
        target = ffi.from_buffer("float[]", scores, require_writable=True)
        code = lib.streaming_score(self._scorer, source, target, len(rows))
        if code:
            raise ValueError(ffi.string(lib.streaming_error(code)).decode())
