"""Losses as declarations: their arithmetic is a kernel of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastae.layers import real_number

__all__ = ["ALIASES", "LOSSES", "Loss", "from_dict", "huber", "resolve", "to_dict"]


@dataclass(frozen=True)
class Loss:
    """A loss.

    Parameters
    ----------
    name : str
        Name by which it is chosen.
    kernel : str
        Row of the table that gives the row losses and their gradient.
    reduction : str
        "sum" or "mean": what the row losses of a batch add up to, and so how the losses of
        several batches are combined (added, or averaged with the batch sizes as weights).
    target_range : tuple of two floats, optional
        Smallest and largest value a target may have; None where any will do.
    delta : float, optional
        Where the Huber loss becomes linear.
    """

    name: str
    kernel: str
    reduction: str
    target_range: tuple[float, float] | None = None
    delta: float | None = None

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the kernel by argument name, but for the activation."""
        return {} if self.delta is None else {"delta": self.delta}


def huber(delta: float = 1.0) -> Loss:
    """Declare the Huber loss: squared near 0, absolute beyond `delta`.

    Parameters
    ----------
    delta : float
        Where the loss becomes linear, finite and > 0.

    Raises
    ------
    ValueError
        When `delta` is not as stated.

    References
    ----------
    Huber, Robust estimation of a location parameter (1964).
    """
    return Loss("huber", "huber", "mean", delta=real_number("delta", delta, 0, open_low=True))


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("sse", "sse", "sum"),
        Loss("mse", "mse", "mean"),
        Loss("mae", "mae", "mean"),
        huber(),
        Loss("bce", "bce", "mean", target_range=(0.0, 1.0)),
        Loss("bce_with_logits", "bce_with_logits", "mean", target_range=(0.0, 1.0)),
    )
}

#: Other names of losses.
ALIASES = {"l1": "mae"}


def resolve(loss: str | Loss) -> Loss:
    """Return the declaration of a loss given by name, or itself.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    if isinstance(loss, Loss):
        return loss
    name = ALIASES.get(loss, loss) if isinstance(loss, str) else None
    if name is None or name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join([*LOSSES, *ALIASES])}; got {loss!r}")
    return LOSSES[name]


def to_dict(loss: Loss) -> dict[str, Any]:
    """Return a loss as plain values; a ValueError for one that `from_dict` would not give back."""
    data = {"type": loss.name, **loss.constants}
    try:
        known = from_dict(data) == loss
    except ValueError:
        known = False
    if not known:
        raise ValueError(
            f"loss: expected one of fastae's own, {', '.join(LOSSES)}, since a file names it; given {loss!r}"
        )
    return data


def from_dict(data: Any) -> Loss:
    """Return the loss that `to_dict` gave; a ValueError for anything else."""
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in LOSSES:
        raise ValueError(f"loss must be a dict whose type is one of {', '.join(LOSSES)}; got {data!r:.100}")
    if unknown := data.keys() - {"type"} - LOSSES[kind].constants.keys():
        raise ValueError(f"loss {kind} has no field {', '.join(sorted(map(str, unknown)))[:100]}")
    return huber(data.get("delta", 1.0)) if kind == "huber" else LOSSES[kind]
