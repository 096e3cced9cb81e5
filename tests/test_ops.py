"""The checked interface: right results, and nothing touched when an argument is wrong.

Which arguments there are to get wrong comes from the table. The hostile calls are made on a backend whose
kernels fail the test, so none of them reaches a kernel.
"""

from __future__ import annotations

import array as arrays_of_python
import ctypes
import inspect
import itertools
import pickle
import re
from functools import partial
from types import ModuleType

import numpy as np
import pytest

import fastae
from fastae import backend as backends
from fastae import ops
from fastae.kernels.table import ACTIVATIONS, KERNELS, Array, Constant, Kernel

ROWS = list(KERNELS.values())
DIMS = {"n": 4, "k": 7, "m": 3, "p": 6, "r": 5}  # all different, so that a wrong one shows
DIMS |= {"c": 6, "cg": 3, "o": 8, "og": 5, "ih": 9, "iw": 11, "kh": 2, "kw": 3, "vh": 4, "vw": 5}


def make(make_case, row, dtype="float64", **options):
    return make_case(row, {d: DIMS.get(d, 8) for d in row.dims if d not in row.derived}, dtype, **options)


def by_name(row: Kernel) -> str:
    return row.name


@pytest.fixture
def never() -> backends.Backend:
    """A backend that must not be reached."""

    def kernel(*arguments):
        pytest.fail("the kernel was called")

    return backends.Backend("never", ModuleType("never"), dict.fromkeys(KERNELS, kernel))


def refused(call, case, arrays, backend, *, naming: tuple[str, ...], **changed) -> None:
    """The call raises, names an argument, and leaves every array as it was."""
    before = {name: array.tobytes() for name, array in arrays.items()}
    keywords = case.keywords(arrays) | ({"out": case.out(arrays)} if case.row.outputs else {})
    with pytest.raises((TypeError, ValueError)) as raised:
        call(**keywords | changed, backend=backend)
    message = str(raised.value)
    assert message.startswith(f"{case.row.name}: ")
    assert "expected" in message
    assert "given" in message
    for name in naming:
        assert re.search(rf"\b{name}\b", message.removeprefix(case.row.name)), message
    for name, array in arrays.items():
        assert array.tobytes() == before[name], f"{name} was written to before: {message}"


class Device:
    """An array of a graphics processor, whose memory must not be asked for."""

    def __dlpack__(self, **options):
        pytest.fail("a capsule was asked for")

    def __dlpack_device__(self):
        return 2, 0


# Right calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_gives_what_the_kernel_gives(make_case, same_bits, loaded, row, dtype):
    call = getattr(ops, row.name)
    case = make(make_case, row, dtype)
    expected = case.run(loaded)

    def compare(returned, arrays):
        """The outputs, or the states where there are none, are returned; states change in either case."""
        results = returned if isinstance(returned, tuple) else (returned,)
        for a, result in zip(row.outputs or case.results, results, strict=True):
            same_bits(result, expected[a.name], a.name)
        for a in (a for a in case.results if a.role == "state"):
            same_bits(arrays[a.name], expected[a.name], a.name)
        return zip(row.outputs or case.results, results, strict=True)

    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    compare(call(**case.keywords(arrays), backend=loaded.name), arrays)

    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    out = {"out": case.out(arrays)} if row.outputs else {}
    for a, result in compare(call(**case.keywords(arrays), **out, backend=loaded.name), arrays):
        assert result is arrays[a.name], f"{a.name} is not the array passed"


def optional_groups(row: Kernel) -> list[tuple[Array, ...]]:
    """Optional arrays that are left out together: the states of one parameter are."""
    states = tuple(a for a in row.arrays if a.optional and a.role == "state")
    single = [(a,) for a in row.arrays if a.optional and a.role not in ("state", "work")]
    return single + ([states] if states else [])


@pytest.mark.parametrize("row", [r for r in ROWS if optional_groups(r)], ids=by_name)
def test_optional_arrays_may_be_none(make_case, same_bits, loaded, row, dtype):
    for absent in optional_groups(row):
        case = make(make_case, row, dtype, absent=[a.name for a in absent])
        expected = case.run(loaded)
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        keywords = case.keywords(arrays) | ({"out": case.out(arrays)} if absent[0].role == "out" else {})
        returned = getattr(ops, row.name)(**keywords, backend=loaded)
        results = returned if isinstance(returned, tuple) else (returned,)
        names = [a.name for a in row.outputs or row.arrays if a.role in ("out", "state")]
        for name, result in zip(names, results, strict=True):
            if any(a.name == name for a in absent):
                assert result is None
            else:
                same_bits(result, expected[name], name)


def test_runs_on_the_backend_in_effect():
    used = []

    def recording(name):
        kernels = {"branch_sum": lambda x1, x2, y: used.append(name)}
        return backends.Backend(name, ModuleType(name), kernels)

    x = np.ones((2, 2))
    with backends.use_backend(recording("outer")):
        ops.branch_sum(x, x)
        ops.branch_sum(x, x, backend=recording("argument"))
        with backends.use_backend(recording("inner")):
            ops.branch_sum(x, x)
    assert used == ["outer", "argument", "inner"]


def test_inputs_may_share_memory():
    x = np.ones((2, 3))
    np.testing.assert_array_equal(ops.branch_sum(x, x), 2 * x)


def test_accepts_scalars_of_numpy():
    x = np.arange(8.0).reshape(2, 4)
    assert ops.subsample_forward(x, stride=np.int32(2)).shape == (2, 2)
    w = np.ones(3)
    ops.sgd(np.ones(3), w, learning_rate=np.float32(0.5))
    np.testing.assert_array_equal(w, 0.5)


# Arrays of other libraries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_takes_arrays_of_other_libraries(make_case, same_bits, foreign, row):
    """Inputs, states and outputs, on the memory they lie in; what comes back are ndarrays."""
    case = make(make_case, row, "float32")
    expected = case.run(backends.load("numpy"))
    arrays = {name: guarded.array for name, guarded in case.allocate(readonly=False).items()}
    shown = {name: foreign(array) for name, array in arrays.items()}
    call = partial(getattr(ops, row.name), **case.keywords(shown), backend="numpy")
    returned = call(out=case.out(shown)) if row.outputs else call()
    results = returned if isinstance(returned, tuple) else (returned,)
    for a, result in zip(row.outputs or case.results, results, strict=True):
        assert type(result) is np.ndarray
        assert np.shares_memory(result, arrays[a.name])
        same_bits(result, expected[a.name], a.name)
    for a in case.results:
        same_bits(arrays[a.name], expected[a.name], a.name)


def test_takes_whatever_has_a_buffer():
    g, w = arrays_of_python.array("d", [1, 2, 3]), (ctypes.c_double * 3)(4, 4, 4)
    assert ops.sgd(g, w, learning_rate=1.0) is not w
    assert list(w) == [3, 2, 1]
    frozen = memoryview(bytes(w)).cast("d")
    with pytest.raises(ValueError, match=r"^sgd: w: expected a writeable array, given a read-only one$"):
        ops.sgd(g, frozen, learning_rate=1.0)


def test_array_of_an_exporter_before_dlpack_1():
    class Old:
        def __dlpack__(self, stream=None):
            return x.__dlpack__()

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(ops.branch_sum(Old(), x), 2 * x)


class Broken:
    __array_interface__ = {"shape": (2, 2), "typestr": "<f8", "data": None, "version": 3}  # noqa: RUF012


class OnCuda:
    __cuda_array_interface__ = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Device(), "expected memory of the CPU, given Device on a device of CUDA$"),
        (OnCuda(), "expected memory of the CPU, given OnCuda on a device of CUDA$"),
        (Broken(), "expected a valid __array_interface__, given Broken: "),
        (b"bytes", "expected dtype float64 as x1 has, given uint8$"),
        (memoryview(np.ones((2, 4)))[::1].cast("B"), "expected dtype float64 as x1 has, given uint8$"),
        ("text", r"expected an ndarray, or an object with __dlpack__, .* given str \(np"),
        (np.float64(1), r"expected 2-D, shape \(n=2, m=2\), given 0-D"),
    ],
)
def test_refuses_array_of_another_library(never, given, message):
    with pytest.raises((TypeError, ValueError), match=f"^branch_sum: x2: {message}"):
        ops.branch_sum(np.ones((2, 2)), given, backend=never)
    with pytest.raises((TypeError, ValueError), match=r"^branch_sum: out "):
        ops.branch_sum(np.ones((2, 2)), np.ones((2, 2)), out=given, backend=never)


def test_refuses_tensor(torch, never):
    """What PyTorch would have to copy, and what NumPy has no dtype for."""
    ones, x = torch.ones(2, 2, dtype=torch.float64), np.ones((2, 2))
    for given, message in [
        (ones.requires_grad_(), "given Tensor: .*require.* grad"),
        (torch.ones(2, 2, dtype=torch.bfloat16), "given Tensor: "),
        (torch.ones(2, 2, device="meta"), "given Tensor"),
        (torch.ones(2, 3, dtype=torch.float64).T[:2], "expected a C-contiguous array, given strides"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"^branch_sum: x2: .*{message}"):
            ops.branch_sum(x, given, backend=never)


# How the functions look ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=by_name)
def test_signature_and_docstring(row):
    call = getattr(ops, row.name)
    parameters = inspect.signature(call).parameters
    assert list(parameters)[-1] == "backend"
    assert ("out" in parameters) == bool(row.outputs)
    for a in row.given:
        assert (parameters[a.name].default is None) == a.optional
    for c in row.constants:
        default = parameters[c.part_of or c.name].default
        assert default is inspect.Parameter.empty if c.default is None else default == c.default
    for d in row.free_dims:
        assert parameters[d].kind is inspect.Parameter.KEYWORD_ONLY
    assert call.__name__ == call.__qualname__ == row.name
    assert call.__module__ == "fastae.ops"
    assert pickle.loads(pickle.dumps(call)) is call
    for text in (
        "Parameters\n-",
        "Returns\n-",
        "Raises\n-",
        row.summary,
        row.source,
        *row.formula.split("; "),
    ):
        assert text in call.__doc__
    for name in parameters:
        assert f"\n{name} : " in call.__doc__


def test_signatures_of_the_design():
    text = {name: list(inspect.signature(getattr(ops, name)).parameters) for name in KERNELS}
    assert text["dense_forward"] == ["x", "w", "b", "activation", "out", "backend"]
    assert text["dense_backward"] == ["dy", "x", "w", "y", "activation", "out", "backend"]


def test_module():
    assert dir(ops) == sorted(KERNELS)
    assert ops.dense_forward is fastae.ops.dense_forward
    with pytest.raises(AttributeError, match="no attribute 'dense_sideways'"):
        ops.dense_sideways  # noqa: B018


# Wrong arrays ---------------------------------------------------------------------------------------------


def not_contiguous(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def misaligned(a):
    block = np.zeros(a.nbytes + 1, np.uint8)
    shifted = block[1:].view(a.dtype).reshape(a.shape)
    shifted[...] = a
    return shifted


class Subclass(np.ndarray):
    pass


DEFECTS = {
    "none": lambda a: None,
    "list": lambda a: a.tolist(),
    "number": lambda a: 1.0,
    "device": lambda a: Device(),
    "subclass": lambda a: a.view(Subclass),
    "masked": lambda a: np.ma.masked_array(a),
    "rank-higher": lambda a: a[None],
    "rank-lower": lambda a: a[0].copy() if a.ndim > 1 else a.reshape(1, -1)[0, 0].reshape(()),
    "float16": lambda a: a.astype(np.float16),
    "other-float": lambda a: a.astype(np.float32),
    "longdouble": lambda a: a.astype(np.clongdouble),
    "int32": lambda a: np.zeros(a.shape, np.int32),
    "uint64": lambda a: np.zeros(a.shape, np.uint64),
    "bool": lambda a: np.zeros(a.shape, bool),
    "object": lambda a: a.astype(object),
    "structured": lambda a: np.zeros(a.shape, [("value", a.dtype)]),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "fortran": lambda a: np.asfortranarray(a) if a.ndim > 1 else a[::-1],
    "not-contiguous": not_contiguous,
    "broadcast": lambda a: np.broadcast_to(a.flat[0], a.shape),
    "misaligned": misaligned,
    "empty": lambda a: a[:0],
    "no-columns": lambda a: a[..., :0],
}


def arguments() -> list[object]:
    return [
        pytest.param(row, a, id=f"{row.name}-{a.name}")
        for row in ROWS
        for a in row.arrays
        if a.role != "work"
    ]


def passed(case, arrays, a: Array, bad) -> dict[str, object]:
    """Keyword arguments that replace one array."""
    return {"out": case.out(arrays | {a.name: bad})} if a.role == "out" else {a.name: bad}


def hostile() -> list[object]:
    """Every defect of every argument, but None where it is allowed and the order of a single number."""
    return [
        pytest.param(row, a, defect, id=f"{row.name}-{a.name}-{defect}")
        for row, a in (p.values for p in arguments())
        for defect in DEFECTS
        if not (defect == "none" and (a.optional or (a.role == "out" and len(row.outputs) == 1)))
        and not (defect in ("fortran", "not-contiguous", "broadcast") and a.dims == ("1",))
    ]


@pytest.mark.parametrize(("row", "a", "defect"), hostile())
def test_refuses_array(make_case, never, row, a, defect):
    case = make(make_case, row)
    arrays = {name: guarded.array for name, guarded in case.allocate(readonly=False).items()}
    with np.errstate(invalid="ignore"):  # of NaN made an integer
        bad = DEFECTS[defect](arrays[a.name])
    refused(getattr(ops, row.name), case, arrays, never, naming=(a.name,), **passed(case, arrays, a, bad))


@pytest.mark.parametrize(("row", "a"), arguments())
def test_refuses_other_shape(make_case, never, row, a):
    """Whichever of the two arrays that disagree is named, the message has both sizes."""
    for axis, dim in enumerate(a.dims):
        case = make(make_case, row)
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        others = [o.name for o in row.arrays if o is not a and o.role != "work" and dim in o.dims]
        if not (others or dim.isdigit()):
            continue  # any size will do
        right = arrays[a.name]
        shape = list(right.shape)
        shape[axis] = 2 * shape[axis] + 1
        bad = np.zeros(shape, right.dtype)
        refused(getattr(ops, row.name), case, arrays, never, naming=(), **passed(case, arrays, a, bad))


@pytest.mark.parametrize("row", [r for r in ROWS if r.derived], ids=by_name)
def test_refuses_what_contradicts_a_derived_dim(make_case, never, row):
    case = make(make_case, row)
    for dim in row.derived:
        for a in (a for a in (*row.given, *row.outputs) if dim in a.dims):
            arrays = {name: guarded.array for name, guarded in case.allocate().items()}
            bad = np.zeros([n + (d == dim) for d, n in zip(a.dims, arrays[a.name].shape, strict=True)])
            call, changed = getattr(ops, row.name), passed(case, arrays, a, bad)
            # Of two inputs that disagree, the first is believed.
            others = [o for o in row.given if dim in o.dims and o is not a]
            first = a in row.given and others and row.given.index(a) < row.given.index(others[0])
            naming = (f"{dim}={case.dims[dim] + 1}",) if first else (a.name, f"{dim}={case.dims[dim]}")
            refused(call, case, arrays, never, naming=naming, **changed)


#: How to break what a row demands: constants, by the words of the demand.
BROKEN = {
    "o divisible by groups": {"groups": 3},
    "c divisible by groups": {"groups": 4},
    "output_padding_h < max(stride_h, dilation_h)": {"output_padding_h": 2},
    "output_padding_w < max(stride_w, dilation_w)": {"output_padding_w": 2},
    "padding_top and padding_bottom <= kernel_h / 2": {"padding_bottom": 2},
    "padding_left and padding_right <= kernel_w / 2": {"padding_left": 2},
}
#: And those that constants do not break.
BROKEN_BY_DIMS = {"n ih iw >= 2": {"n": 1, "ih": 1, "iw": 1}}


@pytest.mark.parametrize(
    ("row", "demand"),
    [pytest.param(r, text, id=f"{r.name}-{text}") for r in ROWS for text, _ in r.demands],
)
def test_refuses_what_breaks_a_demand(make_case, never, row, demand):
    case = make(make_case, row)
    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    changed = case.arguments(**BROKEN[demand]) if demand in BROKEN else {}
    if not changed:
        dims = case.dims | BROKEN_BY_DIMS[demand]
        arrays |= {a.name: np.ones(row.shape(a, dims)) for a in row.arrays}
    call = getattr(ops, row.name)
    refused(call, case, arrays, never, naming=(re.escape(demand).removesuffix(r"\)"),), **changed)


def grouped() -> list[object]:
    """Constants that are given together, and how many they are."""
    found = {
        (row.name, c.part_of): pytest.param(
            row,
            c.part_of,
            sum(o.part_of == c.part_of for o in row.constants),
            id=f"{row.name}-{c.part_of}",
        )
        for row in ROWS
        for c in row.constants
        if c.part_of
    }
    return list(found.values())


@pytest.mark.parametrize(("row", "name", "count"), grouped())
def test_constants_given_together(make_case, never, row, name, count):
    """One number for all, or as many as there are; of four sides also two; no other count, no other kind."""
    case = make(make_case, row)
    parts = [c.name for c in row.constants if c.part_of == name]

    def seen(value) -> list[object]:
        """What reaches a kernel."""
        numbers = []

        def kernel(*arguments):
            places = [i for i, a in enumerate(row.arguments) if a.name in parts]
            numbers.extend(arguments[i] for i in places)

        arrays = {a: guarded.array for a, guarded in case.allocate(readonly=False).items()}
        recording = backends.Backend("recording", ModuleType("recording"), {row.name: kernel})
        getattr(ops, row.name)(**case.keywords(arrays) | {name: value}, backend=recording)
        return numbers

    values = tuple(case.constants[part] for part in parts)
    assert seen(values) == seen(list(values)) == list(values)
    arrays = {a: guarded.array for a, guarded in case.allocate().items()}
    for wrong in ((1, 2, 3), (1,), (), (1,) * 5):
        refused(getattr(ops, row.name), case, arrays, never, naming=(name,), **{name: wrong})
    for wrong in ("12", 1.0, None, True):
        refused(getattr(ops, row.name), case, arrays, never, naming=(parts[0],), **{name: wrong})
        last = (*values[:-1], wrong)
        refused(getattr(ops, row.name), case, arrays, never, naming=(parts[-1],), **{name: last})


def test_one_number_and_two_for_four_sides():
    x, w = np.arange(24.0).reshape(1, 1, 4, 6), np.ones((1, 1, 3, 3))
    convolve = partial(ops.conv2d_forward, x, w, backend="numpy")
    both = convolve(padding=(1, 2))
    assert both.shape == (1, 1, 4, 8)
    np.testing.assert_array_equal(both, convolve(padding=(1, 2, 1, 2)))
    alike = convolve(stride=2, padding=1)
    np.testing.assert_array_equal(alike, convolve(stride=(2, 2), padding=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match=r"^conv2d_forward: stride: expected one number or 2, given 3$"):
        convolve(stride=(1, 2, 3))
    with pytest.raises(
        ValueError, match=r"^conv2d_forward: padding: expected one number or 2 or 4, given 3$"
    ):
        convolve(padding=(1, 2, 3))


@pytest.mark.parametrize(("row", "a"), [p for p in arguments() if p.values[1].written])
def test_refuses_readonly(make_case, never, row, a):
    case = make(make_case, row)
    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    arrays[a.name].flags.writeable = False
    refused(getattr(ops, row.name), case, arrays, never, naming=(a.name, "read-only"))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("row", "a"), [p for p in arguments() if p.values[1].written])
def test_refuses_overlap(make_case, never, row, a, shift):
    """The same memory, or all of it but one element."""
    case = make(make_case, row)
    for other in row.arrays:
        if other is a or other.role == "work" or other.kind == "index":
            continue
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        mine, theirs = arrays[a.name], arrays[other.name]
        block = np.zeros(max(theirs.size, mine.size + shift))
        second = block[: theirs.size].reshape(theirs.shape)
        second[...] = theirs
        first = block[shift : shift + mine.size].reshape(mine.shape)
        if shift >= theirs.size:
            continue
        arrays |= {a.name: first, other.name: second}
        refused(getattr(ops, row.name), case, arrays, never, naming=("overlaps",))


@pytest.mark.parametrize("row", [r for r in ROWS if len(r.outputs) > 1], ids=by_name)
@pytest.mark.parametrize("wrong", ["list", "short", "long", "array"])
def test_refuses_out(make_case, never, row, wrong):
    case = make(make_case, row)
    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    out = case.out(arrays)
    bad = {"list": list(out), "short": out[:-1], "long": (*out, out[0]), "array": out[0]}[wrong]
    refused(getattr(ops, row.name), case, arrays, never, naming=("out",), out=bad)


def with_indices(counts: bool) -> list[object]:
    """Rows and index arrays that count something, which are of fixed size, or that have rows of the first."""
    return [
        pytest.param(row, a, id=f"{row.name}-{a.name}")
        for row in ROWS
        for a in row.given
        if a.kind == "index" and a.dims[0].isdigit() == counts
    ]


@pytest.mark.parametrize(("row", "a"), with_indices(counts=False))
def test_refuses_index_out_of_range(make_case, never, row, a):
    case = make(make_case, row)
    rows = len(case.inputs[row.arrays[0].name])
    for wrong in (-1, rows, np.iinfo(np.int64).max, np.iinfo(np.int64).min):
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        bad = arrays[a.name].copy()
        bad[-1] = wrong
        refused(getattr(ops, row.name), case, arrays, never, naming=(a.name,), **{a.name: bad})


@pytest.mark.parametrize(("row", "a"), with_indices(counts=True))
def test_refuses_negative_count(make_case, never, row, a):
    case = make(make_case, row)
    for place in range(int(a.dims[0])):
        for wrong in (-1, np.iinfo(np.int64).min):
            arrays = {name: guarded.array for name, guarded in case.allocate().items()}
            bad = arrays[a.name].copy()
            bad[place] = wrong
            refused(getattr(ops, row.name), case, arrays, never, naming=(a.name,), **{a.name: bad})


@pytest.mark.parametrize("row", [r for r in ROWS if r.at_least], ids=by_name)
def test_refuses_too_few(make_case, never, row):
    for dim, least in row.at_least.items():
        for size in range(1, least):
            dims = {d: DIMS.get(d, 8) for d in row.dims if d not in row.derived} | {dim: size}
            case = make_case(row, dims)
            arrays = {name: guarded.array for name, guarded in case.allocate().items()}
            refused(
                getattr(ops, row.name), case, arrays, never, naming=(f"{dim} >= {least}", f"{dim}={size}")
            )


def test_refuses_batchnorm_of_one_row():
    x, *others = np.ones((1, 3)), *np.ones((4, 3))
    with pytest.raises(
        ValueError, match=r"^batchnorm_forward: x: expected shape \(n, m\) with n >= 2, given n=1$"
    ):
        ops.batchnorm_forward(x, *others)


@pytest.mark.parametrize("row", [r for r in ROWS if any(len(g) > 1 for g in optional_groups(r))], ids=by_name)
def test_refuses_some_of_what_belongs_together(make_case, never, row):
    together = optional_groups(row)[-1]
    for count in range(1, len(together)):
        for some in itertools.combinations(together, count):
            case = make(make_case, row)
            arrays = {name: guarded.array for name, guarded in case.allocate().items()}
            call, missing = getattr(ops, row.name), {a.name: None for a in some}
            refused(call, case, arrays, never, naming=("given None",), **missing)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "linear"])
@pytest.mark.parametrize(
    "row", [r for r in ROWS if any(a.role == "saved" and a.optional for a in r.given)], ids=by_name
)
def test_refuses_to_go_without_what_the_derivative_needs(make_case, never, row, activation):
    case = make(make_case, row, activation=activation)
    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    saved = next(a.name for a in row.given if a.role == "saved" and a.optional)
    refused(getattr(ops, row.name), case, arrays, never, naming=(saved,), **{saved: None})


# Wrong constants ------------------------------------------------------------------------------------------

WRONG = {
    "activation": ["gelu", "ReLU", "", None, 1, b"relu", ["relu"]],
    "int": [True, 1.0, -1, "3", None, 2**63, 10**400, np.float64(2), np.array(2), [2]],
    "real": [True, "0.1", None, np.nan, np.inf, -np.inf, -0.1, 1j, 10**400, np.array(0.1), [0.1]],
}


def constants() -> list[object]:
    return [pytest.param(row, c, id=f"{row.name}-{c.name}") for row in ROWS for c in row.constants] + [
        pytest.param(row, Constant(d, "int", minimum=1), id=f"{row.name}-{d}")
        for row in ROWS
        for d in row.free_dims
    ]


def changed(case, c: Constant, value: object) -> dict[str, object]:
    """Keyword arguments with another value of a constant, or of a dim that is asked for like one."""
    if c.part_of:
        return {c.part_of: case.arguments(**{c.name: value})[c.part_of]}
    return {c.name: value}


def beyond(c: Constant) -> list[object]:
    """Values just outside what the constant may be; at the end of an open interval that is the end."""
    if c.kind == "activation":
        return []

    def next_to(value: float, towards: float) -> object:
        return np.nextafter(value, towards) if c.kind == "real" else int(value + np.sign(towards))

    values: list[object] = [end for end in (c.above, c.below) if end is not None]
    values += [next_to(c.minimum, -np.inf)] if c.minimum is not None else []
    values += [next_to(c.maximum, np.inf), 1e300] if c.maximum is not None else []
    return values + ([2.0, 1e30] if c.below is not None else [])


def inside(c: Constant) -> list[object]:
    """Values at the ends of what the constant may be."""
    if c.kind == "activation":
        return list(ACTIVATIONS)
    values: list[object] = [end for end in (c.minimum, c.maximum) if end is not None]
    values += [np.nextafter(c.above, np.inf)] if c.above is not None else []
    values += [np.nextafter(c.below, -np.inf)] if c.below is not None else []
    return [int(v) for v in values] if c.kind == "int" else values


@pytest.mark.parametrize(("row", "c"), [p for p in constants() if p.values[1] in p.values[0].constants])
def test_accepts_constants_to_the_end(make_case, row, c):
    for value in inside(c):
        case = make(make_case, row, constants={} if row.derived or row.demands else {c.name: value})
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        getattr(ops, row.name)(**case.keywords(arrays), backend="numpy")


#: What no optimiser and no layer may be given, by the name of the constant.
REFUSED = {
    "rate": [-0.1, 1.0, 1.5, np.nan],
    "learning_rate": [0.0, -0.0, -1e-3, np.inf, np.nan],
    "beta1": [-0.1, 1.0, 1.1],
    "beta2": [-0.1, 1.0, 1.1],
    "alpha": [-0.1, 1.0],
    "momentum": [-0.1, 1.1],
    "weight_decay": [-1e-5, np.inf, np.nan],
    "epsilon": [-1e-8, np.nan],
    "max_norm": [0.0, -1.0, np.nan, np.inf],
    "delta": [0.0, -1.0],
    "stddev": [-1.0, np.inf],
    "nesterov": [2, -1],
    "decoupled": [2, -1],
    "stream": [-1],
    "stride": [0, -1],
    "columns": [0, -1],
    "count_include_pad": [2, -1],
    "groups": [0, -1, 1 << 31],
}
REFUSED |= {
    f"{name}_{end}": [0, -1, 1 << 31]
    for name in ("stride", "dilation", "kernel", "pool", "factor")
    for end in ("h", "w")
}
REFUSED |= {
    name: [-1, 1 << 31]
    for name in (
        "padding_top",
        "padding_left",
        "padding_bottom",
        "padding_right",
        "output_padding_h",
        "output_padding_w",
    )
}


@pytest.mark.parametrize(("row", "c"), [p for p in constants() if p.values[1].name in REFUSED])
def test_refuses_what_makes_no_sense(make_case, never, row, c):
    for wrong in REFUSED[c.name]:
        case = make(make_case, row)
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        refused(getattr(ops, row.name), case, arrays, never, naming=(c.name,), **changed(case, c, wrong))


def test_every_constant_has_something_it_may_not_be():
    names = {c.name for row in ROWS for c in row.constants} - {"activation"}
    assert names == REFUSED.keys()


def test_message_of_an_interval():
    x, counter = np.ones((2, 3)), np.array([0, 0])
    with pytest.raises(
        ValueError, match=r"^dropout_forward: rate: expected a number >= 0 and < 1, given 1\.0$"
    ):
        ops.dropout_forward(x, counter, rate=1)


@pytest.mark.parametrize(("row", "c"), constants())
def test_refuses_constant(make_case, never, row, c):
    for wrong in WRONG[c.kind] + beyond(c):
        case = make(make_case, row)
        arrays = {name: guarded.array for name, guarded in case.allocate().items()}
        refused(getattr(ops, row.name), case, arrays, never, naming=(c.name,), **changed(case, c, wrong))


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match=r"linear, relu, sigmoid, tanh.*'gelu'"):
        ops.activation_forward(np.ones((1, 1)), activation="gelu")


@pytest.mark.parametrize(("row", "c"), [p for p in constants() if p.values[1].kind == "real"])
def test_refuses_a_real_that_is_infinite_in_float32(make_case, never, row, c):
    case = make(make_case, row, "float32")
    arrays = {name: guarded.array for name, guarded in case.allocate().items()}
    refused(getattr(ops, row.name), case, arrays, never, naming=(c.name,), **changed(case, c, 1e39))


def test_refuses_backend():
    x = np.ones((2, 2))
    with pytest.raises(
        ValueError, match="backend: expected one of scalar, numpy, numba, cython, given 'fortran'"
    ):
        ops.branch_sum(x, x, backend="fortran")
    with pytest.raises(TypeError, match=r"backend: expected one of .*, given int"):
        ops.branch_sum(x, x, backend=3)


def test_message():
    x, w = np.ones((20, 225), np.float32), np.ones((224, 75), np.float32)
    with pytest.raises(
        ValueError, match=r"^dense_forward: w: expected shape \(k=225, m\), given shape \(224, 75\)$"
    ):
        ops.dense_forward(x, w)
    with pytest.raises(
        TypeError, match=r"^dense_forward: w: expected dtype float32 as x has, given float64$"
    ):
        ops.dense_forward(x, w.astype(np.float64))
    with pytest.raises(
        TypeError, match=r"^dense_forward: x: expected an ndarray, or .* given list \(np.asarray\(x\)"
    ):
        ops.dense_forward([[1.0]], w)
