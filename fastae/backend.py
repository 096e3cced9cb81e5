"""Choosing, loading and checking a backend.

::

    backend= argument ─┐
    use_backend        │ the first that
    set_backend        ├ says something ──> name ──> load: import, compare with the table ──> Backend
    FASTAE_BACKEND     │
    best available   ──┘

A backend is one module holding every kernel of :mod:`fastae.kernels.table`. There is no fallback from one
to another: a backend that was asked for runs, or an error says why it cannot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any, TextIO

from fastae.executor import processors_present
from fastae.kernels.table import KERNELS

__all__ = [
    "ENVIRONMENT",
    "NAMES",
    "Backend",
    "available_backends",
    "check",
    "get_backend",
    "load",
    "resolve",
    "set_backend",
    "show_versions",
    "use_backend",
    "versions",
]

#: The environment variable that names the backend of a process.
ENVIRONMENT = "FASTAE_BACKEND"

_MODULES = {
    "scalar": "fastae.kernels.scalar",
    "numpy": "fastae.kernels.vector",
    "numba": "fastae.kernels.jitted",
    "cython": "fastae.kernels.compiled",
}

#: The names of the backends.
NAMES = tuple(_MODULES)

_KNOWN = ", ".join(NAMES)

_BEST_FIRST = ("cython", "numba", "numpy", "scalar")

#: What a backend imports beyond NumPy, and how to get it.
_NEEDS = {"numba": ("numba", "scipy", "threadpoolctl")}
_INSTALL = {
    "numba": 'pip install "fastae[numba]"',
    "cython": "install a wheel of fastae, or build it from source with a C compiler (pip install .)",
}

#: What a backend has beside its kernels; see the docstrings of the four modules.
_BESIDE = ("PADDED", "FUSED_UPDATE", "prepare", "describe", "Executor")


@dataclass(frozen=True, eq=False)
class Backend:
    """A backend that was loaded and compared with the table.

    Attributes
    ----------
    name : str
        One of ``NAMES``.
    module : module
        The module it came from.
    kernels : mapping of str to callable
        The kernel of each row of the table.
    prepare : callable or None
        What turns an ndarray into what the kernels take; None where that is the ndarray itself.
    """

    name: str
    module: ModuleType
    kernels: Mapping[str, Callable[..., None]] = field(repr=False)
    prepare: Callable[[Any], Any] | None = field(repr=False, default=None)


# Choosing -------------------------------------------------------------------------------------------------

_of_context: ContextVar[Backend | None] = ContextVar("fastae_backend", default=None)
_of_process: Backend | None = None


def resolve(backend: str | Backend | None = None) -> Backend:
    """Find the backend to run on.

    Parameters
    ----------
    backend : str, Backend or None
        A name, or None for the one in effect: of the innermost ``use_backend``, else of ``set_backend``,
        else of the environment variable ``FASTAE_BACKEND``, else the best available one (cython, numba,
        numpy, scalar, in this order).

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If ``backend`` is neither a name nor a Backend nor None.
    ImportError
        If the backend's dependency is missing; the message says what to install.
    """
    if backend is None:
        return _of_context.get() or _of_process or _of_environment() or _best_available()
    if type(backend) is Backend:
        return backend
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected one of {_KNOWN}, given {type(backend).__name__}")
    return load(backend)


def set_backend(backend: str | Backend | None) -> None:
    """Choose the backend of the whole process.

    ``use_backend`` and a ``backend=`` argument take precedence over it.

    Parameters
    ----------
    backend : str, Backend or None
        "scalar", "numpy", "numba" or "cython". None takes the choice back.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the backend's dependency is missing. The earlier choice stays in effect.
    """
    global _of_process
    _of_process = None if backend is None else resolve(backend)


@contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Choose the backend inside a ``with`` block, or inside a function as its decorator.

    The choice holds for the current context alone (a thread, an asyncio task), may be nested, and ends with
    the block, also on an error.

    Parameters
    ----------
    backend : str or Backend
        "scalar", "numpy", "numba" or "cython".

    Yields
    ------
    Backend
        The backend in effect.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the backend's dependency is missing.

    Examples
    --------
    >>> with fastae.use_backend("numpy"):
    ...     fastae.get_backend()
    'numpy'
    """
    chosen = resolve(backend)
    token = _of_context.set(chosen)
    try:
        yield chosen
    finally:
        _of_context.reset(token)


def get_backend() -> str:
    """Name of the backend that a call made here would run on.

    Returns
    -------
    str

    Raises
    ------
    ValueError, ImportError
        If the environment variable ``FASTAE_BACKEND`` decides and names an unknown backend, or one whose
        dependency is missing.
    """
    return resolve().name


def available_backends() -> dict[str, str | None]:
    """Every backend, with the reason when it is unavailable.

    Numba is looked for but not imported, which takes a second: what is wrong inside an installed Numba
    is only seen when the backend is used.

    Returns
    -------
    dict of str to (str or None)
        None for a backend that is available, for another one the reason and the remedy.

    Examples
    --------
    >>> [name for name, reason in fastae.available_backends().items() if reason is None]
    ['scalar', 'numpy', 'numba', 'cython']
    """
    return {name: _reason(name) for name in NAMES}


def _of_environment() -> Backend | None:
    name = os.environ.get(ENVIRONMENT)
    if not name:
        return None
    loaded = _loaded.get(name)
    if loaded is not None:
        return loaded
    try:
        return load(name)
    except (ValueError, ImportError) as error:
        raise type(error)(f"environment variable {ENVIRONMENT}={name}: {error}") from error


@cache
def _best_available() -> Backend:
    for name in _BEST_FIRST:
        try:
            return load(name)
        except ImportError:  # not installed; a backend that is installed and wrong is an error
            continue
    raise ImportError("no backend can be loaded; this installation of fastae is damaged")


def _reason(name: str) -> str | None:
    if name in _loaded:
        return None
    if name in _NEEDS:
        return _missing(name)
    try:
        load(name)
    except Exception as error:  # whatever stops it is the reason
        return str(error)
    return None


# Loading --------------------------------------------------------------------------------------------------

_loaded: dict[str, Backend] = {}


def load(name: str) -> Backend:
    """Import a backend and compare it with the table; the second time, return the same object.

    Safe to call from several threads: Python imports a module once, and checking it twice does no harm.

    Parameters
    ----------
    name : str
        One of ``NAMES``.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If a dependency is missing, or the extension modules were not built.
    AttributeError, RuntimeError
        From :func:`check`.
    """
    loaded = _loaded.get(name)
    if loaded is not None:
        return loaded
    if name not in _MODULES:
        raise ValueError(f"backend: expected one of {_KNOWN}, given {name!r}")
    if missing := _missing(name):
        raise ImportError(missing)
    try:
        module = import_module(_MODULES[name])
    except ImportError as error:
        remedy = f"; {_INSTALL[name]}" if name in _INSTALL else ""
        raise ImportError(f"backend {name!r} cannot be imported ({error}){remedy}") from error
    return _loaded.setdefault(name, check(name, module))


def _missing(name: str) -> str | None:
    missing = [library for library in _NEEDS.get(name, ()) if not find_spec(library)]
    return f"backend {name!r} needs {', '.join(missing)}: {_INSTALL[name]}" if missing else None


# Checking -------------------------------------------------------------------------------------------------


def check(name: str, module: ModuleType) -> Backend:
    """Compare a module with the table.

    Every row must be there as a callable, and every one must have been written in this module, in a
    submodule of it, or in a file beside it that begins with its name. A kernel's home is the ``__module__``
    of the function under it (``py_func`` for one compiled by Numba), or of its class where it is a callable
    object. A wrapper written at home around
    another backend's kernel is found by the name it reaches it by: no global or closure of a kernel, and no
    name of the module, may stand for another backend's module or for something written there.

    Parameters
    ----------
    name : str
        Name of the backend, for messages and for the result.
    module : module
        The module to check.

    Returns
    -------
    Backend

    Raises
    ------
    AttributeError
        If a kernel, or one of PADDED, FUSED_UPDATE, prepare, describe, Executor, is missing or cannot be
        called; all of them are listed.
    RuntimeError
        If a kernel is borrowed from elsewhere.
    """
    kernels: dict[str, Any] = {row: getattr(module, row, None) for row in KERNELS}
    absent = [row for row, kernel in kernels.items() if not callable(kernel)]
    absent += [attribute for attribute in _BESIDE if not hasattr(module, attribute)]
    if absent:
        raise AttributeError(f"backend {name!r} is incomplete: {module.__name__} lacks {', '.join(absent)}")
    borrowed = _foreign(vars(module), module)
    for row, kernel in kernels.items():
        if not _within(_home(kernel), module.__name__):
            borrowed.append(f"{row} from {_home(kernel)}")
        borrowed += [f"{row} by {foreign}" for foreign in _foreign(_reached(kernel), module)]
    if borrowed:
        raise RuntimeError(f"backend {name!r} borrows kernels: {', '.join(dict.fromkeys(borrowed))}")
    return Backend(name, module, MappingProxyType(kernels), _preparation(module))


def _innermost(kernel: object) -> object:
    """Find the function that was written, under whatever Numba or functools put around it."""
    for layer in ("py_func", "func", "__wrapped__"):
        inner = getattr(kernel, layer, None)
        if callable(inner):
            return _innermost(inner)
    return kernel


def _home(kernel: object) -> str | None:
    """Name the module it was written in."""
    written = _innermost(kernel)
    # An instance of a compiled class knows its module through its class alone.
    home = getattr(written, "__module__", None) or type(written).__module__
    return home if isinstance(home, str) else None


def _within(home: str | None, package: str) -> bool:
    """Whether a module is the package, inside it, or a file beside it named after it, as jitted_maths."""
    return home is not None and (home == package or home.startswith((package + ".", package + "_")))


def _reached(kernel: object) -> dict[str, object]:
    """Collect what a Python function can reach by a global name or a closure."""
    function = _innermost(kernel)
    if not isinstance(function, FunctionType):
        return {}
    names = function.__globals__
    reached = {name: names[name] for name in function.__code__.co_names if name in names}
    return reached | {f"closure {i}": cell.cell_contents for i, cell in enumerate(function.__closure__ or ())}


def _foreign(names: Mapping[str, object], module: ModuleType) -> list[str]:
    """List the names that stand for another backend's module, or for something written in it."""
    others = [other for other in _MODULES.values() if other != module.__name__]
    found = []
    for name, value in names.items():
        home = value.__name__ if isinstance(value, ModuleType) else _home(value) if callable(value) else None
        if any(_within(home, other) for other in others):
            found.append(f"{name} from {home}")
    return found


def _preparation(module: ModuleType) -> Callable[[Any], Any] | None:
    import numpy as np

    probe = np.empty(0)
    return None if module.prepare(probe) is probe else module.prepare


# Showing --------------------------------------------------------------------------------------------------


def versions() -> dict[str, dict[str, str]]:
    """Collect what :func:`show_versions` prints, as sections of names and values.

    Returns
    -------
    dict of str to dict of str to str
        Sections "fastae", "backends", one for each available backend, and "libraries".
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from fastae import __version__

    def installed(library: str) -> str:
        try:
            return version(library)
        except PackageNotFoundError:
            return "not installed"

    try:
        chosen = get_backend()
    except (ValueError, ImportError) as error:  # of the environment variable; a bug report wants the rest
        chosen = str(error)
    sections = {
        "fastae": {
            "version": __version__,
            "backend": chosen,
            "processors": str(processors_present()),
            "machine": f"{platform.machine()}, {platform.system()}",
        },
        "backends": {name: reason or "available" for name, reason in available_backends().items()},
    }
    for name, reason in available_backends().items():
        if reason is None:
            try:
                sections[name] = dict(load(name).module.describe())
            except Exception as error:  # whatever is wrong with it is what to show
                sections["backends"][name] = str(error)
    libraries = (
        *("numpy", "scipy", "numba", "threadpoolctl", "safetensors", "scikit-learn", "pooch"),
        *("matplotlib", "tqdm", "pillow"),
    )
    sections["libraries"] = {"python": platform.python_version()} | {
        library: installed(library) for library in libraries
    }
    return sections


def show_versions(file: TextIO | None = None) -> None:
    """Print the backends, the instruction set chosen, threads, compilers and libraries.

    Imports every available backend, Numba too. :func:`fastae.backend.versions` returns the same as a dict.

    Parameters
    ----------
    file : text file, optional
        Where to print; standard output by default.
    """
    for section, entries in versions().items():
        print(section, file=file)
        for name, value in entries.items():
            print(f"    {name:<16} {value}", file=file)
