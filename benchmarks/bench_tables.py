"""Tables: a CSV file read and written by fastae.tables, NumPy and pandas; the same numbers come first."""

from __future__ import annotations

import numpy as np
import pytest

from fastae import tables

from .summary import READ_CSV, WRITE_CSV

SHAPE = (20_000, 20)

READERS = ("fastae.tables", "numpy.genfromtxt", "pandas.read_csv")
WRITERS = ("fastae.tables", "numpy.savetxt", "pandas.to_csv")


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=SHAPE)


@pytest.fixture(scope="module")
def path(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "values.csv"
    tables.write(path, {"x": values})
    return path


def reader(name):
    """A function of a path that gives its numbers, without a line of names."""
    if name == "fastae.tables":
        return lambda path: tables.read(path).values
    if name == "numpy.genfromtxt":
        return lambda path: np.genfromtxt(path, delimiter=",", skip_header=1)
    import pandas

    return lambda path: pandas.read_csv(path).to_numpy()


def writer(name):
    """A function of a path and numbers, all digits of which are written."""
    columns = [f"x{i}" for i in range(SHAPE[1])]
    if name == "fastae.tables":
        return lambda path, values: tables.write(path, {"x": values}, overwrite=True)
    if name == "numpy.savetxt":
        header = ",".join(columns)
        return lambda path, values: np.savetxt(path, values, "%.17g", ",", header=header, comments="")
    import pandas

    return lambda path, values: pandas.DataFrame(values, columns=columns).to_csv(path, index=False)


@pytest.mark.parametrize("name", READERS)
def test_read(name, path, values, measure):
    read = reader(name)
    # pandas' fast parser may be one unit in the last place off.
    np.testing.assert_allclose(read(path), values, rtol=1e-15 if name == "pandas.read_csv" else 0)
    measure(read, (path,), group=READ_CSV, backend=name, dtype="float64", bytes=path.stat().st_size, rounds=5)


@pytest.mark.parametrize("name", WRITERS)
def test_write(name, tmp_path, values, measure):
    write, path = writer(name), tmp_path / "x.csv"
    write(path, values)
    np.testing.assert_array_equal(tables.read(path).values, values)
    size = path.stat().st_size
    measure(write, (path, values), group=WRITE_CSV, backend=name, dtype="float64", bytes=size, rounds=5)
