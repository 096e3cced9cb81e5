"""Losses as declarations: their arithmetic is a kernel of the table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LOSSES", "Loss", "resolve"]


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
    """

    name: str
    kernel: str
    reduction: str


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("sse", "sse", "sum"),
        Loss("mse", "mse", "mean"),
    )
}


def resolve(loss: str | Loss) -> Loss:
    """Return the declaration of a loss given by name, or itself.

    Raises
    ------
    ValueError
        When the name is not known.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    return LOSSES[loss]
