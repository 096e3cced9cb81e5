"""The instruments in benchmarks/: what they say of what they have measured. Nothing is timed here."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
# In CI they are there, but for the tests of a wheel, which has none.
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir()
    and not (os.environ.get("CI") and not os.environ.get("FASTAE_TEST_INSTALLED")),
    reason="benchmarks/ is not beside the tests",
)


@pytest.fixture
def instrument(monkeypatch):
    """Import a module of benchmarks/, wherever the tests were started."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


# -- the probe -----------------------------------------------------------------------------------------


def test_a_count_is_passed_on_by_turns(instrument):
    lib = instrument("probe").library()
    count = ctypes.c_long(7)
    lib.pass_on(ctypes.pointer(count), 7, 1)
    assert count.value == 8
    lib.pass_on(ctypes.pointer(count), 9, 0)  # no trips: waits for nobody
    assert count.value == 8


def test_round_trip(instrument):
    probe = instrument("probe")
    taken = probe.round_trip(trips=200, stretches=3)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if there == 1:
        assert taken is None
    else:
        assert math.isfinite(taken)
        assert taken > 1  # nanoseconds: light goes 15 cm there and back


def test_one_processor_has_no_round_trip(instrument, monkeypatch):
    probe = instrument("probe")
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert probe.round_trip() is None
    assert instrument("peers").way([None, None]) == ""


# -- contenders and their processes --------------------------------------------------------------------


def test_a_network_by_its_name(instrument):
    contenders = instrument("contenders")
    one = contenders.problem(contenders.plain(16, 4, 70))
    assert [p.output_shape for p in one.net.layers] == [(16,), (784,)]
    assert one.batch == 4
    assert len(one.order) == 4 * 70
    np.testing.assert_array_equal(one.order[4 * contenders.UPDATES :], one.order[: 4 * 20])
    with pytest.raises(KeyError):
        contenders.problem("784-16-784")


def test_worker_makes_what_is_named(instrument):
    """Scalar only where it is named, and then one loss of it; the others their three."""
    contenders, worker = instrument("contenders"), instrument("peer_worker").Worker("fastae", 1)
    system = contenders.plain(8, 2)
    assert "scalar" not in worker.make(system, 1, None)
    said = worker.make(system, 2, ["scalar", "numpy", "JAX scan"], True)
    assert list(said) == ["numpy", "scalar"]
    assert len(said["scalar"]["losses"]) == 1
    assert len(said["numpy"]["losses"]) == contenders.CHECKED
    contenders.problem(system).check(np.array(said["numpy"]["losses"]), "float32", "numpy")


def test_a_turn_is_made_of_epochs(instrument):
    worker, calls = instrument("peer_worker").Worker("fastae", 1), []

    class Counting:
        train = staticmethod(calls.append)

    worker.contenders["it"] = Counting()
    assert worker.train("it", 3, 7) >= 0
    assert calls == [3, 3, 1]


class Answers:
    """A process that says what a test wants, and takes a second for every unit."""

    library, threads = "fastae", 1

    def __init__(self, said: dict) -> None:
        self.said, self.asked = said, []

    def ask(self, task: str, *arguments: object) -> object:
        self.asked.append((task, *arguments))
        return self.said if task == "make" else float(arguments[-1])


@pytest.mark.parametrize("fault", ["losses", "outputs"])
def test_what_computes_something_else_is_not_timed(instrument, fault):
    peers, contenders = instrument("peers"), instrument("contenders")
    system = contenders.plain(8, 2)
    right = instrument("peer_worker").Worker("fastae", 1).make(system, 3, ["numpy"])["numpy"]
    wrong = right | {fault: (np.array(right[fault]) * 1.001).tolist()}
    process = Answers({"numpy": right, "numba": wrong, "cython": {"missing": "not built"}})
    field = peers.prepare(system, [process], ["numpy"], True)
    assert process.asked == [("make", system, 3, ["numpy"], True)]
    assert list(field.there) == field.infers == [("numpy", 1)]
    assert len(field.wrong) == 1
    assert "numba, 1 threads" in field.wrong[0]
    assert field.missing == {f"{system}: cython, 1 threads": "not built"}
    times = peers.step_times(field, seconds=1e-9, rounds=2)
    assert times == {("numpy", 1): [1.0, 1.0]}


def test_keras_computes_the_same(instrument):
    """Padding, cropping, decay and epsilon in one network, pixels in another order in the other."""
    peers = instrument("peers")
    _, missing = peers.installed(["keras"])  # of the extra peers, which CI does not install
    if missing:
        pytest.skip(missing["keras"])
    process = peers.Process("keras", 1)
    try:
        for system in ("strided_conv", "generic_conv"):
            field = peers.prepare(system, [process], ["Keras train_on_batch"])
            assert not field.wrong
            assert not field.missing
            assert list(field.there) == [("Keras train_on_batch", 1)]
    finally:
        process.close()


# -- beside the frameworks -----------------------------------------------------------------------------


def test_report_of_peers(instrument):
    """What was measured stands in the text: each system under its heading, with its round trips."""
    peers = instrument("peers")
    seconds = {("cython", 1): 4e-5, ("cython", 2): 5e-5, ("JAX scan", 2): 6e-5, ("PyTorch eager", 1): 4e-4}
    seconds[peers.NO_ZEROS, 1] = 4.8e-5
    results = [
        peers.Measured(system, "training step", name, threads, s, s, 9)
        for system in ("autoencnet", "quark_mlp")
        for (name, threads), s in seconds.items()
    ]
    limits = {1: {"threads": 1, "gflops": 100.0, "bandwidth": 30.0, "round_trip": None}}
    limits[2] = {"threads": 2, "gflops": 200.0, "bandwidth": 40.0, "round_trip": 80.0}
    run = {
        "circumstances": ["here"],
        "limits": limits,
        "round_trips": {"autoencnet": [84.2, 502.0], "quark_mlp": [None, None]},
        "missing": {"keras": "not installed"},
        "wrong": ["something"],
    }
    text = peers.report(run, results, ["peers.png"])
    assert "| autoencnet | 40.0 µs (1) | JAX scan (2) | 60.0 µs | 1.50x |" in text
    assert "| 0.80x | 1.25x |" in text  # the second thread, and ahead where no pixel is zero
    autoencnet, quark_mlp = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert "84 ns before" in autoencnet
    assert "502 ns after" in autoencnet
    assert "ns" not in quark_mlp.split("- missing")[0]
    assert "| JAX scan | - | - | 60.0 µs |" in quark_mlp
    assert "- missing: keras: not installed" in text
    assert "- WRONG, not timed: something" in text


def test_missing_libraries_are_named(instrument, monkeypatch):
    peers = instrument("peers")
    monkeypatch.setitem(peers.PACKAGES, "keras", ("numpy", "no-such-package"))
    found, missing = peers.installed(["fastae", "keras"])
    assert list(found) == ["fastae"]
    assert missing == {"keras": "no-such-package is not installed"}


def test_pictures_of_more_contenders_than_colours(instrument, require, tmp_path):
    require("matplotlib")
    peers = instrument("peers")
    names = [f"contender {i}" for i in range(10)]
    results = [peers.Measured("autoencnet", "training step", n, 1, 1e-4, 1e-4, 9) for n in names]
    drawn = peers.draw(results, {1: peers.Limits(1, 100.0, 30.0)}, tmp_path)
    assert sorted(drawn) == sorted(p.name for p in tmp_path.iterdir())


# -- scaling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processors", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_thread_counts(instrument, processors, counts):
    assert instrument("scaling").thread_counts(processors) == counts


def test_slope_is_of_the_upper_half(instrument):
    flat_then_square = [(1, 5.0), (10, 5.0), (100, 1e4), (1000, 1e6), (10_000, 1e8)]
    assert instrument("scaling").slope(flat_then_square[2:]) == pytest.approx(2)
    assert instrument("scaling").slope([(n, 3.0 * n) for n in (1, 10, 100)]) == pytest.approx(1)


def test_epochs_of_those_that_end_in_time(instrument, monkeypatch):
    scaling = instrument("scaling")
    asked = []

    def ready(system, seats):
        asked.append((system, [names for _, names in seats]))
        process = Answers({})
        return scaling.Field({(n, 1): process for _, names in seats for n in names}, [], {}, [])

    monkeypatch.setattr(scaling, "ready", ready)
    monkeypatch.setattr(scaling, "MOST_DRAWN", {"Keras fit": 1000})
    names = ["numpy", "cython", "JAX scan", "Keras fit"]
    expected = {("numpy", 1): scaling.MOST_EPOCH / 99, ("cython", 1): 1e-9, ("JAX scan", 1): 1e-9}
    expected["Keras fit", 1] = 1e-9
    rows = 100 * scaling.BATCH
    found = scaling.epochs(rows, [([], names)], expected, seconds=1e-9)
    assert asked == [(scaling.plain(scaling.WIDTH, scaling.BATCH, 100), [["cython", "JAX scan"]])]
    assert found == {("cython", 1): 100.0, ("JAX scan", 1): 100.0}


def test_picture_of_scaling(instrument, require, tmp_path):
    require("matplotlib")
    names = [f"contender {i}" for i in range(9)]
    lines = {name: [(1, 1.0 + i), (2, 2.0 + i)] for i, name in enumerate(names)}
    curves = {"rows of a batch": lines, "hidden units": lines, "threads": lines, "rows of the data": lines}
    instrument("scaling").draw(curves, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


# -- a machine that has other work ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processors", "busy", "threads", "times"), [(2, 4, 1, 2.5), (2, 4, 2, 3), (4, 8, 1, 2.25), (1, 2, 2, 2)]
)
def test_fair_share(instrument, processors, busy, threads, times):
    """What of its processors each thread keeps: 2 of 5, 2 of 6, 4 of 9; on one, half alone and a quarter."""
    assert instrument("oversubscribed").fair_share(processors, busy, threads) == times


def test_report_of_a_machine_that_has_other_work(instrument):
    """Where fastae chooses, the fair time is the least of any number of threads."""
    module = instrument("oversubscribed")
    results = [
        module.Measured("deep_mlp", "cython", n, alone, beside, 1.0, 0.4)
        for n, alone, beside in ((1, 10e-3, 25e-3), (2, 6e-3, 36e-3), (None, 6e-3, 27e-3))
    ]
    fair = [module.fair_time(results, r, 2, 4) for r in results]
    assert fair == pytest.approx([25e-3, 18e-3, 18e-3])
    text = module.report(results, 2, 4, ["here"])
    assert "| deep_mlp, cython | 2 | 6.00 ms | 36.0 ms | 6.00x | 18.0 ms | 2.00 | 1.00 | 0.40 |" in text
    assert "| deep_mlp, cython | None | 6.00 ms | 27.0 ms | 4.50x | 18.0 ms | 1.50 |" in text
    assert "At most 2.00 times what is fair: deep_mlp by cython, n_threads=2." in text
    assert "4 busy processes on 2 processors" in text
    assert "BUSY" not in text
    others = module.Measured("deep_mlp", "cython", 1, 1e-3, 2e-3, 1.0, 0.4, foreign=0.93)
    assert "BUSY: others had 0.93 processors" in module.report([*results, others], 2, 4, ["here"])


def test_what_the_machine_was_busy_with(instrument):
    """A tenth of a second of this process is among what all have had, whose clock ticks in hundredths."""
    module = instrument("oversubscribed")
    if math.isnan(before := module.machine_seconds()):
        pytest.skip("only Linux tells")
    own = time.process_time()
    while time.process_time() - own < 0.1:
        pass
    assert module.machine_seconds() - before > 0.05
    seconds, had, _ = module.stretch("autoencnet", "cython", 1, 0.01)
    assert seconds > 0
    assert had > 0


def test_busy_processes_end(instrument, monkeypatch):
    module = instrument("oversubscribed")
    started, popen = [], module.subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def fail_among_them():
        with module.busy_processes(2):
            assert [p.poll() for p in started] == [None, None]
            raise KeyError

    monkeypatch.setattr(module.subprocess, "Popen", start)
    with pytest.raises(KeyError):
        fail_among_them()
    assert all(p.poll() is not None for p in started)
    monkeypatch.setattr(module, "BUSY", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with 3"), module.busy_processes(1):
        pass
