"""What was counted, by kernel."""

from dataclasses import dataclass


@dataclass
class Count:
    """Calls of a kernel, the seconds they took and the floating-point operations they are made of."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0


COUNTS: dict[str, Count] = {}


def reset() -> None:
    """Begin again at nothing."""
    COUNTS.clear()


def report() -> str:
    """Return a table of what was counted, what took longest first."""
    lines = [f"{'kernel':<24}{'calls':>10}{'seconds':>12}{'MFLOP':>12}{'GFLOP/s':>10}"]
    for name, count in sorted(COUNTS.items(), key=lambda item: -item[1].seconds):
        rate = count.flops / count.seconds / 1e9 if count.seconds else 0.0
        lines.append(
            f"{name:<24}{count.calls:>10}{count.seconds:>12.4f}{count.flops / 1e6:>12.1f}{rate:>10.2f}"
        )
    return "\n".join(lines)
