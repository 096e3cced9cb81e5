"""The instruments in benchmarks/: what they say of what they have measured. Nothing is timed here."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
from pathlib import Path

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


# -- beside the frameworks -----------------------------------------------------------------------------


def test_report_of_peers(instrument):
    """What was measured stands in the text: each system under its heading, with its round trips."""
    peers = instrument("peers")
    seconds = {("cython", 1): 4e-5, ("cython", 2): 5e-5, ("JAX scan", 2): 6e-5, ("PyTorch eager", 1): 4e-4}
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
    autoencnet, quark_mlp = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert "84 ns before" in autoencnet
    assert "502 ns after" in autoencnet
    assert "ns" not in quark_mlp.split("- missing")[0]
    assert "| JAX scan | - | - | 60.0 µs |" in quark_mlp
    assert "- missing: keras: not installed" in text
    assert "- WRONG, not timed: something" in text
