"""Build the compiled kernels: one Cython source, one extension module for each instruction set.

The instruction forms of the kernels are written here from the table, so that the table stays the one place
that knows their arguments; so are, into the package itself, the C header and the Cython declarations.
"""

import importlib.util
import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCE = Path("fastae/kernels/compiled")
X86 = platform.machine().lower() in ("x86_64", "amd64")
MARCH = {"_baseline": []} | (
    {"_x86_64_v3": ["-march=x86-64-v3"], "_x86_64_v4": ["-march=x86-64-v4"]} if X86 else {}
)
# Neither changes a result: errno and floating-point traps are never read.
FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wno-unused-function"]


def load(name: str):
    """A module of fastae/kernels, without importing the package that is being built."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"fastae/kernels/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


table, c_interface = load("table"), load("c_interface")


def instructions() -> str:
    """Cython text of the instruction forms: operands in, pointers out, one per kernel and dtype."""
    lines = []
    for suffix, ctype in (("f32", "float"), ("f64", "double")):
        for kernel in table.KERNELS.values():
            arguments = []
            for i, a in enumerate(kernel.arguments):
                if isinstance(a, table.Array):
                    pointer = "int64_t" if a.kind == "index" else ctype
                    const = "" if a.written else "const "
                    arguments.append(f"<{const}{pointer}*>at(arena, o[{i}], sizeof({ctype}))")
                else:
                    arguments.append(f"as_double(o[{i}])" if a.kind == "real" else f"o[{i}]")
            first = len(kernel.arguments)
            arguments += [f"o[{first + i}]" for i in range(len(kernel.dims))]
            lines += [
                f"cdef void {kernel.name}_{suffix}(void* arena, const int64_t* o, Py_ssize_t pad,",
                "        Py_ssize_t part, Py_ssize_t parts) noexcept nogil:",
                f"    {kernel.name}[{ctype}](",
                *(f"        {a}," for a in arguments),
                "        pad, part, parts)",
                "",
            ]
        lines += [f"cdef instruction[{len(table.KERNELS)}] {suffix.upper()}"]
        lines += [f"{suffix.upper()}[{i}] = {name}_{suffix}" for i, name in enumerate(table.KERNELS)]
        lines += [""]
    lines += [
        "cdef inline instruction* instructions_of(real* arena) noexcept nogil:",
        "    if real is float:",
        "        return &F32[0]",
        "    else:",
        "        return &F64[0]",
        "",
        f"TABLE_HASH = {table.signature_hash()!r}",
        "from fastae.kernels.table import signature_hash as table_hash",
        "",
    ]
    return "\n".join(lines)


class BuildKernels(build_ext):
    """Copy the source under a module name for each instruction set, then compile as usual."""

    def run(self):
        """Write the generated text and the copies, then build them."""
        from Cython.Build import cythonize

        folder = Path(self.build_temp) / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "instructions.pxi", instructions())
        write(folder / "cython_kernels.pxi", c_interface.cython_text(table))
        write(folder / "c_interface.h", c_interface.implementation(table, VERSION))
        for extension in self.extensions:
            extension.include_dirs.append(str(folder))
            copy = folder / f"{extension.name.rpartition('.')[2]}.pyx"
            write(copy, Path(extension.sources[0]).read_text(encoding="utf-8"))
            extension.sources = [str(copy)]
        built = cythonize(self.extensions, include_path=[str(folder), str(SOURCE), "."])
        for extension, compiled in zip(self.extensions, built, strict=True):
            extension.sources = compiled.sources
        super().run()


def write(path: Path, text: str) -> None:
    """Write only what changed, so that only that is compiled again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


# Into the package and before any command: they are package data of every kind of install.
VERSION = re.search(r'__version__ = "(.*)"', (HERE / "fastae/__init__.py").read_text(encoding="utf-8"))[1]
write(HERE / "fastae/include/fastae.h", c_interface.header(table, VERSION))
write(HERE / "fastae/cython_kernels.pxd", c_interface.pxd(table))
HEADERS = [str(p) for p in SOURCE.iterdir() if p.suffix in (".h", ".pxi")]

setup(
    ext_modules=[
        Extension(
            f"fastae.kernels.compiled.{name}",
            [str(SOURCE / "kernels.pyx")],
            include_dirs=[str(SOURCE)],
            extra_compile_args=[*FLAGS, *march],
            depends=HEADERS,
        )
        for name, march in MARCH.items()
    ]
    + [
        Extension(
            "fastae.cython_kernels",
            ["fastae/cython_kernels.pyx"],
            include_dirs=[str(SOURCE), "fastae/include"],
            extra_compile_args=FLAGS,
            depends=[*HEADERS, "fastae/kernels/table.py", "fastae/kernels/c_interface.py"],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
