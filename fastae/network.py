"""The declaration of an autoencoder: layers, shapes and parameters, and no arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastae import initializers, layers, losses, optimizers
from fastae.layers import MAX_DEPTH, Layer, Parallel, ParameterSpec, Shape, positive_int

__all__ = ["Network", "Placed", "Recipe"]

SAMPLINGS = ("shuffle", "replacement", "sequential")

#: Most elements of a row or a parameter: more have no number of bytes in 64 bits.
_MOST = (1 << 60) - 1


@dataclass(frozen=True)
class Recipe:
    """How a published network was trained.

    Parameters
    ----------
    loss : str
        A key of `fastae.losses.LOSSES`.
    optimizer : Optimizer
        With its published constants.
    batch_size : int
        Rows of a batch, >= 1.
    epochs : int
        Passes over the training data, >= 1.
    dtype : str
        "float32" or "float64".
    sampling : str
        "shuffle" (every row once an epoch), "replacement" or "sequential".
    updates : int, optional
        The published number of updates, where it was not counted in epochs.
    train_rows, validation_rows : int, optional
        Rows of the training data it was trained on, the first ones, and those behind them it was
        validated on; all of it, and the test data, when not given.
    published : dict of str to number or str
        What the document says came of it, such as "validation_loss" after the last epoch and
        "validation_loss_epoch_1" after the first.
    reference : dict of str to number or str
        What an independent implementation reaches, under the same names.
    """

    loss: str
    optimizer: optimizers.Optimizer
    batch_size: int
    epochs: int
    dtype: str = "float32"
    sampling: str = "shuffle"
    updates: int | None = None
    train_rows: int | None = None
    validation_rows: int | None = None
    published: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    reference: Mapping[str, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        losses.resolve(self.loss)
        if not isinstance(self.loss, str):
            raise ValueError(f"loss of a recipe must be a name; got {self.loss!r}")
        if not isinstance(self.optimizer, optimizers.Optimizer):
            raise ValueError(f"optimizer of a recipe must be an optimiser; got {self.optimizer!r}")
        if (self.train_rows is None) != (self.validation_rows is None):
            raise ValueError(
                "train_rows and validation_rows must both be given or both not; "
                f"got {self.train_rows} and {self.validation_rows}"
            )
        for name in ("batch_size", "epochs", "updates", "train_rows", "validation_rows"):
            if name in ("batch_size", "epochs") or getattr(self, name) is not None:
                object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64; got {self.dtype!r}")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}; got {self.sampling!r}")
        for name in ("published", "reference"):
            figures = getattr(self, name)
            if not isinstance(figures, Mapping):
                raise ValueError(f"{name} must be a dict of figures; got {figures!r:.100}")
            for key, value in figures.items():
                if not isinstance(key, str) or not isinstance(value, int | float | str):
                    raise ValueError(f"{name} must have numbers or texts under names; got {key!r}: {value!r}")
            object.__setattr__(self, name, MappingProxyType(dict(figures)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy: a read-only view of a dict cannot be pickled, the dict can."""
        values = [getattr(self, f.name) for f in fields(self)]
        return type(self), tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        figures = {name: dict(data[name]) for name in ("published", "reference")}
        return data | figures | {"optimizer": optimizers.to_dict(self.optimizer)}


@dataclass(frozen=True)
class Placed:
    """A layer at its place in a Network: with a name of its own and known shapes.

    Parameters
    ----------
    layer : Layer
        The declaration.
    name : str
        Unique in the network.
    input_shape, output_shape : tuple of int
        Shapes of one row.
    parameters : tuple of ParameterSpec
        Its own parameters, under their full names.
    branches : tuple of tuple of Placed
        What a Parallel layer holds.
    """

    layer: Layer
    name: str
    input_shape: Shape
    output_shape: Shape
    parameters: tuple[ParameterSpec, ...] = ()
    branches: tuple[tuple[Placed, ...], ...] = ()

    def walk(self) -> Iterator[Placed]:
        """Yield the layers inside this one and then this one, in the order they are computed."""
        for branch in self.branches:
            for inner in branch:
                yield from inner.walk()
        yield self


class _Placer:
    """Gives every layer its name and its shapes."""

    def __init__(self, everything: Sequence[Layer]) -> None:
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}
        for layer in everything:
            self._collect(layer, 0)

    def _collect(self, layer: Layer, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"layers must not be nested deeper than {MAX_DEPTH}")
        name = getattr(layer, "name", None)
        if name is not None:
            if name in self.taken:
                raise ValueError(f"names of layers must differ; {name!r} is given twice")
            self.taken.add(name)
        if isinstance(layer, Parallel):
            for branch in layer.branches:
                for inner in branch:
                    self._collect(inner, depth + 1)

    def name(self, layer: Layer) -> str:
        given: str | None = getattr(layer, "name", None)
        while given is None:
            self.counts[layer.kind] = self.counts.get(layer.kind, 0) + 1
            candidate = f"{layer.kind}_{self.counts[layer.kind]}"
            if candidate not in self.taken:
                given = candidate
        return given

    def place(self, layer: Layer, shape: Shape) -> Placed:
        name = self.name(layer)
        if isinstance(layer, Parallel):
            branches = tuple(self.chain(branch, shape) for branch in layer.branches)
            shapes = [branch[-1].output_shape if branch else shape for branch in branches]
            if len(set(shapes)) > 1:
                raise ValueError(
                    f"layer {name!r} sums its branches, so they must have one output shape; got "
                    + ", ".join(map(str, shapes))
                )
            return Placed(layer, name, shape, shapes[0], (), branches)
        try:
            output = layer.output_shape(shape)
            parameters = tuple(replace(p, name=f"{name}.{p.name}") for p in layer.parameters(shape))
            for what, sizes in [("output", output), *((p.name, p.shape) for p in parameters)]:
                _check_product(what, sizes)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        return Placed(layer, name, shape, output, parameters)

    def chain(self, chain: Sequence[Layer], shape: Shape) -> tuple[Placed, ...]:
        placed: list[Placed] = []
        for layer in chain:
            placed.append(self.place(layer, shape))
            shape = placed[-1].output_shape
        return tuple(placed)


@dataclass(frozen=True, init=False)
class Network:
    """An autoencoder as a declaration.

    Parameters
    ----------
    encoder, decoder : sequence of Layer
        One or more layers each; the decoder's input is the encoder's output, the code.
    input_shape : tuple of int, or int
        Shape of one row of the data.
    name : str, optional
        Its name in listings and files.
    recipe : Recipe, optional
        How the published network was trained.

    Attributes
    ----------
    placed_encoder, placed_decoder : tuple of Placed
        The layers with their names and shapes.

    Raises
    ------
    ValueError
        When an argument is not as stated, when two layers have one name, or when a layer cannot
        take the output of the one before; the message names the layer.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    input_shape: Shape
    name: str | None = None
    recipe: Recipe | None = None
    placed_encoder: tuple[Placed, ...] = field(init=False, repr=False, compare=False)
    placed_decoder: tuple[Placed, ...] = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        encoder: Sequence[Layer],
        decoder: Sequence[Layer],
        input_shape: Sequence[int] | int,
        name: str | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        def put(attribute: str, value: object) -> None:
            object.__setattr__(self, attribute, value)

        put("encoder", layers.check_layers("encoder", encoder))
        put("decoder", layers.check_layers("decoder", decoder))
        for argument in ("encoder", "decoder"):
            if not getattr(self, argument):
                raise ValueError(f"{argument} must have one or more layers; got none")
        put("input_shape", _check_shape(input_shape))
        if name is not None and (not isinstance(name, str) or not name or not name.isprintable()):
            raise ValueError(f"name must be None or a printable text; got {name!r}")
        put("name", name)
        if recipe is not None and not isinstance(recipe, Recipe):
            raise ValueError(f"recipe must be None or a Recipe; got {recipe!r}")
        put("recipe", recipe)
        placer = _Placer(self.encoder + self.decoder)
        put("placed_encoder", placer.chain(self.encoder, self.input_shape))
        put("placed_decoder", placer.chain(self.decoder, self.code_shape))

    @property
    def code_shape(self) -> Shape:
        """Shape of one row of the code."""
        return self.placed_encoder[-1].output_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one row of the output."""
        return self.placed_decoder[-1].output_shape

    @property
    def layers(self) -> tuple[Placed, ...]:
        """Every layer, those inside Parallel ones too, in the order they are computed."""
        return tuple(inner for p in self.placed_encoder + self.placed_decoder for inner in p.walk())

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Every parameter in the order of the layers."""
        return tuple(p for placed in self.layers for p in placed.parameters)

    @property
    def n_parameters(self) -> int:
        """Number of elements of all parameters, fixed ones too."""
        return sum(p.size for p in self.parameters)

    @property
    def n_trainable(self) -> int:
        """Number of elements of the parameters that training changes."""
        return sum(p.size for p in self.parameters if p.trainable)

    def trace(self) -> str:
        """Return the shape of a row from layer to layer, to see where it went astray."""
        steps = [f"input {self.input_shape}"]
        steps += [f"{p.name} {p.output_shape}" for p in self.placed_encoder]
        steps[-1] += ", the code"
        steps += [f"{p.name} {p.output_shape}" for p in self.placed_decoder]
        return " -> ".join(steps)

    def initial_weights(
        self, seed: int | np.random.SeedSequence | np.random.Generator | None = None, dtype: str = "float64"
    ) -> dict[str, npt.NDArray[Any]]:
        """Draw the start values of every parameter.

        Parameters
        ----------
        seed : int, SeedSequence, Generator or None
            As `numpy.random.default_rng` takes it; the same seed gives the same values.
        dtype : "float32" or "float64"
            Values are drawn in float64 and then rounded to it.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays under the parameters' names.
        """
        if np.dtype(dtype).name not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64; got {dtype!r}")
        rng = np.random.default_rng(seed)
        return {
            p.name: initializers.initialize(p.initializer, rng, p.shape, p.fan_in, p.fan_out).astype(dtype)
            for p in self.parameters
        }

    def summary(self) -> str:
        """Return a table of the layers: input, output, activation, bias and number of parameters."""
        rows: list[tuple[str, ...]] = [("layer", "input", "output", "activation", "bias", "parameters")]
        for part, chain in (("encoder", self.placed_encoder), ("decoder", self.placed_decoder)):
            rows.append((part, "", "", "", "", ""))
            for placed in chain:
                rows.extend(_summary_rows(placed, 1))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [
            "  ".join(
                cell.rjust(w) if i == len(widths) - 1 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        total = f"{self.n_parameters} parameters, {self.n_trainable} trainable"
        return "\n".join([self.name or "network", rule, lines[0], rule, *lines[1:], rule, total])

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration as plain values that JSON can hold."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "encoder": [layers.to_dict(layer) for layer in self.encoder],
            "decoder": [layers.to_dict(layer) for layer in self.decoder],
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Network:
        """Return the network that `to_dict` gave; a ValueError for anything else."""
        if not isinstance(data, dict):
            raise ValueError(f"a network must be a dict; got {data!r:.100}")
        expected = {"name", "input_shape", "encoder", "decoder", "recipe"}
        if data.keys() != expected:
            wrong = sorted(str(key) for key in data.keys() ^ expected)
            raise ValueError(
                f"a network's fields are {', '.join(sorted(expected))}; wrong: {', '.join(wrong)[:100]}"
            )
        chains = {}
        for part in ("encoder", "decoder"):
            if not isinstance(data[part], list):
                raise ValueError(f"{part} must be a list of layers; got {data[part]!r:.100}")
            chains[part] = [layers.from_dict(layer) for layer in data[part]]
        recipe = data["recipe"]
        if recipe is not None:
            if not isinstance(recipe, dict) or recipe.keys() - {f.name for f in fields(Recipe)}:
                raise ValueError(f"recipe must be None or a dict of a recipe's fields; got {recipe!r:.100}")
            values = {**recipe, "optimizer": optimizers.from_dict(recipe.get("optimizer"))}
            try:
                recipe = Recipe(**values)
            except TypeError as error:  # a field without default is missing
                raise ValueError(f"recipe: {error}") from None
        return cls(chains["encoder"], chains["decoder"], data["input_shape"], data["name"], recipe)


def _check_shape(shape: Any) -> Shape:
    sizes = shape if isinstance(shape, Sequence) and not isinstance(shape, str) and shape else (shape,)
    checked = tuple(positive_int("input_shape", length) for length in sizes)
    _check_product("input_shape", checked)
    return checked


def _check_product(name: str, shape: Shape) -> None:
    """Refuse what no array could hold, before anybody tries to make it."""
    if math.prod(shape) > _MOST:
        raise ValueError(
            f"{name} must have a number of bytes below 2**63; got shape {shape} with "
            f"{math.prod(shape)} elements"
        )


def _summary_rows(placed: Placed, depth: int) -> Iterator[tuple[str, ...]]:
    indent = "  " * depth
    activation = getattr(placed.layer, "activation", "")
    bias = {True: "yes", False: "no"}.get(getattr(placed.layer, "use_bias", None), "")  # type: ignore[arg-type]
    count = sum(p.size for p in placed.parameters)
    fixed = " (fixed)" if count and not any(p.trainable for p in placed.parameters) else ""
    if running := sum(p.size for p in placed.parameters if p.statistic):
        fixed = f" ({running} not trainable)"
    yield (
        indent + placed.name + fixed,
        "x".join(map(str, placed.input_shape)),
        "x".join(map(str, placed.output_shape)),
        activation,
        bias,
        str(count) if count or not placed.branches else "",
    )
    for i, branch in enumerate(placed.branches, 1):
        yield (f"{indent}  branch {i}" + ("" if branch else " (input as it is)"), "", "", "", "", "")
        for inner in branch:
            yield from _summary_rows(inner, depth + 2)
