"""The Cython backend: one source, built once for each instruction set, the best one chosen here.

The environment variable ``FASTAE_ISA`` ("x86-64", "x86-64-v3", "x86-64-v4"; elsewhere the one name
of the machine) forces a choice, so that each can be tested on one machine.
"""

from __future__ import annotations

import importlib
import os
import platform
from types import ModuleType

from fastae.kernels.table import KERNELS

PADDED = True
FUSED_UPDATE = True
SHARDED = True

#: Instruction sets, best first: the level a processor must have, and the extension module.
VARIANTS: dict[str, tuple[int, str]] = (
    {"x86-64-v4": (4, "_x86_64_v4"), "x86-64-v3": (3, "_x86_64_v3"), "x86-64": (1, "_baseline")}
    if platform.machine().lower() in ("x86_64", "amd64")
    else {platform.machine().lower(): (1, "_baseline")}
)


def _choose() -> tuple[str, ModuleType]:
    """Choose a variant; a module that this processor cannot run is not even imported."""
    level = importlib.import_module(f"{__name__}._baseline").cpu_level()
    possible = [name for name, (needed, _) in VARIANTS.items() if needed <= level]
    forced = os.environ.get("FASTAE_ISA")
    if forced and forced not in VARIANTS:
        raise ValueError(f"FASTAE_ISA: expected one of {', '.join(VARIANTS)}, got {forced!r}")
    if forced and forced not in possible:
        raise RuntimeError(f"FASTAE_ISA: this processor has {', '.join(possible)}, got {forced!r}")
    name = forced or possible[0]
    return name, importlib.import_module(f"{__name__}.{VARIANTS[name][1]}")


instruction_set, _module = _choose()
Executor = _module.Executor
INSTRUCTIONS = _module.INSTRUCTIONS
globals().update(_module.KERNEL_OBJECTS)


def prepare(array):
    """What a kernel takes in place of an array: the array itself."""
    return array


def describe() -> dict[str, str]:
    """Instruction set and compiler of the kernels in use."""
    return {"instruction set": instruction_set, "compiler": _module.COMPILER}


__all__ = ["FUSED_UPDATE", "INSTRUCTIONS", "PADDED", "SHARDED", "VARIANTS", "Executor"]
__all__ += ["describe", "instruction_set", "prepare"]
__all__ += KERNELS
