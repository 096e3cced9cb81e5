"""From benchmark records to the summary: speed-up over scalar, GFLOP/s, and the headline ratios.

Works on the records pytest-benchmark saves as JSON, so that the terminal and the report say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fastae.plots import duration

INPUT_LAYER = "input layer forward, as published (B=20, 225 -> 75)"
FIT = "Trainer.fit of autoencnet, one epoch (50 updates)"
IMPORT = "import (fresh process)"
FIRST_CALL = "first call (fresh process)"
READ_CSV = "reading a CSV file, 20000x20"
WRITE_CSV = "writing a CSV file, 20000x20"
#: Processes that bench_import starts: Python alone, and the command.
PYTHON, HELP = "python", "fastae --help"
ONE_ROW = "Autoencoder.transform of one row"

HISTORICAL_SCALAR = "historical scalar"
HISTORICAL_VECTOR = "historical vector"
TORCH = "PyTorch eager"
TORCH_UNFUSED = "PyTorch eager, plain Adam"
TORCH_COMPILED = "PyTorch compiled"
MLP = "MLPRegressor"
#: Behind the name of a backend: the same without the estimator around it.
TRAINER = ", Trainer alone"

#: How many times faster than PyTorch eager a training step is to be, by system and backend.
GOALS = {
    "autoencnet": {"numpy": 3.0, "numba": 5.5, "cython": 7.5},
    "quark_mlp": {"cython": 7.0},
    "batchnorm_mlp": {"cython": 1.2},
    "deep_mlp": {"cython": 1.8},
    "deep_mlp_linear_code": {"cython": 1.8},
    "upsample_conv": {"cython": 1.0},
    "strided_conv": {"cython": 1.0},
    "generic_conv": {"cython": 1.0},
}

#: How many times faster a step of cython is to be than the best of the frameworks, and than PyTorch, each
#: at its best number of threads; 0 where nothing more is asked for.
PEER_GOALS = {
    "autoencnet": (2.0, 12.0),
    "quark_mlp": (4.0, 18.0),
    "batchnorm_mlp": (1.5, 0.0),
    "deep_mlp": (1.7, 4.5),
    "deep_mlp_linear_code": (1.6, 0.0),
    "upsample_conv": (4.0, 0.0),
    "strided_conv": (4.0, 0.0),
    "generic_conv": (8.0, 0.0),
}

#: How many times faster than MLPRegressor, one BLAS thread each, by backend, dtype and rows of a batch.
ESTIMATOR_GOALS = {("cython", "float32", 32): 5.0}

#: Most of cython's time that numba is to take for a training step.
NUMBA_LIMIT = 1.6

COLUMNS = ("backend", "dtype", "median", "min", "speed-up", "GFLOP/s", "GB/s", "of matmul")


def step(system: str) -> str:
    """Group of a system's training step."""
    return f"training step of {system}"


def epoch(system: str) -> str:
    """Group of its epoch."""
    return f"training epoch of {system} (50 updates, one call)"


def estimator_fit(batch: int) -> str:
    """Group of the estimator's fit in batches of so many rows."""
    return f"Autoencoder.fit of 1797 digits, 64-64-16-64-64, 20 epochs, B={batch}"


@dataclass(frozen=True)
class Row:
    """One benchmark: what ran, and seconds of one call."""

    group: str
    backend: str
    dtype: str
    median: float
    minimum: float
    flops: float
    bytes: int


@dataclass(frozen=True)
class Ratio:
    """A headline: how much longer one row takes than another, beside the goal."""

    label: str
    ratio: float
    goal: float | None
    at_most: bool = False

    @property
    def goal_text(self) -> str:
        """The goal in words; empty without one."""
        if self.goal is None:
            return ""
        return f"at {'most' if self.at_most else 'least'} {self.goal:g}x"


def rows(benchmarks: Iterable[Mapping]) -> list[Row]:
    """Rows of this suite's records, in the order in which they ran."""
    return [
        Row(
            b["group"],
            b["extra_info"]["backend"],
            b["extra_info"]["dtype"],
            b["stats"]["median"],
            b["stats"]["min"],
            b["extra_info"]["flops"],
            b["extra_info"]["bytes"],
        )
        for b in benchmarks
        if "backend" in b["extra_info"]
    ]


def grouped(all_rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by group."""
    groups: dict[str, list[Row]] = {}
    for row in all_rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _find(all_rows: Iterable[Row], group: str, backend: str, dtype: str) -> Row | None:
    found = (r for r in all_rows if (r.group, r.backend, r.dtype) == (group, backend, dtype))
    return next(found, None)


def baseline(group: Sequence[Row], row: Row) -> Row | None:
    """What a row is compared with: the published scalar form, else the scalar backend in its dtype."""
    published = _find(group, row.group, HISTORICAL_SCALAR, "float64")
    return published or _find(group, row.group, "scalar", row.dtype)


def cells(group: Sequence[Row], row: Row, matmul: Mapping[str, float]) -> tuple[str, ...]:
    """A row of the table as text, under COLUMNS."""
    base = baseline(group, row)
    rate = row.flops / row.median / 1e9
    bandwidth = row.bytes / row.median / 1e9
    limit = matmul.get(row.dtype)
    return (
        row.backend,
        row.dtype or "-",
        duration(row.median),
        duration(row.minimum),
        f"{base.median / row.median:.1f}x" if base else "-",
        f"{rate:.3g}" if row.flops else "-",
        f"{bandwidth:.3g}" if row.bytes else "-",
        f"{100 * rate / limit:.1f} %" if row.flops and limit else "-",
    )


def headlines(all_rows: Sequence[Row]) -> list[Ratio]:
    """The ratios fastae promises, as far as this run measured both sides."""
    wanted: list[tuple[str, tuple[tuple[str, str, str], ...], float | None, bool]] = []
    for system, goals in GOALS.items():
        for group in (step(system), epoch(system)):
            for name, goal in goals.items():
                sides = (group, TORCH, "float32"), (group, name, "float32")
                wanted.append((f"{group}: {TORCH} / {name} float32", sides, goal, False))
            sides = (group, "numba", "float32"), (group, "cython", "float32")
            wanted.append((f"{group}: numba / cython float32", sides, NUMBA_LIMIT, True))
    for name, dtype, goal in (
        (HISTORICAL_VECTOR, "float64", None),
        ("cython", "float64", 4000.0),
        ("cython", "float32", 8000.0),
    ):
        sides = (INPUT_LAYER, HISTORICAL_SCALAR, "float64"), (INPUT_LAYER, name, dtype)
        wanted.append((f"input layer: {HISTORICAL_SCALAR} / {name} {dtype}", sides, goal, False))
    for name, dtype, batch in product(("numpy", "numba", "cython"), ("float32", "float64"), (200, 32)):
        group = estimator_fit(batch)
        ours, alone, other = ((group, who, dtype) for who in (name, name + TRAINER, MLP))
        goal = ESTIMATOR_GOALS.get((name, dtype, batch))
        wanted.append((f"Autoencoder.fit, B={batch}: {MLP} / {name} {dtype}", (other, ours), goal, False))
        label = f"Autoencoder.fit, B={batch}: {name} / its Trainer alone {dtype}"
        wanted.append((label, (ours, alone), 1.05, True))
    ratios = []
    for label, (slow, fast), goal, at_most in wanted:
        a, b = _find(all_rows, *slow), _find(all_rows, *fast)
        if a and b:
            ratios.append(Ratio(label, a.median / b.median, goal, at_most))
    return ratios


def import_cost(all_rows: Sequence[Row]) -> str | None:
    """What ``import fastae`` adds to ``import numpy``."""
    whole, numpy_alone = (_find(all_rows, IMPORT, name, "") for name in ("numpy, fastae", "numpy"))
    if not (whole and numpy_alone):
        return None
    added = 1e3 * (whole.minimum - numpy_alone.minimum)
    return f"import fastae adds {added:.0f} ms to import numpy, least of each (goal: at most 50 ms)"


def help_cost(all_rows: Sequence[Row]) -> str | None:
    """What ``fastae --help`` adds to Python's own start."""
    whole, alone = (_find(all_rows, IMPORT, name, "") for name in (HELP, PYTHON))
    if not (whole and alone):
        return None
    added = 1e3 * (whole.minimum - alone.minimum)
    return f"{HELP} adds {added:.0f} ms to Python's own start, least of each (goal: at most 150 ms)"


def one_row(all_rows: Sequence[Row]) -> str | None:
    """What the transform of one row costs."""
    times = {r.backend: 1e6 * r.median for r in all_rows if (r.group, r.dtype) == (ONE_ROW, "float32")}
    if not times:
        return None
    text = ", ".join(f"{name} {time:.0f}" for name, time in times.items() if name != "scalar")
    return f"Autoencoder.transform of one row, us: {text} (goal: at most 150)"


def notes(all_rows: Sequence[Row], info: Mapping) -> list[str]:
    """Lines that say how the figures are to be read, and what is missing from them."""
    matmul = ", ".join(f"{dtype} {rate:.1f}" for dtype, rate in info["matmul"].items())
    lines = [
        "One thread. Speed-up: ratio of medians over the scalar backend in the same dtype; for the layer 'as",
        "published' over the published scalar form. FLOPs and bytes as the table of kernels counts them.",
        f"'of matmul': of the rate of NumPy's 512x512 product here, GFLOP/s: {matmul}.",
    ]
    if info["load"] > 1.5:  # one is this suite's own
        lines += [
            f"The machine was BUSY (load average {info['load']:.1f}): other work interrupts long calls, so",
            "that ratios of long to short ones come out too high. Run again when it is idle.",
        ]
    lines += [f"missing: {name}: {reason}" for name, reason in info["missing"].items()]
    return lines


def lines(benchmarks: Iterable[Mapping], info: Mapping) -> list[str]:
    """The whole summary for a terminal. ``info`` holds "matmul" (GFLOP/s by dtype) and "missing"."""
    all_rows = rows(benchmarks)
    text = notes(all_rows, info)
    for name, group in grouped(all_rows).items():
        table = [COLUMNS, *(cells(group, row, info["matmul"]) for row in group)]
        widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
        text += ["", name]
        for line in table:
            left = [line[i].ljust(widths[i]) for i in range(2)]
            right = [line[i].rjust(widths[i]) for i in range(2, len(COLUMNS))]
            text.append("  " + "  ".join(left + right))
    found = headlines(all_rows)
    if found:
        text += ["", "Headline ratios (medians here; python -m benchmarks.versus measures them interleaved)"]
    width = max((len(h.label) for h in found), default=0)
    for h in found:
        goal = h.goal_text and f"   (goal: {h.goal_text})"
        text.append(f"  {h.label:<{width}} {h.ratio:>10.2f}x{goal}")
    for cost in (import_cost(all_rows), help_cost(all_rows), one_row(all_rows)):
        if cost:
            text += ["", cost]
    return text
