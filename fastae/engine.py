"""A Program with its arena and its executor; and what outlives both, in no layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import losses, optimizers
from fastae.backend import Backend, layout
from fastae.checks import all_finite
from fastae.layers import GaussianNoise, MaskingNoise
from fastae.lowering import lower
from fastae.network import Network
from fastae.program import Slot

__all__ = ["Engine", "Snapshot"]

Array = npt.NDArray[Any]


@dataclass
class Snapshot:
    """All that training changes in an arena, by name: any backend can go on from it.

    Parameters
    ----------
    weights : dict of str to ndarray
        Every parameter, fixed ones and running statistics too.
    seed : int
        Of noise and dropout.
    updates : int
        Done so far.
    moments : dict of str to ndarray
        Each state of the optimiser of each trainable parameter, as in `Program.state_slots`; none of
        them where all are zero still.
    """

    weights: dict[str, Array]
    seed: int
    updates: int = 0
    moments: dict[str, Array] = field(default_factory=dict)


class Engine:
    """A Program with its arena and its executor, for one backend."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        *,
        batch_size: int,
        loss: losses.Loss,
        optimizer: optimizers.Optimizer,
        dtype: np.dtype[Any],
        noise: GaussianNoise | MaskingNoise | None,
        n_threads: int | None,
    ) -> None:
        module = backend.module
        self.backend = backend
        self.program = lower(
            network,
            batch_size=batch_size,
            loss=loss,
            optimizer=optimizer,
            dtype=dtype,
            **layout(module),
            noise=noise,
        )
        self.arena = self.program.new_arena()
        self.executor = module.Executor(self.program, self.arena, n_threads)
        self.header = self.program.header(self.arena)
        program = self.program
        self._finite = [self._stretch(s) for s in (program.trainable, program.statistics) if s is not None]
        # All that training changes and a batch does not overwrite.
        self._state = [self.header, *map(self._stretch, program.lasting)]

    @cached_property
    def saved(self) -> list[Array]:
        """Room for a copy of the state."""
        return [part.copy() for part in self._state]

    def _stretch(self, slot: Slot) -> Array:
        return self.arena[slot.offset : slot.offset + slot.size]

    def set_learning_rate(self, rate: float) -> None:
        """Have the routines that train use another learning rate from their next run on."""
        if self.program.optimizer.constants["learning_rate"] != rate:
            self.program = self.program.with_learning_rate(rate)

    def finite(self) -> bool:
        """Whether every parameter that training changes is."""
        if all(map(all_finite, self._finite)):
            return True
        # The padding between rows may hold anything.
        names = [p.name for p in self.program.network.parameters if p.trainable or p.statistic]
        return all(np.isfinite(self.program.view(self.arena, name)).all() for name in names)

    def save(self, into: list[Array]) -> None:
        """Copy all that training changes and a batch does not overwrite, into `saved` or room like it."""
        for copy, part in zip(into, self._state, strict=True):
            np.copyto(copy, part)

    def restore(self, saved: list[Array]) -> None:
        """Put back what `save` copied."""
        for part, copy in zip(self._state, saved, strict=True):
            np.copyto(part, copy)

    def read(self) -> Snapshot:
        """Copy all that lasts, in no layout."""
        view = self.program.view
        moments = {name: view(self.arena, slot).copy() for name, slot in self.program.state_slots.items()}
        weights = self.program.read_weights(self.arena)
        return Snapshot(weights, int(self.header[1]), int(self.header[0]), moments)

    def write(self, snapshot: Snapshot) -> None:
        """Take all that lasts from a snapshot; errors as `Program.write_weights`, nothing written then."""
        self.program.write_weights(self.arena, snapshot.weights)
        for name, slot in self.program.state_slots.items():
            self.program.write(self.arena, slot, snapshot.moments.get(name, 0))
        self.header[:2] = snapshot.updates, snapshot.seed

    def carry_over(self, other: Engine) -> None:
        """Take all that lasts from another engine of the same network, whatever its layout."""
        mine, theirs = self.program, other.program
        for name in (*(slot.name for slot in mine.parameters), *mine.state_slots):
            mine.write(self.arena, name, theirs.view(other.arena, name))
        self.header[:] = other.header
