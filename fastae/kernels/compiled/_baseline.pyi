"""What each compiled variant holds (the same source for every instruction set)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae.program import Program, Routine

class Kernel:
    __name__: str
    __doc__: str
    backend: str
    def __call__(self, *args: Any) -> None: ...

class Executor:
    program: Program
    arena: npt.NDArray[Any]
    n_threads: int | None
    def __init__(self, program: Program, arena: npt.NDArray[Any], n_threads: int | None = 1) -> None: ...
    def run(
        self,
        routine: Routine,
        data: npt.NDArray[Any],
        target: npt.NDArray[Any] | None,
        order: npt.NDArray[np.int64] | None,
        *,
        weights: npt.NDArray[Any] | None = None,
        losses: npt.NDArray[np.float64] | None = None,
        out: npt.NDArray[Any] | None = None,
        control: npt.NDArray[np.int64] | None = None,
    ) -> None: ...

COMPILER: str
TABLE_HASH: str
INSTRUCTIONS: tuple[int, int]
KERNEL_OBJECTS: dict[str, Callable[..., None]]

def shared_by_rows(rows: int, columns: int, steps: int, parts: int) -> bool: ...
def cpu_level() -> int: ...
