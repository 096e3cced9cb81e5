"""The tuner of `cython`, which chooses team or one thread while a Program runs: on a machine that is made up.

Its clocks are a function here, so that nothing is timed, and what a batch takes is what a test says.
"""

import ctypes
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCE = r"""
#include <Python.h>
#include <time.h>

static double wall, worked, slept;

static int made_up_clock(clockid_t which, struct timespec *now)
{
    const double seconds = which == CLOCK_MONOTONIC ? wall : worked;
    now->tv_sec = (time_t)seconds;
    now->tv_nsec = (long)((seconds - (double)now->tv_sec) * 1e9);
    return 0;
}
#define clock_gettime made_up_clock
#include "team.h"

static Tuner tuner;

void begin(void)
{
    wall = worked = slept = 0;
    tuner = new_tuner();
    time_from_now(&tuner, slept);
}

/* Batches for so many seconds: what they take team and one thread, what the first thread sleeps of a
 * team's, and its share of its processor. Gives the part of them that the team did. */
double run(double seconds, double team, double alone, double sleeps, double share)
{
    const double until = wall + seconds;
    long by_team = 0, all = 0;
    while (wall < until) {
        const double batch = tuner.team ? team : alone, rest = tuner.team ? sleeps : 0;
        by_team += tuner.team;
        all++;
        wall += (batch - rest) / share + rest;
        worked += batch - rest;
        slept += rest;
        tune(&tuner, slept, 2);
    }
    return (double)by_team / (double)all;
}

/* Whether a run of few batches needs no team. */
int needs_no_team(void) { return alone(&tuner, 50); }
"""

SHORT, LONG = 50e-6, 2e-3  # seconds of a batch of one thread


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is not installed")
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("tuner")
    (folder / "tuner.c").write_text(SOURCE)
    headers = Path(__file__).parents[1] / "fastae/kernels/compiled"
    command = [
        "gcc",
        "-std=gnu99",
        "-Wall",
        "-Wno-unused-function",
        "-Werror",
        "-O1",
        "-shared",
        "-fPIC",
        "-I",
        headers,
    ]
    command += ["-isystem", sysconfig.get_path("include"), folder / "tuner.c", "-o", folder / "tuner.so"]
    subprocess.run(command, check=True)
    made = ctypes.PyDLL(folder / "tuner.so")
    made.run.restype = ctypes.c_double
    made.run.argtypes = [ctypes.c_double] * 5
    return made


@pytest.fixture
def run(library):
    library.begin()

    def batches(seconds, team, alone, *, sleeps=0.0, share=1.0):
        return library.run(seconds, team, alone, sleeps, share)

    return batches


@pytest.mark.parametrize("alone", [SHORT, LONG])
@pytest.mark.parametrize("gain", [0.55, 0.9])
def test_a_faster_team_runs_nearly_all_batches(run, alone, gain):
    run(1, gain * alone, alone)
    assert run(2, gain * alone, alone) > 0.9


@pytest.mark.parametrize("loss", [1.2, 2.5])
def test_a_slower_team_is_asked_for_few(run, library, loss):
    run(1, loss * SHORT, SHORT)
    assert run(2, loss * SHORT, SHORT) < 0.1
    assert library.needs_no_team()


@pytest.mark.parametrize("first", [0.6, 1.5])
def test_it_notices_that_the_other_is_faster_now(run, first):
    run(1, first * SHORT, SHORT)
    then = 2.1 - first
    run(0.5, then * SHORT, SHORT)
    by_team = run(1, then * SHORT, SHORT)
    assert by_team > 0.9 if then < 1 else by_team < 0.1


@pytest.mark.parametrize("alone", [SHORT, LONG])
def test_nobody_waits_for_two_processors_where_others_work(run, alone):
    """A team takes as long as the slower of its threads: it is not asked while others take processors."""
    run(1, 0.6 * alone, alone)
    run(0.1, 2 * alone, alone, share=0.5)
    assert run(2, 2 * alone, alone, share=0.5) < 0.02
    run(0.3, 0.6 * alone, alone)
    assert run(1, 0.6 * alone, alone) > 0.9


def test_one_crowded_stretch_is_not_enough_to_leave_the_team(run):
    run(1, 0.6 * LONG, LONG)
    run(0.6 * LONG / 2, 0.6 * LONG, LONG, share=0.7)  # a batch
    assert run(0.1, 0.6 * LONG, LONG) > 0.9
    for _ in range(2):
        run(0.6 * LONG * 4, 0.6 * LONG, LONG, share=0.7)
    assert run(0.02, 0.6 * LONG, LONG) < 0.1


def test_sleeping_for_the_team_is_no_work_of_others(run):
    run(1, 0.6 * LONG, LONG)
    assert run(2, 0.6 * LONG, LONG, sleeps=0.3 * LONG) > 0.9
