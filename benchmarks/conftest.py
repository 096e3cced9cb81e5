"""Collection, fixtures and the terminal summary of the benchmark suite.

This file is imported by a plain ``pytest`` too, so it imports nothing heavy until a benchmark runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import BACKENDS, DTYPES

HERE = Path(__file__).resolve().parent


def _asked_for(config: pytest.Config) -> bool:
    """Whether benchmarks are wanted: by --benchmark-only, or by naming a path in here."""
    if config.getoption("benchmark_only", default=False):
        return True
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        return False
    base = config.invocation_params.dir
    named = [(base / argument.split("::")[0]).resolve() for argument in config.args]
    return any(path.is_relative_to(HERE) for path in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if _asked_for(config) else True


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One BLAS thread for the whole session, every library being loaded before the limit is set."""
    from . import machine

    machine.matmul_rates()
    with machine.one_thread():
        yield


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each backend; those that cannot be loaded are skipped here and named in the summary."""
    from .machine import unavailable

    if request.param in unavailable():
        pytest.skip(f"{request.param}: {unavailable()[request.param]}")
    return request.param


@pytest.fixture
def module(backend_name: str) -> object:
    """Module of kernels of a backend."""
    from fastae import backend

    return backend.load(backend_name).module


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def measure(benchmark):
    """Record what is measured, then measure it.

    ``measure(function, arguments, group=..., backend=..., dtype=..., ...)``: one call outside the timer
    compiles and warms up; with ``rounds`` that many calls are timed, for what takes long.
    """

    def run(
        function,
        arguments: tuple = (),
        *,
        group: str,
        backend: str,
        dtype: str = "",
        flops: float = 0,
        bytes: float = 0,
        instruction_set: str = "-",
        rounds: int | None = None,
        warm_up: bool = True,
    ) -> object:
        benchmark.group = group
        benchmark.extra_info.update(
            backend=backend,
            dtype=dtype,
            flops=flops,
            bytes=bytes,
            threads=1,
            instruction_set=instruction_set,
        )
        if warm_up:
            function(*arguments)
        if rounds is None:
            return benchmark(function, *arguments)
        return benchmark.pedantic(function, arguments, rounds=rounds)

    return run


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    from .machine import info

    machine_info["fastae"] = info()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    records = [b for b in session.benchmarks if b and b.stats.data] if session else []
    if not records or not _asked_for(config):
        return
    from . import machine, summary

    terminalreporter.section("fastae: speed-up over scalar, GFLOP/s")
    dicts = [b.as_dict(include_data=False) for b in records]
    for line in summary.lines(dicts, machine.info()):
        terminalreporter.write_line(line)
