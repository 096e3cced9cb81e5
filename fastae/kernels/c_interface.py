"""The C face of the kernels, written from the table: header, Cython declarations, and what they end in.

::

    table.py ──> functions ──┬── fastae/include/fastae.h      for C and C++, from compiled/fastae.h.in
    abi.txt  (their order)   ├── fastae/cython_kernels.pxd    for Cython
                             ├── c_interface.h, .pxi          compiled into fastae.cython_kernels
                             └── fastae.ctypes_kernels        for ctypes and cffi

A function's arguments are those of its row as plain C types, then the dims. It ends in the instruction form
of the kernel, in the variant chosen for the processor, with an arena at address 0. The rules for derived dims
are Python in the table; here they are called with symbols in place of numbers, and what comes back is written
down as C.

The struct of function pointers may only grow at its end: ``abi.txt`` records what there is, in its order. A
kernel that is not recorded yet comes last; ``python -m fastae.kernels.c_interface`` records it.

This module needs the standard library alone: the build reads it before anything is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

__all__ = [
    "ABI_VERSION",
    "PLAN",
    "Function",
    "cython_text",
    "declarations",
    "functions",
    "header",
    "implementation",
    "pxd",
]

#: Of the structs. It changes with what they already hold.
ABI_VERSION = 1

_HERE = Path(__file__).parent
RECORD = _HERE / "abi.txt"

_REALS = {"f32": "float", "f64": "double"}

#: What is known of an open plan; all of it int64_t but the first.
PLAN = (
    ("bytes", "the plan itself"),
    ("size", "bytes of it"),
    ("arena_size", "bytes of an arena"),
    ("itemsize", "4: float, 8: double"),
    ("batch_size", "rows that are computed together"),
    ("needs_rows", "rows of the smallest batch it trains on"),
    ("input_columns", "numbers of a row of the input; 0 where no routine reads any"),
    ("code_columns", "of a code"),
    ("output_columns", "of an output"),
    ("routines", "bit r: routine r is there"),
    *((f"reserved{i}", "") for i in range(6)),
)

_API = (
    "int64_t abi_version",
    "int64_t size",
    "const char *version",
    "const char *instruction_set",
    "const fastae_kernels *kernels",
    "const fastae_kernels *checked",
    "const char *(*error)(int code)",
    "int (*plan_open)(const void *bytes, int64_t size, fastae_plan *plan)",
    "int (*plan_load)(const fastae_plan *plan, void *arena)",
    "int (*plan_store)(const fastae_plan *plan, const void *arena, void *bytes)",
    (
        "int (*run)(const fastae_plan *plan, void *arena, int routine, int64_t rows, const void *input, "
        "const void *target, void *output, double *losses)"
    ),
)


@dataclass(frozen=True)
class Function:
    """A function of the C interface.

    Parameters
    ----------
    name : str
        Such as "dense_forward_f32", without "fastae_".
    kernel : Kernel
        Its row.
    kind : str
        "f32", "f64" or "workspace_size".
    parameters : tuple of (str, str)
        C type and name of each.
    optional : frozenset of str
        Those that may be NULL.
    """

    name: str
    kernel: Any
    kind: str
    parameters: tuple[tuple[str, str], ...]
    optional: frozenset[str] = frozenset()

    @property
    def arguments(self) -> str:
        """The parameters as C has them, ``const float *x, int64_t n``."""
        return ", ".join(_declare(*p) for p in self.parameters)

    @property
    def names(self) -> str:
        """Names of the parameters, ``x, n``."""
        return ", ".join(name for _, name in self.parameters)

    @property
    def declaration(self) -> str:
        """``int dense_forward_f32(const float *x, ...)``."""
        return f"int {self.name}({self.arguments})"

    @property
    def pointer(self) -> str:
        """``int (*dense_forward_f32)(const float *x, ...)``."""
        return f"int (*{self.name})({self.arguments})"


def _declare(ctype: str, name: str) -> str:
    return f"{ctype}{'' if ctype.endswith('*') else ' '}{name}"


def _of_kernel(table: ModuleType, kernel: Any) -> Iterator[Function]:
    optional = frozenset(a.name for a in kernel.arrays if a.optional and a.role != "work")
    for suffix, real in _REALS.items():
        parameters = []
        for a in kernel.arguments:
            if isinstance(a, table.Array):
                element = "int64_t" if a.kind == "index" else real
                parameters.append((f"{element} *" if a.written else f"const {element} *", a.name))
            else:
                parameters.append(("double" if a.kind == "real" else "int64_t", a.name))
        parameters += [("int64_t", d) for d in kernel.dims]
        yield Function(f"{kernel.name}_{suffix}", kernel, suffix, tuple(parameters), optional)
    work = [a for a in kernel.arrays if a.role == "work"]
    if work:
        integers = [c.name for c in kernel.constants if c.kind == "int"]
        dims = [d for d in kernel.dims if d not in kernel.workspace_dims]
        parameters = [("int64_t", name) for name in (*integers, *dims)]
        parameters += [("int64_t *", a.name) for a in work]
        yield Function(f"{kernel.name}_workspace_size", kernel, "workspace_size", tuple(parameters))


def functions(table: ModuleType) -> list[Function]:
    """Return every function, in the order of the struct: as recorded, then what is new."""
    found = {f.name: f for kernel in table.KERNELS.values() for f in _of_kernel(table, kernel)}
    recorded = re.findall(r"^kernels: int \(\*(\w+)\)", RECORD.read_text(), re.M) if RECORD.exists() else []
    if gone := [name for name in recorded if name not in found]:
        raise ValueError(
            f"abi.txt: expected functions of the table, given {', '.join(gone)}: raise ABI_VERSION"
        )
    return [found[name] for name in dict.fromkeys([*recorded, *found])]


def declarations(table: ModuleType) -> str:
    """Return all that a change of the ABI would show in, a line each."""
    lines = [f"version: {ABI_VERSION}"]
    lines += [f"code: {name} = {code}" for name, code in _codes(table).items()]
    lines += [f"plan: {text}" for text in _plan_fields()]
    lines += [f"api: {text}" for text in _API]
    lines += ["kernels: int64_t size", *(f"kernels: {f.pointer}" for f in functions(table))]
    return "\n".join(lines) + "\n"


def _codes(table: ModuleType) -> dict[str, int]:
    """Return the numbers of activations, errors and routines, which callers have compiled in, by name."""
    template = (_HERE / "compiled" / "fastae.h.in").read_text(encoding="utf-8")
    names = {f"FASTAE_{name.upper()}": a.code for name, a in table.ACTIVATIONS.items()}
    names |= {name: int(code) for name, code in re.findall(r"(FASTAE_\w+) = (-?\d+)", template)}
    (routines,) = re.findall(r"enum \{ (FASTAE_ENCODE.*) \}", template)
    return names | {name: i for i, name in enumerate(routines.split(", "))}


def _plan_fields() -> list[str]:
    return [("const void *" if name == "bytes" else "int64_t ") + name for name, _ in PLAN]


# -- the header ----------------------------------------------------------------------------------


def _wrapped(text: str, indent: str, width: int = 112) -> str:
    """Break a line of C at its commas."""
    lines, line = [], ""
    for part in text.split(", "):
        if line and len(line) + len(part) + 2 > width:
            lines.append(f"{line},")
            line = indent + part
        else:
            line = f"{line}, {part}" if line else part
    return "\n".join([*lines, line])


def _filled(words: str, first: str, indent: str, width: int = 116) -> str:
    lines, line = [], first
    for word in words.split():
        if len(line) + len(word) + 1 > width:
            lines.append(line.rstrip())
            line = indent
        line += word + " "
    return "\n".join([*lines, line.rstrip()])


def structs(table: ModuleType) -> str:
    """Return the two structs of function pointers as C."""
    fields = "\n".join(f"    {_wrapped(f.pointer, ' ' * 8)};" for f in functions(table))
    api = "\n".join(f"    {_wrapped(text, ' ' * 8)};" for text in _API)
    return (
        "/* Pointers to all kernels. It only grows, at its end. */\n"
        f"typedef struct fastae_kernels {{\n    int64_t size; /* bytes of it in the library */\n{fields}\n"
        "} fastae_kernels;\n\n"
        "/* What the capsule fastae._c_api points to. It only grows, at its end. */\n"
        f"typedef struct fastae_api {{\n{api}\n}} fastae_api;"
    )


def plan_struct() -> str:
    """Return the struct of an open plan as C."""
    fields = "\n".join(
        f"    {text};" + (f" /* {says} */" if says else "")
        for text, (_, says) in zip(_plan_fields(), PLAN, strict=True)
    )
    return (
        "/* An open plan. The caller's, filled by fastae_plan_open; to be read, not written. */\n"
        f"typedef struct fastae_plan {{\n{fields}\n}} fastae_plan;"
    )


def header(table: ModuleType, version: str) -> str:
    """Return fastae.h."""
    activations = ",\n".join(f"    FASTAE_{name.upper()} = {a.code}" for name, a in table.ACTIVATIONS.items())
    texts = {
        "VERSION": version,
        "ABI": str(ABI_VERSION),
        "ACTIVATIONS": activations,
        "PLAN": plan_struct(),
        "STRUCTS": structs(table),
        "FUNCTIONS": "\n\n".join(_documented(table, f) for f in functions(table)),
    }
    template = (_HERE / "compiled" / "fastae.h.in").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda found: texts[found[1]], template)


def _documented(table: ModuleType, f: Function) -> str:
    """A function of the header with its comment, or none where its twin has it."""
    inline = f"FASTAE_INLINE int fastae_{f.name}({f.arguments})"
    call = _wrapped(f"return FASTAE_KERNELS_->{f.name}({f.names})", " " * 8)
    text = f"{_wrapped(inline, ' ' * 8)}\n{{\n    {call};\n}}"
    return text if f.kind == "f64" else f"{comment(table, f)}\n{text}"


_ROLES = {"in": "read", "saved": "read", "work": "work", "state": "updated in place", "out": "written"}


def comment(table: ModuleType, f: Function) -> str:
    """Return the C comment of a function: what it computes and what its arguments are."""
    kernel = f.kernel
    if f.kind == "workspace_size":
        work = [a for a in kernel.arrays if a.role == "work"]
        shapes = ", ".join(f"*{a.name} = elements of {a.name}" for a in work)
        return "/* " + _filled(f"Work arrays of {kernel.name}: {shapes}. Always checked. */", "", " * ")
    lines = [_filled(kernel.summary, "/* ", " * "), _filled(kernel.formula, " *   ", " *   ")]
    for a in kernel.arguments:
        if isinstance(a, table.Array):
            says = f"[{','.join(a.dims)}], {_ROLES[a.role]}"
            says += ", int64_t" if a.kind == "index" else ""
            if a.optional and a.role != "work":
                says += "; may be NULL"
                says += " with FASTAE_LINEAR" if a.role == "saved" and _has_activation(kernel) else ""
        elif a.kind == "activation":
            says = "FASTAE_LINEAR and so on"
        else:
            says = a.doc
        lines.append(_filled(says, f" *   {a.name:<16} ", " " + "*" + " " * 20))
    if sizes := [f"{d} >= {least}" for d, least in kernel.at_least.items()]:
        lines.append(f" *   {', '.join(sizes)}")
    for d, rule in kernel.derived.items():
        if d not in kernel.workspace_dims:
            names = {name: name for name in _symbols(table, kernel)}
            text = _as_text(rule, names, to_read=True).replace("0 - ", "-")
            text = text[1:-1] if text.startswith("(") else text
            lines.append(_filled(f"{d} = {text}", " *   ", " *   "))
    if demands := [text for text, _ in kernel.demands]:
        lines.append(_filled("; ".join(demands), " *   ", " *   "))
    text = "\n".join(lines).replace("*/", "* /")
    return text.replace("/*", "\0", 1).replace("/*", "/ *").replace("\0", "/*") + " */"


def _has_activation(kernel: Any) -> bool:
    return any(c.kind == "activation" for c in kernel.constants)


# -- Cython --------------------------------------------------------------------------------------

_PXD_HEAD = '''\
"""fastae's kernels and trained models for Cython: ``from fastae.cython_kernels cimport dense_forward_f32``.

Written from the table of kernels. Each is documented in fastae.h (`fastae.get_include`), under the same name
and with the same arguments; what is said there of arrays, aliasing, threads and error codes holds here.
``checked_...`` are those that check their arguments. To compile, nothing else is needed, no header.
"""

from libc.stdint cimport int64_t

cdef enum:
'''


def pxd(table: ModuleType) -> str:
    """Return fastae/cython_kernels.pxd."""
    codes = [f"    {name.removeprefix('FASTAE_')} = {code}" for name, code in _codes(table).items()]
    lines = [_PXD_HEAD + "\n".join(codes)]
    fields = "\n".join(f"    {_cython(text)}" for text in _plan_fields())
    lines += ["", "ctypedef struct Plan:", fields, ""]
    for text in _API:
        found = re.fullmatch(r"(.*)\(\*(\w+)\)\((.*)\)", text)
        if found:
            result, name, arguments = found.groups()
            lines.append(_cython_function(f"{result}{name}({arguments})"))
    for f in functions(table):
        lines.append(_cython_function(f.declaration))
        if f.kind != "workspace_size":
            lines.append(_cython_function(f"int checked_{f.name}({f.arguments})"))
    return "\n".join(lines) + "\n"


def _cython(text: str) -> str:
    return re.sub(r"(const )?(\w+) \*", lambda found: f"{found[1] or ''}{found[2]}* ", text).replace(
        "fastae_plan", "Plan"
    )


def _cython_function(declaration: str) -> str:
    text = f"cdef {_cython(declaration)} noexcept nogil"
    return _wrapped(text, " " * (text.index("(") + 1), 104)


def cython_text(table: ModuleType) -> str:
    """Return the Cython text of the functions that fastae.cython_kernels exports: calls of their C bodies."""
    extern, bodies = [], []
    for f in functions(table):
        plain = f.kind == "workspace_size"
        for prefix in ("",) if plain else ("", "checked_"):
            body = f"{prefix or 'release_'}{f.name}"
            extern.append(
                "    " + _wrapped(_cython(f'int c_{prefix}{f.name} "{body}" ({f.arguments})'), " " * 8, 108)
            )
            bodies += [
                _cython_function(f"int {prefix}{f.name}({f.arguments})") + ":",
                "    return " + _wrapped(f"c_{prefix}{f.name}({f.names})", " " * 8, 108),
                "",
            ]
    return "\n".join(['cdef extern from "c_interface.h" nogil:', *extern, "", "", *bodies])


# -- C -------------------------------------------------------------------------------------------


class _Fork(Exception):
    """A rule asked whether something is so."""

    def __init__(self, condition: str) -> None:
        self.condition = condition


_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "floor_divide": "/", "modulo": "%"}


class _Term:
    """Stands for an int64_t in a rule of the table; arithmetic on it gives the text of that arithmetic."""

    def __init__(self, text: str, path: _Path, sign: str = "") -> None:
        self.text = text
        self.path = path
        self.sign = sign  # of a text to be read, which then is in brackets

    def _call(self, function: str, *operands: Any) -> _Term:
        left, right = (self.path.text(o) for o in operands)
        if self.path.to_read:
            sign, signs = _SIGNS[function], [getattr(o, "sign", "") for o in operands]
            left = left[1:-1] if signs[0] and (sign in "+-" or signs[0] == sign == "*") else left
            right = right[1:-1] if signs[1] == "*" and sign in "+-" else right
            return _Term(f"({left} {sign} {right})", self.path, sign)
        return _Term(f"{function}({left}, {right}, &overflow)", self.path)

    def _compare(self, operator: str, other: Any) -> _Condition:
        return _Condition(f"{self.text} {operator} {self.path.text(other)}", self.path)

    def __add__(self, other):
        return self._call("add", self, other)

    def __radd__(self, other):
        return self._call("add", other, self)

    def __sub__(self, other):
        return self._call("subtract", self, other)

    def __rsub__(self, other):
        return self._call("subtract", other, self)

    def __mul__(self, other):
        return self._call("multiply", self, other)

    def __rmul__(self, other):
        return self._call("multiply", other, self)

    def __floordiv__(self, other):
        return self._call("floor_divide", self, other)

    def __mod__(self, other):
        return self._call("modulo", self, other)

    def __neg__(self):
        return self._call("subtract", 0, self)

    def __lt__(self, other):
        return self._compare("<", other)

    def __le__(self, other):
        return self._compare("<=", other)

    def __gt__(self, other):
        return self._compare(">", other)

    def __ge__(self, other):
        return self._compare(">=", other)

    def __eq__(self, other):
        return self._compare("==", other)

    def __ne__(self, other):
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]


class _Condition(_Term):
    """Stands for what a comparison says."""

    def __bool__(self) -> bool:
        return self.path.decide(self.text)


class _Path:
    """One way through a rule: the answers to what it asks, in order; and whether a reader reads it or C."""

    def __init__(self, answers: tuple[bool, ...], to_read: bool) -> None:
        self.answers = iter(answers)
        self.to_read = to_read

    def text(self, value: Any) -> str:
        """A term or a number as text."""
        if isinstance(value, _Term):
            return value.text
        return str(int(value)) if self.to_read else f"INT64_C({int(value)})"

    def decide(self, condition: str) -> bool:
        for answer in self.answers:
            return answer
        raise _Fork(condition)


def _as_text(
    rule: Callable[[Any], Any],
    symbols: dict[str, str],
    answers: tuple[bool, ...] = (),
    *,
    to_read: bool = False,
) -> str:
    """A rule of the table as a C expression; where it asks, as max() does, both answers are followed."""
    path = _Path(answers, to_read)
    try:
        found = rule(SimpleNamespace(**{name: _Term(text, path) for name, text in symbols.items()}))
    except _Fork as fork:
        yes, no = (_as_text(rule, symbols, (*answers, answer), to_read=to_read) for answer in (True, False))
        return f"({fork.condition} ? {yes} : {no})"
    return path.text(found)


def implementation(table: ModuleType, version: str) -> str:
    """Return c_interface.h: the descriptions of all rows, and the bodies of all functions."""
    parts = [
        "/* Written from the table of kernels by c_interface.py. */",
        '#include "c_rows.h"',
        f'#define FASTAE_VERSION "{version}"',
        f"static const unsigned char TABLE_HASH[32] = {{{_bytes(bytes.fromhex(table.signature_hash()))}}};",
        *(_rules(table, kernel) for kernel in table.KERNELS.values()),
        *(_arguments(table, kernel) for kernel in table.KERNELS.values()),
        "static const Row ROWS[] = {",
        *(f"    {_description(table, kernel)}," for kernel in table.KERNELS.values()),
        "};",
        "enum { KERNELS = sizeof(ROWS) / sizeof(ROWS[0]) };",
        '#include "plan.h"',
        *(_body(table, f) for f in functions(table)),
    ]
    for kind in ("release", "checked"):
        fields = "\n".join(
            f"    .{f.name} = {'release' if f.kind == 'workspace_size' else kind}_{f.name},"
            for f in functions(table)
        )
        parts.append(
            f"static const fastae_kernels {kind.upper()} = {{\n    .size = sizeof(fastae_kernels),\n"
            f"{fields}\n}};"
        )
    entries = "\n".join(f'    {{"{f.name}", offsetof(fastae_kernels, {f.name})}},' for f in functions(table))
    parts.append(f"static const Entry ENTRIES[] = {{\n{entries}\n}};")
    parts.append("enum { ENTRY_COUNT = sizeof(ENTRIES) / sizeof(ENTRIES[0]) };")
    return "\n\n".join(parts) + "\n"


def _bytes(values: bytes) -> str:
    return ", ".join(map(str, values))


def _symbols(table: ModuleType, kernel: Any) -> dict[str, str]:
    """C names of the numbers a rule may read: dims and integer constants among the operands."""
    symbols = {
        a.name: f"o[{i}]"
        for i, a in enumerate(kernel.arguments)
        if not isinstance(a, table.Array) and a.kind == "int"
    }
    return symbols | {d: f"o[{len(kernel.arguments) + i}]" for i, d in enumerate(kernel.dims)}


def _rules(table: ModuleType, kernel: Any) -> str:
    """The C function of a row's demands and derived dims."""
    if not kernel.derived and not kernel.demands:
        return f"#define rules_{kernel.name} NULL"
    symbols = _symbols(table, kernel)
    lines = []
    for text, holds in kernel.demands:
        lines.append(f"    if (!({_as_text(holds, symbols)})) return FASTAE_ERROR_SIZE; /* {text} */")
    for name, rule in kernel.derived.items():
        place = kernel.dims.index(name)
        lines.append(f"    const int64_t {name}_ = {_as_text(rule, symbols)};")
        lines.append(f"    if (!overflow && {name}_ < 1) return FASTAE_ERROR_SIZE;")
        lines.append(f"    derived[{place}] = {name}_;")
        symbols[name] = f"{name}_"
    return (
        f"static int rules_{kernel.name}(const int64_t *o, int64_t *derived)\n{{\n"
        "    int overflow = 0;\n    (void)derived;\n" + "\n".join(lines) + "\n"
        "    return overflow ? FASTAE_ERROR_OVERFLOW : FASTAE_OK;\n}"
    )


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else repr(float(value))


def _arguments(table: ModuleType, kernel: Any) -> str:
    """The C descriptions of a row's arguments."""
    lines = []
    for a in kernel.arguments:
        if isinstance(a, table.Array):
            dims = [-1 - int(d) if d.isdigit() else kernel.dims.index(d) for d in a.dims]
            kind = "INDEX" if a.kind == "index" else "REAL_ARRAY"
            flags = [
                f".{name} = 1"
                for name, is_so in (
                    ("optional", a.optional or a.spare),  # absent in a plan, whose Program is padded
                    ("written", a.written),
                    ("work", a.role == "work"),
                    ("state", a.role == "state"),
                    ("saved", a.role == "saved"),
                    ("images", len(a.dims) == 4 and a.dims[0] == "n"),
                )
                if is_so
            ]
            fields = [
                f".kind = {kind}",
                f".rank = {len(dims)}",
                f".dims = {{{', '.join(map(str, dims))}}}",
                *flags,
            ]
        elif a.kind == "activation":
            last = max(activation.code for activation in table.ACTIVATIONS.values())
            fields = [".kind = INTEGER_CONSTANT", ".activation = 1", ".low = 0", f".high = {last}"]
        else:
            kind = "REAL_CONSTANT" if a.kind == "real" else "INTEGER_CONSTANT"
            low = _number(a.above if a.above is not None else a.minimum, "-INFINITY")
            high = _number(a.below if a.below is not None else a.maximum, "INFINITY")
            fields = [f".kind = {kind}", f".low = {low}", f".high = {high}"]
            fields += [".above = 1"] if a.above is not None else []
            fields += [".below = 1"] if a.below is not None else []
        lines.append(f"    {{{', '.join(fields)}}},")
    return f"static const Argument ARGUMENTS_{kernel.name}[] = {{\n" + "\n".join(lines) + "\n};"


def _description(table: ModuleType, kernel: Any) -> str:
    derived = sum(1 << kernel.dims.index(d) for d in kernel.derived)
    work = sum(1 << kernel.dims.index(d) for d in kernel.workspace_dims)
    least = ", ".join(f"[{kernel.dims.index(d)}] = {n}" for d, n in kernel.at_least.items())
    return (
        f'{{"{kernel.name}", {len(kernel.arguments)}, {len(kernel.dims)}, {derived}, {work}, '
        f"ARGUMENTS_{kernel.name}, rules_{kernel.name}, {{{least or 0}}}}}"
    )


def _body(table: ModuleType, f: Function) -> str:
    """The C bodies of a function: released and checked."""
    kernel, number = f.kernel, list(table.KERNELS).index(f.kernel.name)
    if f.kind == "workspace_size":
        return _workspace_body(table, f, number)
    values = []
    for a in kernel.arguments:
        if isinstance(a, table.Array):
            values.append((f"place({a.name}, sizeof({_REALS[f.kind]}))", f"address({a.name})"))
        else:
            values.append((f"bits({a.name})" if a.kind == "real" else a.name,) * 2)
    values += [(d, d) for d in kernel.dims]
    call = f"    INSTRUCTIONS_{f.kind}[{number}](NULL, operands_, 1, 0, 1);\n    return FASTAE_OK;\n}}"
    release, checked = (", ".join(texts) for texts in zip(*values, strict=True))
    return (
        f"static int release_{f.name}({f.arguments})\n{{\n"
        f"    const int64_t operands_[] = {{{release}}};\n{call}\n\n"
        f"static int checked_{f.name}({f.arguments})\n{{\n"
        f"    int64_t operands_[] = {{{checked}}};\n"
        f"    const int error_ = check_call(&ROWS[{number}], operands_, sizeof({_REALS[f.kind]}));\n"
        f"    if (error_) return error_;\n{call}"
    )


def _workspace_body(table: ModuleType, f: Function, number: int) -> str:
    kernel = f.kernel
    given = {name for _, name in f.parameters}
    values = []
    for a in kernel.arguments:
        is_given = not isinstance(a, table.Array) and a.name in given
        values.append(a.name if is_given else "0")
    values += [d if d in given and d not in kernel.workspace_dims else "0" for d in kernel.dims]
    work = [
        (i, a.name) for i, a in enumerate(kernel.arguments) if isinstance(a, table.Array) and a.role == "work"
    ]
    return (
        f"static int release_{f.name}({f.arguments})\n{{\n"
        f"    int64_t operands_[] = {{{', '.join(values)}}};\n"
        f"    if ({' || '.join(f'!{name}' for _, name in work)}) return FASTAE_ERROR_NULL;\n"
        f"    const int error_ = fill_workspace(&ROWS[{number}], operands_);\n"
        "    if (error_) return error_;\n"
        + "".join(f"    *{name} = elements(&ROWS[{number}], {i}, operands_);\n" for i, name in work)
        + "    return FASTAE_OK;\n}"
    )


if __name__ == "__main__":
    from fastae.kernels import table as the_table

    RECORD.write_text(declarations(the_table))
