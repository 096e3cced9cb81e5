"""A saved benchmark run as Markdown and plots.

::

    pytest --benchmark-only --benchmark-json=run.json
    python -m benchmarks.report run.json --out report
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import BACKENDS, summary


def markdown(run: Mapping, pictures: Sequence[str] = ()) -> str:
    """The whole report: machine, headline ratios, one table per group, pictures."""
    machine, info = run["machine_info"], run["machine_info"]["fastae"]
    cpu = machine["cpu"].get("brand_raw", machine["machine"])
    rows = summary.rows(run["benchmarks"])
    text = [
        "# fastae benchmarks",
        "",
        f"{run['datetime'][:10]}, {cpu}, {machine['system']}, Python {machine['python_version']}.",
        "",
        *(
            f"- {name}: " + ", ".join(f"{k} {v}" for k, v in d.items())
            for name, d in info["backends"].items()
        ),
        "",
        *summary.notes(rows, info),
    ]
    headlines = summary.headlines(rows)
    if headlines:
        text += ["", "## Headline ratios", "", "| ratio of medians | measured | goal |", "|---|---:|---:|"]
    for headline in headlines:
        text.append(f"| {headline.label} | {headline.ratio:.2f}x | {headline.goal_text} |")
    for cost in filter(None, (summary.import_cost(rows), summary.help_cost(rows))):
        text += ["", cost + "."]
    for name in pictures:
        text += ["", f"![{Path(name).stem}]({name})"]
    for name, group in summary.grouped(rows).items():
        text += [
            "",
            f"## {name}",
            "",
            "| " + " | ".join(summary.COLUMNS) + " |",
            "|---|---" + "|---:" * 6 + "|",
        ]
        text += ["| " + " | ".join(summary.cells(group, row, info["matmul"])) + " |" for row in group]
    return "\n".join(text) + "\n"


def short(group: str) -> str:
    """A group's name without its sizes."""
    return group.removeprefix("kernel ").split(" (")[0]


def plots(run: Mapping, folder: Path) -> list[str]:
    """Draw the speed-up over scalar and GFLOP/s as PNG files; gives their names."""
    from matplotlib.figure import Figure

    from fastae.plots import COLOURS, speedup

    rows = [r for r in summary.rows(run["benchmarks"]) if r.dtype == "float32"]
    names = []

    seconds: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.flops and any(r.group == row.group and r.backend == "scalar" for r in rows):
            seconds.setdefault(short(row.group), {})[row.backend] = row.median
    if seconds:
        figure = Figure(figsize=(9, 1 + 0.9 * len(seconds)), dpi=100, layout="constrained")
        speedup(seconds, ax=figure.subplots(), title="Speed-up over the scalar backend, float32, one thread")
        figure.savefig(folder / "speedup.png")
        names.append("speedup.png")

    rated = summary.grouped([r for r in rows if r.flops and r.backend != "scalar"])
    if rated:
        count = sum(map(len, rated.values())) + len(rated)
        figure = Figure(figsize=(9, 1 + 0.17 * count), dpi=100, layout="constrained")
        ax = figure.subplots()
        colours = dict(zip((*BACKENDS, summary.TORCH), COLOURS, strict=False))
        ticks, place = [], 0
        for group in rated.values():
            ticks.append(place + (len(group) - 1) / 2)
            for i, row in enumerate(group, place):
                ax.barh(i, row.flops / row.median / 1e9, color=colours[row.backend], label=row.backend)
            place += len(group) + 1
        ax.set_yticks(ticks, [short(name) for name in rated])
        limit = run["machine_info"]["fastae"]["matmul"]["float32"]
        ax.axvline(limit, color="0.3", linestyle="--", label="NumPy matmul 512x512")
        ax.invert_yaxis()
        ax.margins(y=0.01)
        ax.set_xlabel("GFLOP/s (float32, one thread, median)")
        handles, labels = ax.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        ax.legend(once.values(), once.keys(), loc="lower right")
        figure.savefig(folder / "gflops.png")
        names.append("gflops.png")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``report.md`` and the pictures into a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON written by pytest --benchmark-json or --benchmark-save")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-report"), help="folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        run = json.loads(options.file.read_text())
    except (OSError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    if not isinstance(run, dict) or "fastae" not in run.get("machine_info", {}):
        parser.error(f"{options.file}: not a run of this suite")
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / "report.md"
    report.write_text(markdown(run, plots(run, options.out)))
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
