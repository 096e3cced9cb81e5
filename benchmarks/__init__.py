"""The benchmark suite.

::

    pytest --benchmark-only                    everything, and a summary
    python -m benchmarks.report run.json       a saved run as Markdown and plots
    python -m benchmarks.versus                the headline ratios, measured interleaved
    python -m benchmarks.systems               every system trained as published, and its losses
    python -m benchmarks.peers                 beside PyTorch, JAX and Keras (make peers)
    python -m benchmarks.scaling               how training time grows
    python -m benchmarks.oversubscribed        a step on a machine that has other work
"""

BACKENDS = ("scalar", "numpy", "numba", "cython")
DTYPES = ("float32", "float64")
