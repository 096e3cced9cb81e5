"""Start-up, each in fresh processes and apart from everything else: import, and the first training call.

The first call of numba is timed twice: with an empty cache folder (everything is compiled) and with the
folder the first left behind. The times include Python's own start, which the first group shows.
"""

import os

import numpy as np
import pytest

from .machine import IMPORTS, fresh_python
from .summary import FIRST_CALL, HELP, IMPORT, PYTHON

HEAVY = ("numba", "scipy", "sklearn", "matplotlib", "torch", "tqdm")

COMMANDS = {PYTHON: ("-c", "pass"), HELP: ("-m", "fastae", "--help")}

FIRST_STEP = """
import sys
import numpy as np, fastae
net = fastae.models.MODELS[sys.argv[1]]()
trainer = fastae.Trainer.from_recipe(net, backend=sys.argv[2], dtype="float32", n_threads=1, seed=0)
batch = (net.recipe.batch_size, *net.input_shape)
x = np.linspace(0, 1, int(np.prod(batch)), dtype=np.float32).reshape(batch)
print(float(trainer.fit(x, epochs=2).loss[1]))
"""

#: Whose first call is timed, and the backend that its loss is compared with. The second has convolutions,
#: which take numba longest to compile.
FIRST = {"autoencnet": "scalar", "strided_conv": "numpy"}


@pytest.mark.parametrize("label", IMPORTS)
def test_import(label, measure):
    """``import fastae`` leaves most of itself to the first use, which the last of the three shows."""
    loaded = fresh_python(
        "-c", f"import sys; {IMPORTS[label]}; print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert loaded.strip() == "[]", f"{IMPORTS[label]!r} imports what it should not"
    measure(fresh_python, ("-c", IMPORTS[label]), group=IMPORT, backend=label, rounds=9)


@pytest.mark.parametrize("label", COMMANDS)
def test_command(label, measure):
    """``fastae --help`` beside Python's own start, which is all that it should take to be read."""
    said = fresh_python(*COMMANDS[label])
    assert said.startswith("usage: fastae") or label == PYTHON
    measure(fresh_python, COMMANDS[label], group=IMPORT, backend=label, rounds=9)


@pytest.fixture(scope="module", params=FIRST)
def system(request):
    return request.param


@pytest.fixture(scope="module")
def cache(system, tmp_path_factory):
    return str(tmp_path_factory.mktemp("numba-cache"))


@pytest.fixture(scope="module")
def expected(system):
    return float(fresh_python("-c", FIRST_STEP, system, FIRST[system]))


@pytest.mark.parametrize(
    ("backend_name", "state"),
    [("numpy", ""), ("cython", ""), ("numba", "cold cache"), ("numba", "warm cache")],
    indirect=["backend_name"],
    ids=["numpy", "cython", "numba-cold", "numba-warm"],
)
def test_first_call(backend_name, state, system, cache, expected, measure):
    script = ("-c", FIRST_STEP, system, backend_name)

    def first_call() -> str:
        return fresh_python(*script, NUMBA_CACHE_DIR=cache)

    if state == "cold cache":
        assert not os.listdir(cache), "the cold start must come before the warm one"
    else:
        first_call()
    result = measure(
        first_call,
        group=f"{FIRST_CALL}: {system}",
        backend=f"{backend_name} {state}".strip(),
        dtype="float32",
        rounds=1 if state == "cold cache" else 3,
        warm_up=False,
    )
    # Checked afterwards, because a first call can be made only once.
    np.testing.assert_allclose(float(result), expected, rtol=1e-4)
