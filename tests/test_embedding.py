"""fastae in other people's compiled code: the C header, the capsule, ctypes, Cython, and plans.

What the kernels compute is held elsewhere (test_kernels.py); here the same bits have to come out of every
other way to call them. C code is compiled by every compiler that is there; a skip says which one is not.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastae
from fastae import Dense, Network, Trainer, plans
from fastae import backend as backends
from fastae.kernels import c_interface, table
from fastae.kernels.table import ACTIVATIONS, KERNELS

try:
    from fastae import ctypes_kernels as ck
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("the compiled kernels are not there", allow_module_level=True)

FUNCTIONS = c_interface.functions(table)
OF_KERNELS = [f for f in FUNCTIONS if f.kind in ("f32", "f64")]
OF_WORKSPACES = [f for f in FUNCTIONS if f.kind == "workspace_size"]
#: Functions that are tested by hand, below.
OF_PLANS = {"error", "plan_open", "plan_load", "plan_store", "run"}

CODES = {
    name: int(code)
    for name, code in re.findall(
        r"FASTAE_ERROR_(\w+) = (-\d+)", (Path(fastae.get_include()) / "fastae.h").read_text()
    )
}


def by_name(f):
    return f.name


def raw(name, *, checked=True):
    """A function of the C interface that returns its error code."""
    made = ck.function.__wrapped__(name, checked=checked)
    del made.errcheck
    return made


# Functions and the ABI -------------------------------------------------------------------------------------


def test_every_exported_function_has_a_test():
    tested = {f.name for f in OF_KERNELS} | {f.name for f in OF_WORKSPACES} | OF_PLANS
    assert set(ck.cython_kernels.ADDRESSES) == tested
    exported = {name.removeprefix("checked_") for name in ck.cython_kernels.__pyx_capi__}
    assert exported == tested
    kernels = {f.kernel.name for f in OF_KERNELS}
    assert kernels == set(KERNELS)
    text = (Path(fastae.get_include()) / "fastae.h").read_text()
    declared = set(re.findall(r"^FASTAE_INLINE .*?\bfastae_(\w+)\(", text, re.M))
    assert declared == tested | {"import", "use", "instruction_set"}


def test_abi_is_the_recorded_one():
    """Where it fails: a struct may only get longer, at its end; any other change raises ABI_VERSION.

    ``python -m fastae.kernels.c_interface`` records what there is.
    """
    assert c_interface.RECORD.read_text() == c_interface.declarations(table)


def test_structs_lie_as_recorded(build, tmp_path):
    """Every member is a pointer or an int64_t, so that the place of each follows from the record."""
    fields = {"kernels": [], "api": [], "plan": []}
    for line in c_interface.RECORD.read_text().splitlines():
        which, _, text = line.partition(": ")
        if which in ("version", "code"):
            continue
        fields[which].append(re.search(r"\(\*(\w+)\)|(\w+)$", text).group(1, 2))
    lines = [
        f'printf("{which} {a or b} %zu\\n", offsetof(fastae_{which}, {a or b}));'
        for which, names in fields.items()
        for a, b in names
    ]
    source = '#include <stddef.h>\n#include <stdio.h>\n#include "fastae.h"\nint main(void) {' + "\n".join(
        lines
    )
    program = build(source + "return 0; }", python=False, shared=False)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert printed == [
        f"{which} {a or b} {8 * i}" for which, names in fields.items() for i, (a, b) in enumerate(names)
    ]


def test_new_functions_come_last(monkeypatch, tmp_path):
    known = c_interface.RECORD.read_text()
    first = next(line for line in known.splitlines() if "(*sgd_f32)" in line)
    (tmp_path / "abi.txt").write_text(known.replace(f"{first}\n", ""))
    monkeypatch.setattr(c_interface, "RECORD", tmp_path / "abi.txt")
    names = [f.name for f in c_interface.functions(table)]
    assert names[-1] == "sgd_f32"
    (tmp_path / "abi.txt").write_text(known + "kernels: int (*gone_f32)(void)\n")
    with pytest.raises(ValueError, match="gone_f32"):
        c_interface.functions(table)


def test_header_names_every_activation():
    text = (Path(fastae.get_include()) / "fastae.h").read_text()
    found = dict(re.findall(r"FASTAE_(\w+) = (\d)", text))
    assert {name.upper(): str(a.code) for name, a in ACTIVATIONS.items()}.items() <= found.items()


def test_header_documents_every_argument():
    text = (Path(fastae.get_include()) / "fastae.h").read_text()
    for f in OF_KERNELS[::2]:
        (comment,) = re.findall(
            rf"/\*((?:(?!/\*).)*?)\*/\nFASTAE_INLINE int fastae_{f.name}\(", text, re.DOTALL
        )
        for argument in f.kernel.arguments:
            assert re.search(rf"\n \*   {argument.name} ", comment), (f.name, argument.name)


# Every function --------------------------------------------------------------------------------------------

KNOWN = {"n": 19, "k": 5, "m": 19, "p": 37, "r": 7, "c": 4, "o": 4, "cg": 2, "og": 2}
KNOWN |= {"ih": 4, "iw": 6, "kh": 2, "kw": 3, "vh": 3, "vw": 5}


def own_dims(row):
    return {d: KNOWN[d] for d in row.dims if d not in row.derived}


def of_cython(name):
    """Address and signature of a function that Cython code cimports."""
    capsule = ck.cython_kernels.__pyx_capi__[name]
    get_name, get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = get_name(capsule)
    return get_pointer(capsule, signature), signature.decode()


def through_c(f, case, route):
    """Call a C function in place of the kernel of a case."""
    function = ck.function(f.name, checked="checked" in route)
    if "cython" in route:
        address, signature = of_cython(("checked_" if "checked" in route else "") + f.name)
        types = [re.sub(r"const (\w+)", r"\1 const", ctype) for ctype, _ in f.parameters]
        assert signature == f"int ({', '.join(types)})"
        argtypes = function.argtypes
        plain = [t if t in (ctypes.c_double, ctypes.c_int64) else ctypes.c_void_p for t in argtypes]
        function = ctypes.CFUNCTYPE(ctypes.c_int, *plain)(address)
        function.argtypes = argtypes

    def call(*arguments):
        given = [None if isinstance(a, np.ndarray) and a.size == 0 else a for a in arguments]
        assert function(*given, *case.dims.values()) == 0

    return SimpleNamespace(kernels={f.kernel.name: call}, prepare=None)


@pytest.mark.parametrize("route", ["checked", "release", "cython", "cython checked"])
@pytest.mark.parametrize("f", OF_KERNELS, ids=by_name)
def test_function(make_case, same_bits, f, route):
    row = f.kernel
    optional = [a.name for a in row.arrays if a.optional and a.role not in ("work", "saved")]
    dtype = {"f32": "float32", "f64": "float64"}[f.kind]
    activation = "tanh" if any(c.kind == "activation" for c in row.constants) else "linear"
    for absent in ((), tuple(optional)) if optional else ((),):
        case = make_case(row, own_dims(row), dtype, activation=activation, absent=absent)
        case.dims = {d: case.dims[d] for d in row.dims}
        expected = case.run(backends.load("cython"))
        found = case.run(through_c(f, case, route))
        for name, values in expected.items():
            same_bits(found[name], values, f"{f.name}: {name}")


def test_agrees_with_ops():
    """The functions of the table through C and through fastae.ops, once more by the front door."""
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(20, 225)), rng.normal(size=(225, 75)), rng.normal(size=75)
    y = np.full((20, 75), np.nan)
    ck.dense_forward_f64(x, w, b, ACTIVATIONS["tanh"].code, y, 20, 225, 75)
    assert np.array_equal(y, fastae.ops.dense_forward(x, w, b, activation="tanh", backend="cython"))


def workspace_case(make_case, f):
    case = make_case(f.kernel, own_dims(f.kernel))
    work = [a for a in f.kernel.arrays if a.role == "work"]
    given = [case.constants.get(name, case.dims.get(name)) for c, name in f.parameters if c == "int64_t"]
    return case, work, given


@pytest.mark.parametrize("f", OF_WORKSPACES, ids=by_name)
def test_workspace_size(make_case, f):
    case, work, given = workspace_case(make_case, f)
    rooms = [ctypes.c_int64(-1) for _ in work]
    assert getattr(ck, f.name)(*given, *rooms) == 0
    expected = [np.prod(f.kernel.shape(a, case.dims)) for a in work]
    assert [room.value for room in rooms] == expected
    types = [ctypes.c_int64] * len(given) + [ctypes.c_void_p] * len(work)
    again = [ctypes.c_int64(-1) for _ in work]
    function = ctypes.CFUNCTYPE(ctypes.c_int, *types)(of_cython(f.name)[0])
    assert function(*given, *map(ctypes.addressof, again)) == 0
    assert [room.value for room in again] == expected


@pytest.mark.parametrize("f", OF_WORKSPACES, ids=by_name)
def test_workspace_size_of_what_cannot_be(make_case, f):
    _, work, given = workspace_case(make_case, f)
    function = raw(f.name)
    rooms = [ctypes.c_int64(-1) for _ in work]
    integers = [name for c, name in f.parameters if c == "int64_t"]
    for i, name in enumerate(integers):
        for value in (0, -1, -(2**63)) if name in f.kernel.dims else (-1, -(2**63)):
            changed = [*given[:i], value, *given[i + 1 :]]
            assert function(*changed, *rooms) in (CODES["SIZE"], CODES["CONSTANT"]), (name, value)
    huge = [2**62 if name in f.kernel.dims else v for name, v in zip(integers, given, strict=True)]
    assert function(*huge, *rooms) in (CODES["OVERFLOW"], CODES["SIZE"])
    n = integers.index("n")
    assert function(*given[:n], 2**62, *given[n + 1 :], *rooms) == CODES["OVERFLOW"]
    nothing = [ctypes.c_int64(-1) for _ in work[1:]]
    made = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * len(given), *[ctypes.c_void_p] * len(work))
    bare = made(ck.address(f.name))
    assert bare(*given, None, *(ctypes.addressof(r) for r in nothing)) == CODES["NULL"]
    assert all(room.value == -1 for room in rooms)


@pytest.mark.parametrize("f", OF_KERNELS, ids=by_name)
def test_checks(make_case, f):
    """Each pointer NULL and misaligned, each size and constant wrong: an error code, and nothing written."""
    row = f.kernel
    dtype = {"f32": "float32", "f64": "float64"}[f.kind]
    activation = "tanh" if any(c.kind == "activation" for c in row.constants) else "linear"
    case = make_case(row, own_dims(row), dtype, activation=activation)
    arrays = case.allocate(readonly=False)
    before = {name: a.array.copy() for name, a in arrays.items()}
    types, given = [], []
    for a in row.arguments:
        if isinstance(a, table.Array):
            types.append(ctypes.c_void_p)
            given.append(arrays[a.name].array.ctypes.data)
        else:
            value = case.constants[a.name]
            types.append(ctypes.c_double if a.kind == "real" else ctypes.c_int64)
            given.append(ACTIVATIONS[value].code if a.kind == "activation" else value)
    types += [ctypes.c_int64] * len(row.dims)
    given += [case.dims[d] for d in row.dims]
    call = ctypes.CFUNCTYPE(ctypes.c_int, *types)(ck.address(f.name, checked=True))

    def refused(i, value):
        return call(*given[:i], value, *given[i + 1 :])

    together = [a for a in row.arrays if a.optional and a.role == "state"]
    for i, a in enumerate(row.arguments):
        if isinstance(a, table.Array):
            if not a.optional or a.role in ("work", "saved") or (a.role == "state" and len(together) > 1):
                assert refused(i, None) == CODES["NULL"], a.name
            assert refused(i, given[i] + 1) == CODES["ALIGNMENT"], a.name
            assert refused(i, given[i] + 2) == CODES["ALIGNMENT"], a.name
        elif a.kind == "activation":
            assert refused(i, -1) == refused(i, len(ACTIVATIONS)) == CODES["CONSTANT"]
        else:
            bad = [v - 1 for v in (a.minimum, a.above) if v is not None]
            bad += [v + 1 for v in (a.maximum, a.below) if v is not None]
            bad += [v for v in (a.above, a.below) if v is not None]
            bad += [float("nan"), float("inf")] if a.kind == "real" else []
            for value in bad:
                value = float(value) if a.kind == "real" else int(value)
                assert refused(i, value) == CODES["CONSTANT"], (a.name, value)
    for i, d in enumerate(row.dims, len(row.arguments)):
        for value in (0, -1, -(2**63)):
            assert refused(i, value) == CODES["SIZE"], d
        assert refused(i, 2**62) in (CODES["OVERFLOW"], CODES["SIZE"]), d
        if d in row.derived:
            assert refused(i, given[i] - 1) == CODES["SIZE"], d
            if d not in row.workspace_dims:
                assert refused(i, given[i] + 1) == CODES["SIZE"], d
    for name, values in before.items():
        assert arrays[name].array.tobytes() == values.tobytes(), name
        arrays[name].check(name)


def test_rules_in_c_are_those_of_the_table(make_case):
    """Derived dims and demands, traced into C, against the Python they were traced from; random geometry."""
    rng = np.random.default_rng(0)
    agreed = {True: 0, False: 0}
    for f in OF_WORKSPACES:
        row = f.kernel
        if not row.derived:
            continue
        function, work = raw(f.name), [a for a in row.arrays if a.role == "work"]
        names = [name for c, name in f.parameters if c == "int64_t"]
        for _ in range(300):
            free = {n: int(rng.integers(1, 7)) for n in names if n not in row.derived}
            free |= {c.name: int(rng.integers(0, 4)) for c in row.constants if c.name in free}
            free |= {c.name: max(free[c.name], int(c.minimum)) for c in row.constants if c.name in free}
            rooms = [ctypes.c_int64(-1) for _ in work]
            try:
                known = free | row.derive(free | {"activation": "linear"})
            except ValueError:
                known = None
            sizes = known or free
            code = function(*(sizes.get(name, 1) for name in names), *rooms)
            assert (code == 0) == (known is not None), (row.name, free)
            if known:
                assert [r.value for r in rooms] == [np.prod(row.shape(a, known)) for a in work]
            agreed[known is not None] += 1
    assert min(agreed.values()) > 100


# ctypes and cffi -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, y: (x.astype("f8"), y),
            "x: expected a C-contiguous array of float32, given one of float64",
        ),
        (lambda x, y: (x.T, y), "x: expected a C-contiguous"),
        (lambda x, y: (None, y), "x: expected an array, given None"),
        (lambda x, y: (x, y[:, ::2]), "y: expected a C-contiguous, writeable array"),
        (lambda x, y: (x, np.frombuffer(y.tobytes(), "f4").reshape(y.shape)), "y: .* writeable=False"),
    ],
)
def test_ctypes_refuses_other_arrays(change, message):
    x, y = change(np.ones((3, 4), "f4"), np.full((3, 4), np.nan, "f4"))
    with pytest.raises(ctypes.ArgumentError, match=message):
        ck.activation_forward_f32(x, 0, y, 3, 4)


def test_ctypes_takes_pointers_and_addresses():
    x, y = (ctypes.c_double * 3)(-1, 0, 2), (ctypes.c_double * 3)()
    assert ck.activation_forward_f64(x, 1, ctypes.cast(y, ctypes.POINTER(ctypes.c_double)), 1, 3) == 0
    assert list(y) == [0, 0, 2]
    y[:] = [9, 9, 9]
    assert ck.activation_forward_f64(ctypes.addressof(x), 1, ctypes.addressof(y), 1, 3) == 0
    assert list(y) == [0, 0, 2]


def test_ctypes_raises_errors():
    with pytest.raises(ValueError, match="branch_sum_f32: a size is less than 1"):
        ck.branch_sum_f32(*[np.ones((1, 1), "f4")] * 3, 0, 1)


def test_ctypes_unknown_function():
    with pytest.raises(AttributeError, match="dense_f16"):
        ck.dense_f16  # noqa: B018
    with pytest.raises(ValueError, match="dense_f16"):
        ck.address("dense_f16")
    with pytest.raises(ValueError, match="plan_open"):
        ck.signature("plan_open")


def test_error_texts():
    texts = {ck.error_text(code) for code in (0, *CODES.values())}
    assert len(texts) == 1 + len(CODES)
    assert "unknown error" not in texts
    assert ck.error_text(-99) == ck.error_text(7) == "unknown error"


def test_cffi():
    cffi = pytest.importorskip("cffi") if not os.environ.get("CI") else __import__("cffi")
    ffi = cffi.FFI()
    ffi.cdef(ck.cdef())
    api = ffi.cast("const fastae_api *", ck.api_address())
    x, y = np.array([[-1.0, 2.0]]), np.full((1, 2), np.nan)
    pointers = [ffi.from_buffer("double[]", a) for a in (x, y)]
    assert api.kernels.activation_forward_f64(pointers[0], 1, pointers[1], 1, 2) == 0
    assert y.tolist() == [[0, 2]]
    assert api.checked.activation_forward_f64(ffi.NULL, 1, pointers[1], 1, 2) == CODES["NULL"]
    assert ffi.sizeof("fastae_plan") == ctypes.sizeof(ck.Plan)
    assert ffi.string(api.version).decode() == fastae.__version__


# C and C++ -------------------------------------------------------------------------------------------------

LANGUAGES = {"c99": ("c", "-std=c99"), "c++17": ("c++", "-std=c++17")}
COMPILERS = {"gcc": {"c": "gcc", "c++": "g++"}, "clang": {"c": "clang", "c++": "clang++"}}
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]


def compile_with(compiler, language, source, target, *, include=None, python=True, shared=True, options=()):
    kind, standard = LANGUAGES[language]
    command = COMPILERS[compiler][kind]
    if shutil.which(command) is None:
        message = f"{command} is not installed"
        if os.environ.get("CI" if compiler == "gcc" else "CI_CLANG"):
            pytest.fail(message)
        pytest.skip(message)
    path = target.with_suffix(".c" if kind == "c" else ".cpp")
    path.write_text(source)
    flags = [standard, *WARNINGS, "-O2", "-I", include or fastae.get_include()]
    flags += ["-isystem", sysconfig.get_path("include")] if python else []
    flags += ["-shared", "-fPIC"] if shared else []
    subprocess.run([command, *flags, *options, str(path), "-o", str(target), "-lpthread"], check=True)
    return target


@pytest.fixture
def build(tmp_path):
    def make(source, **options):
        return compile_with("gcc", "c99", source, tmp_path / "built.so", **options)

    return make


PROBE = """
#include <Python.h>
#include "fastae.h"
#ifdef __cplusplus
extern "C" {
#endif
int probe_import(void);
int probe_import(void) { return fastae_import(); }
int probe_run(const float *x, const float *w, const float *b, float *y, int64_t n, int64_t k, int64_t m);
int probe_run(const float *x, const float *w, const float *b, float *y, int64_t n, int64_t k, int64_t m)
{
    return fastae_dense_forward_f32(x, w, b, FASTAE_RELU, y, n, k, m);
}
const char *probe_text(int code);
const char *probe_text(int code) { return code ? fastae_error(code) : fastae_instruction_set(); }
#ifdef __cplusplus
}
#endif
"""


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("python", [True, False])
def test_every_function_compiles(tmp_path, compiler, language, python):
    """The header alone and with Python, without a warning, every function used."""
    names = [f"fastae_{f.name}" for f in FUNCTIONS]
    names += [f"fastae_{name}" for name in OF_PLANS | {"instruction_set", "use"}]
    names += ["fastae_import"] if python else []
    uses = "\n".join(f"    if ((uintptr_t)&{name} == seed) found++;" for name in names)
    source = ("#include <Python.h>\n" if python else "") + '#include "fastae.h"\n'
    source += (
        "int main(int argc, char **argv)\n{\n    int found = 0;\n    uintptr_t seed = (uintptr_t)argv;\n"
    )
    source += f"{uses}\n"
    source += "    return found + argc;\n}\n"
    options = ["-c"] if python else []
    compile_with(compiler, language, source, tmp_path / "all.o", python=python, shared=False, options=options)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("checked", [True, False])
def test_capsule(tmp_path, compiler, language, checked):
    options = ["-DFASTAE_CHECKED"] if checked else []
    library = ctypes.PyDLL(
        str(compile_with(compiler, language, PROBE, tmp_path / "probe.so", options=options))
    )
    assert library.probe_import() == 0
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype("f4") for s in ((4, 9), (9, 5), (5,)))
    y = np.full((4, 5), np.nan, "f4")
    library.probe_run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3
    pointers = [a.ctypes.data for a in (x, w, b, y)]
    assert library.probe_run(*pointers, 4, 9, 5) == 0
    assert np.array_equal(y, fastae.ops.dense_forward(x, w, b, activation="relu", backend="cython"))
    library.probe_text.restype = ctypes.c_char_p
    assert library.probe_text(0).decode() == fastae.kernels.compiled.instruction_set
    if checked:
        assert library.probe_run(None, *pointers[1:], 4, 9, 5) == CODES["NULL"]
        assert library.probe_run(*pointers, 4, 9, -5) == CODES["SIZE"]


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (
            r"(#define FASTAE_ABI_VERSION) \d+",
            r"\1 99",
            (
                rf"fastae {re.escape(fastae.__version__)} \(ABI version 99\), and fastae "
                rf"{re.escape(fastae.__version__)} is installed \(ABI version {c_interface.ABI_VERSION}\)"
            ),
        ),
        (
            r'(FASTAE_HEADER_VERSION) "[\d.]+"([^$]*)\} fastae_kernels;',
            r'\1 "9.9.9"\2 int (*of_the_future)(void); } fastae_kernels;',
            rf"fastae 9.9.9, and the older fastae {re.escape(fastae.__version__)} is installed",
        ),
        (r"\} fastae_api;", "int (*of_the_future)(void); } fastae_api;", "the older fastae"),
    ],
    ids=["version", "kernels", "api"],
)
def test_another_version_is_refused(tmp_path, build, pattern, text, message):
    header = (Path(fastae.get_include()) / "fastae.h").read_text()
    changed, count = re.subn(pattern, text, header)
    assert count == 1
    (tmp_path / "fastae.h").write_text(changed)
    library = ctypes.PyDLL(str(build(PROBE, include=str(tmp_path))))
    with pytest.raises(ImportError, match=message):
        library.probe_import()


# Plans -----------------------------------------------------------------------------------------------------


class Opened:
    """An open plan with an arena of its own."""

    def __init__(self, block):
        self.block = block
        self.plan = ck.Plan()
        ck.plan_open(block, len(block), self.plan)
        # between bytes nobody may touch
        room = np.full(self.plan.arena_size + 3 * 64, 0xFF, np.uint8)
        start = -room.ctypes.data % 64 + 64
        self.room, self.inside = room, slice(start, start + self.plan.arena_size)
        self.arena = room[self.inside]
        ck.plan_load(self.plan, self.arena)
        self.dtype = {4: np.float32, 8: np.float64}[self.plan.itemsize]

    def infer(self, name, rows):
        columns = self.plan.code_columns if name == "encode" else self.plan.output_columns
        out = np.full((len(rows), columns), np.nan, self.dtype)
        ck.run(self.plan, self.arena, plans.ROUTINES.index(name), len(rows), rows, None, out, None)
        self.check()
        return out

    def learn(self, name, rows, target=None):
        losses = np.full(-(-len(rows) // self.plan.batch_size), np.nan)
        ck.run(self.plan, self.arena, plans.ROUTINES.index(name), len(rows), rows, target, None, losses)
        self.check()
        return losses

    def stored(self):
        block = bytearray(b"\xff" * self.plan.size)
        ck.plan_store(self.plan, self.arena, block)
        return bytes(block)

    def check(self):
        outside = np.delete(self.room, np.r_[self.inside])
        assert (outside == 0xFF).all()


MODELS = {
    name: getattr(fastae.models, name)
    for name in ("autoencnet", "quark_mlp", "batchnorm_mlp", "deep_mlp", "upsample_conv", "strided_conv")
}


def small():
    return Network(
        encoder=[Dense(6, "tanh"), fastae.BatchNorm(activation="relu"), fastae.Dropout(0.2), Dense(3)],
        decoder=[Dense(9, "sigmoid")],
        input_shape=9,
    )


def trainer_of(net, **options):
    given = {"optimizer": fastae.Adam(1e-3), "batch_size": 8, "seed": 0, "backend": "cython", "n_threads": 1}
    return Trainer(net, **given | options)


def rows_of(net, count, dtype="float32"):
    return np.random.default_rng(1).random((count, int(np.prod(net.input_shape)))).astype(dtype)


@pytest.mark.parametrize("batch_size", [8, 19])  # one block of images, and two, whose gradients are halved
@pytest.mark.parametrize("name", MODELS)
def test_plan_of_a_published_network(same_bits, name, batch_size):
    net = MODELS[name]()
    trainer = trainer_of(net, batch_size=batch_size)
    X = rows_of(net, 21)
    trainer.fit(X, epochs=1)
    opened = Opened(fastae.plan(trainer))
    codes = trainer.encode(X).reshape(21, -1)
    same_bits(opened.infer("encode", X), codes, "encode")
    same_bits(opened.infer("decode", codes), trainer.decode(trainer.encode(X)).reshape(21, -1), "decode")
    whole = trainer.reconstruct(X).reshape(21, -1)
    same_bits(opened.infer("reconstruct", X), whole, "reconstruct")
    for i in (0, 20):  # a row has the same bits alone
        same_bits(opened.infer("reconstruct", X[i : i + 1]), whole[i : i + 1], f"row {i}")
    history = trainer.fit(X, epochs=2, sampling="sequential")
    found = np.concatenate([opened.learn("train", X) for _ in range(2)])
    same_bits(found, np.array(history.batch_loss), "losses")
    learned = plans.weights(opened.stored())
    assert learned.keys() == trainer.weights.keys()
    for key, values in trainer.weights.items():
        same_bits(learned[key], values, key)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "clipped"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("target", [False, True], ids=["", "target"])
def test_training(same_bits, optimizer, dtype, target):
    """Updates, running statistics, dropout and input noise go on where the trainer stands."""
    optimizer = {
        "sgd": fastae.SGD(0.1, weight_decay=0.01),
        "momentum": fastae.SGD(0.1, momentum=0.9),
        "adam": fastae.AdamW(1e-2),
        "clipped": fastae.RMSprop(1e-2, clip_norm=0.1),
    }[optimizer]
    net = small()
    trainer = trainer_of(net, optimizer=optimizer, dtype=dtype, noise=fastae.GaussianNoise(0.1))
    X = rows_of(net, 27, dtype)
    goal = X[::-1].copy() if target else None
    trainer.fit(X, goal, epochs=1)
    opened = Opened(fastae.plan(trainer))
    history = trainer.fit(X, goal, epochs=3, sampling="sequential")
    found = np.concatenate([opened.learn("train", X, goal) for _ in range(3)])
    same_bits(found, np.array(history.batch_loss), "losses")
    for key, values in trainer.weights.items():
        same_bits(plans.weights(opened.stored())[key], values, key)
    again = Opened(opened.stored())  # a stored plan goes on
    history = trainer.fit(X, goal, epochs=1, sampling="sequential")
    same_bits(again.learn("train", X, goal), np.array(history.batch_loss), "losses after storing")
    assert again.learn("evaluate", X[:8], None if goal is None else goal[:8])[0] == pytest.approx(
        trainer.evaluate(X[:8], None if goal is None else goal[:8]), rel=1e-6
    )


def test_plan_of_a_file_and_of_an_estimator(tmp_path):
    pytest.importorskip("safetensors")
    trainer = trainer_of(small())
    trainer.fit(rows_of(trainer.net, 16), epochs=1)
    trainer.save(tmp_path / "model.safetensors")
    assert fastae.plan(tmp_path / "model.safetensors") == fastae.plan(trainer)
    assert fastae.plan(SimpleNamespace(trainer_=trainer)) == fastae.plan(trainer)


def test_plan_from_another_backend(same_bits):
    """Any trainer's weights; what runs is the cython backend."""
    trainer = trainer_of(small(), backend="numpy")
    X = rows_of(trainer.net, 10)
    trainer.fit(X, epochs=1)
    found = Opened(fastae.plan(trainer)).infer("reconstruct", X)
    trainer.backend = "cython"
    same_bits(found, trainer.reconstruct(X), "reconstruct")


def test_fewer_routines_and_smaller_batches():
    trainer = trainer_of(small())
    whole = Opened(fastae.plan(trainer))
    lean = Opened(fastae.plan(trainer, batch_size=1, routines=("encode",)))
    assert lean.plan.arena_size < whole.plan.arena_size
    assert (lean.plan.batch_size, lean.plan.routines, whole.plan.routines) == (1, 1, 31)
    X = rows_of(trainer.net, 5)
    assert np.array_equal(lean.infer("encode", X), whole.infer("encode", X))
    with pytest.raises(ValueError, match="does not have this routine"):
        lean.infer("reconstruct", X)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"model": small()},
            TypeError,
            "model: expected a Trainer, a fitted estimator or a path, given Network",
        ),
        ({"routines": ()}, ValueError, "routines: expected some of encode, decode"),
        ({"routines": ("encode", "predict")}, ValueError, "routines: expected some of"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 1}, ValueError, "batch_size: expected at least 2, to train with, given 1"),
    ],
)
def test_plan_of_what_is_none(arguments, error, message):
    with pytest.raises(error, match=message):
        fastae.plan(**{"model": trainer_of(small())} | arguments)


def test_arguments_of_run():
    trainer = trainer_of(small())
    opened = Opened(fastae.plan(trainer))
    run, plan, arena = raw("run"), opened.plan, opened.arena
    x, out = rows_of(trainer.net, 9), np.full((9, 9), np.nan, "f4")
    encode, train = plans.ROUTINES.index("encode"), plans.ROUTINES.index("train")

    assert run(None, arena, encode, 9, x, None, out, None) == CODES["NULL"]
    assert run(plan, None, encode, 9, x, None, out, None) == CODES["NULL"]
    assert run(ck.Plan(), arena, encode, 9, x, None, out, None) == CODES["NULL"]
    assert run(plan, arena, encode, 9, None, None, out, None) == CODES["NULL"]
    assert run(plan, arena, encode, 9, x, None, None, None) == CODES["NULL"]
    assert run(plan, arena[1:], encode, 9, x, None, out, None) == CODES["ALIGNMENT"]
    assert run(plan, arena, encode, 9, x.ctypes.data + 2, None, out, None) == CODES["ALIGNMENT"]
    for rows in (0, -1, -(2**63), 2**62):
        assert run(plan, arena, encode, rows, x, None, out, None) == CODES["SIZE"]
    for routine in (-1, 5, 6, 7, 2**31 - 1):
        assert run(plan, arena, routine, 9, x, None, out, None) == CODES["ROUTINE"]
    assert run(plan, arena, encode, 9, x, x, out, None) == CODES["ROUTINE"]
    assert run(plan, arena, encode, 9, x, None, out, np.zeros(9)) == CODES["ROUTINE"]
    assert run(plan, arena, train, 8, x, None, out, None) == CODES["ROUTINE"]
    # batch normalisation cannot train on the one row that remains
    before = arena.copy()
    assert run(plan, arena, train, 9, x, None, None, None) == CODES["SIZE"]
    assert np.isnan(out).all()
    assert np.array_equal(arena, before)
    for load in (raw("plan_load"), lambda *a: raw("plan_store")(*a, bytearray(plan.size))):
        assert load(plan, None) == load(None, arena) == CODES["NULL"]
        assert load(plan, arena[4:]) == CODES["ALIGNMENT"]
    assert raw("plan_store")(plan, arena, None) == CODES["NULL"]
    opened.check()


def test_divergence_is_an_error():
    trainer = trainer_of(small())
    opened = Opened(fastae.plan(trainer))
    X = rows_of(trainer.net, 24)
    X[9] = np.inf
    before = plans.weights(opened.stored())
    losses = np.full(3, -1.0)
    train = plans.ROUTINES.index("train")
    code = raw("run")(opened.plan, opened.arena, train, 24, X, None, None, losses)
    assert code == CODES["DIVERGED"]
    assert np.isfinite(losses[0])
    assert not np.isfinite(losses[1])
    assert losses[2] == -1
    after = plans.weights(opened.stored())
    assert any(not np.array_equal(before[k], after[k]) for k in before)
    assert all(np.isfinite(v).all() for k, v in after.items() if "running" not in k)


def sealed(block):
    """The plan with a checksum that is right: what an attacker would send."""
    return plans._sealed(bytes(block))


def open_code(block):
    return raw("plan_open")(bytes(block), len(block), ck.Plan())


def test_truncated_plan():
    block = fastae.plan(trainer_of(small()))
    for size in (0, 1, 7, 8, 64, 800, len(block) // 2 // 8 * 8, len(block) - 8, len(block) - 1):
        assert open_code(block[:size]) == CODES["FORMAT"], size
        if size >= 24 and size % 8 == 0:
            shorter = block[:16] + struct.pack("=q", size) + block[24:size]
            assert open_code(sealed(shorter)) == CODES["FORMAT"], size
    with pytest.raises(ValueError, match="not a plan"):
        plans.weights(block[:100])
    opener = raw("plan_open")
    assert opener(None, 8, ck.Plan()) == opener(block, len(block), None) == CODES["NULL"]
    assert opener(np.frombuffer(b"x" + block, np.uint8)[1:], len(block), ck.Plan()) == CODES["ALIGNMENT"]


def test_damaged_plan():
    """One bit of any byte."""
    block = bytearray(fastae.plan(trainer_of(small()), routines=("reconstruct",)))
    for at in range(len(block)):
        block[at] ^= 1 << at % 8
        assert open_code(block) in (CODES["FORMAT"], CODES["VERSION"]), at
        block[at] ^= 1 << at % 8
    assert open_code(block) == 0


HOSTILE = """
import ctypes, mmap, sys
import numpy as np
from fastae import ctypes_kernels as ck, plans

protect = ctypes.CDLL(None).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
page = mmap.PAGESIZE
kept = {}

def between_pages(size):
    # Two arenas, one that ends and one that begins at a page that nobody may touch.
    if size not in kept:
        inside = -(-size // page) * page
        block = np.frombuffer(mmap.mmap(-1, inside + 2 * page), np.uint8)
        for at in (0, page + inside):
            assert protect(block.ctypes.data + at, page, 0) == 0
        kept[size] = block[page : page + size], block[page + inside - size : page + inside]
    return kept[size]

block = open(sys.argv[1], "rb").read()
words = np.frombuffer(block, np.int64)
end = int(words[13]) // 8 + 3 * int(words[12])  # all that is read as numbers
opener = ck.function.__wrapped__("plan_open")
runner = ck.function.__wrapped__("run")
del opener.errcheck, runner.errcheck
rng = np.random.default_rng(int(sys.argv[2]))
counts = {True: 0, False: 0}
first = 16 + 7 * 20  # the instructions of a larger network: some words of each
for at in [*range(first), *range(first, end, int(sys.argv[3]))]:
    changes = [-1, 0, 1, 2**62, -(2**63), int(words[at]) + 1, int(words[at]) - 1, int(words[at]) + 64,
               int(rng.integers(0, 2000)), 2**31 - 1, 2**40, int(words[11]), int(words[11]) - 16]
    for value in changes:
        changed = words.copy()
        changed[at] = np.int64(value)
        changed = np.frombuffer(plans._sealed(changed.tobytes()), np.int64)
        plan = ck.Plan()
        fine = opener(changed, changed.nbytes, plan) == 0
        counts[fine] += 1
        if not fine:
            continue
        if plan.arena_size > 1 << 20:
            continue
        dtype = {4: "f4", 8: "f8"}[plan.itemsize]
        rows = min(plan.batch_size, 64)
        for arena in between_pages(plan.arena_size):
            ck.plan_load(plan, arena)
            for routine in range(5):
                for count in {rows, max(rows - 1, plan.needs_rows)}:
                    x = np.ones((count, max(plan.input_columns, plan.code_columns)), dtype)
                    out = np.ones((count, max(plan.output_columns, plan.code_columns)), dtype)
                    runner(plan, arena, routine, count, x, None, out if routine < 3 else None, None)
            ck.plan_store(plan, arena, bytearray(plan.size))
print(counts[True], counts[False])
"""


@pytest.mark.parametrize("which", ["dense", "images", "halves", "shards"])
def test_hostile_plan(tmp_path, which):
    """Every number changed in 13 ways under a right checksum: refused, or it runs within its memory.

    In a process of its own, so that a crash is a failure.
    """
    net = small()
    if which in ("images", "halves"):
        net = Network(
            encoder=[fastae.Conv2D(2, 3, activation="relu"), fastae.MaxPool2D(2)],
            decoder=[fastae.Upsample2D(2), fastae.ConvTranspose2D(1, 3)],
            input_shape=(1, 6, 6),
        )
    if which == "shards":
        net = Network([Dense(2)], [Dense(128)], 128)
    trainer = trainer_of(net, batch_size=20 if which == "halves" else 3, optimizer=fastae.SGD(0.1))
    passes = [i.in_two_passes for i in trainer.program.routine("train").instructions]
    assert any(passes) == (which == "halves")
    assert bool(trainer.program.slots["batch"].shards) == (which == "shards")
    path = tmp_path / "plan"
    path.write_bytes(fastae.plan(trainer))
    every = {"shards": "11", "halves": "3"}.get(which, "1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOSTILE, str(path), "0", every],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr[-2000:]}"
    accepted, refused = map(int, done.stdout.split())
    assert min(accepted, refused) > 1000


def test_plan_of_another_version():
    block = fastae.plan(trainer_of(small()))
    words = np.frombuffer(block, np.int64).copy()
    words[1] = 99
    assert open_code(sealed(words.tobytes())) == CODES["VERSION"]
    words = np.frombuffer(block, np.int64).copy()
    words[5] ^= 1
    assert open_code(sealed(words.tobytes())) == CODES["VERSION"]


THREADS = """
#include <Python.h>
#include <pthread.h>
#include "fastae.h"
typedef struct { const fastae_plan *plan; void *arena; const void *input; void *output; double *losses;
                 int64_t rows; int result; } Task;
static void *work(void *given)
{
    Task *t = (Task *)given;
    int i;
    for (i = 0; i < 20 && !t->result; i++)
        t->result = fastae_run(t->plan, t->arena, FASTAE_TRAIN, t->rows, t->input, NULL, NULL, t->losses);
    if (!t->result)
        t->result = fastae_run(t->plan, t->arena, FASTAE_RECONSTRUCT, t->rows, t->input, NULL, t->output,
                               NULL);
    return NULL;
}
int together(Task *tasks, int count);
int together(Task *tasks, int count)
{
    pthread_t threads[16];
    int i, failed = 0;
    if (fastae_import() < 0) return -1;
    for (i = 0; i < count; i++) failed |= pthread_create(&threads[i], NULL, work, &tasks[i]);
    for (i = 0; i < count; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < count; i++) failed |= tasks[i].result;
    return failed;
}
int alone(Task *t);
int alone(Task *t)
{
    if (!fastae_api_ && fastae_import() < 0) return -1;
    return fastae_run(t->plan, t->arena, FASTAE_RECONSTRUCT, t->rows, t->input, NULL, t->output, NULL);
}
"""


class Task(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("plan", "arena", "input", "output", "losses")),
        ("rows", ctypes.c_int64),
        ("result", ctypes.c_int),
    ]


def task_of(opened, x, out, losses=None):
    pointers = (opened.arena.ctypes.data, x.ctypes.data, out.ctypes.data)
    at = None if losses is None else losses.ctypes.data
    return Task(ctypes.addressof(opened.plan), *pointers, at, len(x), 0)


def test_eight_threads_while_the_gil_is_held(same_bits, build):
    """One plan, eight arenas, threads that Python does not know; who waits for them keeps the GIL."""
    library = ctypes.PyDLL(str(build(THREADS)))  # PyDLL keeps the GIL
    trainer = trainer_of(small(), noise=fastae.MaskingNoise(0.1))
    net, block = trainer.net, fastae.plan(trainer)
    opened = [Opened(block) for _ in range(8)]
    for each in opened[1:]:
        each.plan = opened[0].plan
    data = [np.random.default_rng(i).random((24, 9)).astype("f4") for i in range(8)]
    outs = [np.full((24, 9), np.nan, "f4") for _ in range(8)]
    losses = [np.full(3, np.nan) for _ in range(8)]
    tasks = (Task * 8)(*(task_of(*each) for each in zip(opened, data, outs, losses, strict=True)))
    assert library.together(tasks, 8) == 0
    for each, x, out, loss in zip(opened, data, outs, losses, strict=True):
        each.check()
        alone = trainer_of(net, noise=fastae.MaskingNoise(0.1))
        history = alone.fit(x, epochs=20, sampling="sequential")
        same_bits(loss, np.array(history.batch_loss[-3:]), "losses")
        same_bits(out, alone.reconstruct(x), "reconstruct")


@pytest.mark.timed
def test_as_fast_as_the_library(build, slowdown):
    """The same rows through the trainer and through C: within 5 %."""
    library = ctypes.PyDLL(str(build(THREADS)))
    net = fastae.models.autoencnet()
    trainer = trainer_of(net, batch_size=20)
    X = rows_of(net, 4000)
    opened = Opened(fastae.plan(trainer))
    ours, theirs = np.empty_like(X), np.empty_like(X)
    task = task_of(opened, X, ours)
    in_c = slowdown(
        lambda: library.alone(ctypes.byref(task)), than=lambda: trainer.reconstruct(X, out=theirs)
    )
    assert np.array_equal(ours, theirs)
    assert in_c <= 1.05


# Examples --------------------------------------------------------------------------------------------------

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "embedding"


@pytest.fixture(scope="module", params=["cython", "c", "cffi", "numba"])
def example(request, tmp_path_factory):
    """The module of an example, built against the fastae that is installed, in a folder of its own."""
    name = request.param
    if not EXAMPLES.is_dir():
        pytest.skip("examples/ is not beside the tests")
    for needed in ("setuptools", {"cython": "Cython", "c": "setuptools"}.get(name, name)):
        if importlib.util.find_spec(needed) is None:
            if os.environ.get("CI"):
                pytest.fail(f"CI builds every example, but {needed} is not installed")
            pytest.skip(f"{needed} is not installed")
    folder = tmp_path_factory.mktemp(name)
    project, site = folder / "project", folder / "site"
    shutil.copytree(EXAMPLES / name, project)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(site), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield importlib.import_module(f"streaming_{name}")


def scored(example, trainer, X, batch_size=1):
    scores = np.full(len(X), np.nan, "f4")
    example.Scorer(fastae.plan(trainer, batch_size=batch_size, routines="reconstruct")).score(X, scores)
    return scores


def test_example(example, same_bits):
    """Scores with the library's bits, and refuses what is no plan and no rows of it."""
    trainer = trainer_of(fastae.models.autoencnet())
    X = rows_of(trainer.net, 50)
    trainer.fit(X, epochs=2)
    expected = fastae.ops.row_mse(trainer.reconstruct(X), X, backend="cython")
    same_bits(scored(example, trainer, X), expected, "scores")
    same_bits(scored(example, trainer, X, batch_size=16), expected, "scores, one row of a larger batch")

    folder = Path(example.__file__).parent  # and in a process that has not imported fastae
    command = [sys.executable, "-c", f"import {example.__name__}"]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(folder)}, check=True)

    trainer = trainer_of(small())
    plan = fastae.plan(trainer)
    with pytest.raises(ValueError, match="not a plan"):
        example.Scorer(plan[:-8])
    for bad in (fastae.plan(trainer, routines="encode"), fastae.plan(trainer_of(small(), dtype="float64"))):
        with pytest.raises(ValueError, match=r"float32 model|does not have this routine"):
            example.Scorer(bad)
    narrow = Network(encoder=[Dense(3)], decoder=[Dense(2)], input_shape=9)  # trained with a target
    with pytest.raises(ValueError, match=r"columns of its input|a size is"):
        example.Scorer(fastae.plan(trainer_of(narrow), routines="reconstruct"))
    scorer = example.Scorer(plan)
    with pytest.raises(ValueError, match="expected"):
        scorer.score(np.ones((4, 8), "f4"), np.ones(4, "f4"))
    with pytest.raises(ValueError, match="expected"):
        scorer.score(np.ones((4, 9), "f4"), np.ones(3, "f4"))
    if hasattr(example, "code_of_a_null_pointer"):
        assert example.code_of_a_null_pointer() == CODES["NULL"]


@pytest.mark.timed
def test_example_is_as_fast_as_the_library(example, slowdown):
    """One row at a time in both: the library reconstructs in batches of one, then scores all rows."""
    net = fastae.models.autoencnet()
    trainer = trainer_of(net, batch_size=1)
    X = rows_of(net, 500)
    again, expected, scores = np.empty_like(X), np.empty(len(X), "f4"), np.empty(len(X), "f4")
    scorer = example.Scorer(fastae.plan(trainer, routines=("reconstruct",)))

    def library():
        trainer.reconstruct(X, out=again)
        fastae.ops.row_mse(again, X, out=expected, backend="cython")

    embedded = slowdown(lambda: scorer.score(X, scores), than=library)
    assert np.array_equal(scores, expected)
    assert embedded <= 1.05
