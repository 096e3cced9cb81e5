"""Choosing, loading and checking a backend.

::

    backend= argument ─┐
    use_backend        │ the first that
    set_backend        ├ says something ──> name ──> load: import, compare with the table ──> Backend
    FASTAE_BACKEND     │
    best available   ──┘

A backend is one module holding every kernel of :mod:`fastae.kernels.table`. There is no fallback from one
to another: a backend that was asked for runs, or an error says why it cannot.

Four belong to fastae. Others come from :func:`register_backend`, which says what such a module must have, or
from installed packages with an entry point in the group ``fastae.backends``. They are chosen by name alone.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

from fastae.executor import processors_present
from fastae.kernels.table import KERNELS, Kernel

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "ENVIRONMENT",
    "GROUP",
    "NAMES",
    "Backend",
    "available_backends",
    "check",
    "get_backend",
    "is_known",
    "known",
    "layout",
    "load",
    "register_backend",
    "resolve",
    "set_backend",
    "show_versions",
    "use_backend",
    "versions",
]

#: The environment variable that names the backend of a process.
ENVIRONMENT = "FASTAE_BACKEND"

#: The group of entry points by which an installed package brings backends: name = module.
GROUP = "fastae.backends"

_MODULES = {
    "scalar": "fastae.kernels.scalar",
    "numpy": "fastae.kernels.vector",
    "numba": "fastae.kernels.jitted",
    "cython": "fastae.kernels.compiled",
}

#: The names of fastae's own backends.
NAMES = tuple(_MODULES)

_BEST_FIRST = ("cython", "numba", "numpy", "scalar")

#: What a backend imports beyond NumPy, and how to get it.
_NEEDS = {"numba": ("numba", "scipy", "threadpoolctl")}
_INSTALL = {
    "numba": 'pip install "fastae[numba]"',
    "cython": "install a wheel of fastae, or build it from source with a C compiler (pip install .)",
}

#: What a backend has beside its kernels; see `register_backend`.
_BESIDE = ("PADDED", "FUSED_UPDATE", "prepare", "describe", "Executor")


@dataclass(frozen=True, eq=False)
class Backend:
    """A backend that was loaded and compared with the table.

    Attributes
    ----------
    name : str
        One of ``NAMES``, or of those that were registered or come from other packages.
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
        raise TypeError(f"backend: expected one of {', '.join(known())}, given {type(backend).__name__}")
    return load(backend)


def set_backend(backend: str | Backend | None) -> None:
    """Choose the backend of the whole process.

    ``use_backend`` and a ``backend=`` argument take precedence over it.

    Parameters
    ----------
    backend : str, Backend or None
        "scalar", "numpy", "numba", "cython" or another of `available_backends`. None takes the choice back.

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
        "scalar", "numpy", "numba", "cython" or another of `available_backends`.

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

    Those of fastae come first, then those that were registered, then those of installed packages. Numba is
    looked for but not imported, which takes a second: what is wrong inside an installed Numba is only seen
    when the backend is used. Backends of other packages are imported.

    Returns
    -------
    dict of str to (str or None)
        None for a backend that is available, for another one the reason and the remedy.

    Examples
    --------
    >>> [name for name, reason in fastae.available_backends().items() if reason is None]
    ['scalar', 'numpy', 'numba', 'cython']
    """
    return {name: _reason(name) for name in known()}


def known() -> tuple[str, ...]:
    """List the name of every backend: fastae's own, those registered, those of installed packages.

    Returns
    -------
    tuple of str
    """
    return tuple(dict.fromkeys((*NAMES, *_loaded, *_installed())))


def is_known(name: object) -> bool:
    """Whether a backend has this name; whether it can be loaded is another matter."""
    return name in NAMES or name in known()  # finding all of them takes a while


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
        One of :func:`known`.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If a dependency is missing, or the extension modules were not built; if the package that brings the
        backend cannot be imported; the message names it.
    AttributeError, TypeError, RuntimeError, ValueError
        From :func:`check`.
    """
    loaded = _loaded.get(name)
    if loaded is not None:
        return loaded
    if name not in _MODULES:
        return _load_installed(name)
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


# Backends of other packages -------------------------------------------------------------------------------

# Lower case, so that no two names differ by it alone; the sections of `versions` keep theirs.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,49}")
_RESERVED = ("fastae", "backends", "libraries")


def register_backend(name: str, module: ModuleType) -> Backend:
    """Add a backend of your own, complete and checked, to be chosen by its name.

    ``set_backend``, ``use_backend``, ``FASTAE_BACKEND`` (of a process that registers it before it computes)
    and every ``backend=`` argument take the name then, and `available_backends` and `show_versions` list it.
    An installed package need not call this: an entry point in the group ``fastae.backends`` brings its
    backend when it is asked for. In the package's ``pyproject.toml``::

        [project.entry-points."fastae.backends"]
        counting = "fastae_counting.backend"

    The module must have

    every kernel of the table
        ``fastae.kernels.table.KERNELS``, under the name of its row, taking the row's arguments by position in
        the order stated there (inputs, saved tensors, constants, workspaces, states, outputs). Arrays are
        C-contiguous, one dtype for the call; an absent optional one has size 0. Outputs are overwritten,
        states updated, nothing is raised or returned.
    ``prepare(array)``
        What the kernels take in place of an ndarray; the array itself where that will do.
    ``describe()``
        A dict of str to str for `show_versions`.
    ``PADDED``
        Whether a Program is laid out with padded rows (see CONTRIBUTING.md), a bool. Only an executor of
        your own can read such a Program.
    ``FUSED_UPDATE``
        Whether the update of a dense layer is one instruction with its gradient (``dense_sgd``,
        ``dense_adam``), a bool.
    ``Executor``
        A class: ``Executor(program, arena, n_threads).run(routine, data, target, order, *, weights, losses,
        out, control)``, as ``fastae.executor.PythonExecutor`` describes it; ``n_threads`` is None where it is
        left to the executor. For kernels that Python calls one at a time it is written already::

            class Executor(fastae.executor.PythonExecutor):
                kernels = sys.modules[__name__]
    ``SHARDED``, optional
        Whether the executor runs padded Programs in shards (`fastae.sharding`), a bool; False if not there.
        It then finds the input, target and output in `Slot.pieces`, runs an instruction of one shard
        (`Instruction.shard`, column SHARD of the code) in one thread, and reads the loss in `Routine.losses`.
        IN_TWO_PASSES in that column is for the kernels of `cython`; others may ignore it.
    ``BORROWS``, optional
        Names of fastae's backends whose kernels this one calls, as ``("numpy",)`` for one that measures
        them. What is not named there is refused, so that a figure is of what it says.

    Kernels are written in this module, or in the same package. ``fastae.kernels.vector`` is an example.

    Parameters
    ----------
    name : str
        Lower-case letters, digits, "_" and "-", a letter first; 50 at most.
    module : module
        Registering a module under its name again checks it anew and takes its kernels as they are now.

    Returns
    -------
    Backend

    Raises
    ------
    TypeError
        If the name is no str, ``module`` no module, or a kernel takes other arguments than its row has; all
        such are listed.
    ValueError
        If the name is invalid or taken, or something beside the kernels is not as stated above.
    AttributeError
        If anything is missing; all of it is listed.
    RuntimeError
        If a kernel of another backend is called and not declared.

    Examples
    --------
    >>> import counting
    >>> fastae.register_backend("counting", counting)
    Backend(name='counting', ...)
    >>> fastae.set_backend("counting")
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, given {type(name).__name__}")
    if not isinstance(module, ModuleType):
        raise TypeError(f"module: expected a module, given {type(module).__name__}")
    if wrong := _wrong_name(name):
        raise ValueError(f"name: expected {wrong}, given {name!r}")
    before = _loaded.get(name)
    if before is not None and before.module.__name__ != module.__name__:
        raise ValueError(
            f"name: expected one that is not taken, given {name!r}, the backend of {before.module.__name__}"
        )
    for entry in _installed().get(name, ()):  # a package may register what its entry point names
        if entry.module != module.__name__:
            raise ValueError(
                f"name: expected one that is not taken, given {name!r}, the backend of {_package(entry)}"
            )
    backend = _loaded[name] = check(name, module)
    return backend


def _wrong_name(name: str) -> str | None:
    """What a name should have been, where it is invalid or fastae's own."""
    if not _NAME.fullmatch(name):
        return "a letter, then letters, digits, '_' and '-', 50 at most, all lower case"
    return "a name that is not fastae's own" if name in (*NAMES, *_RESERVED) else None


def _installed() -> dict[str, list[EntryPoint]]:
    """Find the entry points of installed packages by name; warn of those whose name cannot be used."""
    from importlib.metadata import entry_points  # slow, and needed for unknown names alone

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if wrong := _wrong_name(entry.name):
            import warnings

            warnings.warn(
                f"backend {entry.name!r} of {_package(entry)} is left out: expected {wrong}",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            found.setdefault(entry.name, []).append(entry)
    return found


def _package(entry: EntryPoint) -> str:
    """Name the package that brings an entry point."""
    name = f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed package"
    return f"{name} ({entry.value})"


def _load_installed(name: str) -> Backend:
    entries = _installed().get(name, [])
    if not entries:
        raise ValueError(f"backend: expected one of {', '.join(known())}, given {name!r}")
    if len(entries) > 1:
        packages = " and ".join(map(_package, entries))
        raise ImportError(f"backend {name!r} is brought by {packages}: uninstall all but one")
    (entry,) = entries
    try:
        module = entry.load()
    except Exception as error:  # another's code: whatever it raises, the package is named
        reason = f"{type(error).__name__}: {error}"
        raise ImportError(f"backend {name!r} of {_package(entry)} cannot be imported: {reason}") from error
    if not isinstance(module, ModuleType):
        raise ImportError(
            f"backend {name!r} of {_package(entry)}: expected a module, given {type(module).__name__}"
        )
    return _loaded.setdefault(name, check(name, module))


# Checking -------------------------------------------------------------------------------------------------


def check(name: str, module: ModuleType) -> Backend:
    """Compare a module with the table.

    Every row must be there as a callable, and every one must have been written in this module, in a
    submodule of it, or in a file beside it that begins with its name (for a backend that is not fastae's:
    anywhere in its package). A kernel's home is the ``__module__``
    of the function under it (``py_func`` for one compiled by Numba), or of its class where it is a callable
    object. A wrapper written at home around
    another backend's kernel is found by the name it reaches it by: no global or closure of a kernel, and no
    name of the module, may stand for another backend's module or for something written there. A backend that
    is not fastae's may declare in ``BORROWS`` whose it calls; what its kernels take is compared too, where
    Python knows it.

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
    TypeError
        If a kernel takes other arguments than its row has; all such are listed.
    ValueError
        If PADDED, FUSED_UPDATE, SHARDED, Executor or BORROWS is not what it must be.
    RuntimeError
        If a kernel is borrowed from elsewhere.
    """
    own = module.__name__ in _MODULES.values()
    kernels: dict[str, Any] = {row: getattr(module, row, None) for row in KERNELS}
    absent = [row for row, kernel in kernels.items() if not callable(kernel)]
    absent += [attribute for attribute in _BESIDE if not hasattr(module, attribute)]
    if absent:
        raise AttributeError(f"backend {name!r} is incomplete: {module.__name__} lacks {', '.join(absent)}")
    lent = () if own else _lenders(name, module)
    if not own:
        _check_arguments(name, kernels)
        _check_beside(name, module)
    homes = (module.__name__ if own else module.__name__.partition(".")[0], *lent)
    borrowed = _foreign(vars(module), module, lent)
    for row, kernel in kernels.items():
        if not any(_within(_home(kernel), home) for home in homes):
            borrowed.append(f"{row} from {_home(kernel)}")
        borrowed += [f"{row} by {foreign}" for foreign in _foreign(_reached(kernel), module, lent)]
    if borrowed:
        raise RuntimeError(f"backend {name!r} borrows kernels: {', '.join(dict.fromkeys(borrowed))}")
    return Backend(name, module, MappingProxyType(kernels), _preparation(module))


class Layout(TypedDict):
    """How a Program is laid out for a backend: arguments of `fastae.lowering.lower`."""

    padded: bool
    fused_update: bool
    shards: bool


def layout(module: ModuleType) -> Layout:
    """Say how a Program is laid out for a backend."""
    return {
        "padded": module.PADDED,
        "fused_update": module.FUSED_UPDATE,
        "shards": getattr(module, "SHARDED", False),
    }


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


def _foreign(names: Mapping[str, object], module: ModuleType, lent: tuple[str, ...]) -> list[str]:
    """List the names that stand for a module that another backend has not lent, or for something in it."""
    others = [other for other in _MODULES.values() if other not in (module.__name__, *lent)]
    found = []
    for name, value in names.items():
        home = value.__name__ if isinstance(value, ModuleType) else _home(value) if callable(value) else None
        if any(_within(home, other) for other in others):
            found.append(f"{name} from {home}")
    return found


def _lenders(name: str, module: ModuleType) -> tuple[str, ...]:
    """Name the modules of the backends whose kernels a module says it calls."""
    borrows = getattr(module, "BORROWS", ())
    if not isinstance(borrows, tuple) or not all(isinstance(b, str) and b in _MODULES for b in borrows):
        raise ValueError(
            f"backend {name!r}: BORROWS: expected a tuple of names out of {', '.join(NAMES)}, "
            f"given {borrows!r}"
        )
    return tuple(_MODULES[b] for b in borrows)


def _check_arguments(name: str, kernels: Mapping[str, Callable[..., Any]]) -> None:
    """Refuse kernels that cannot be called with the arguments of their rows."""
    wrong = []
    for row, kernel in kernels.items():
        try:
            found = inspect.signature(kernel)
        except ValueError:  # written in C, and mute
            continue
        try:
            found.bind(*KERNELS[row].arguments)
        except TypeError:
            wrong.append(f"{_heading(KERNELS[row])}, given {row}{found}")
    if wrong:
        raise TypeError(f"backend {name!r} takes other arguments: expected {'; expected '.join(wrong)}")


def _heading(row: Kernel) -> str:
    return f"{row.name}({', '.join(a.name for a in row.arguments)})"


def _check_beside(name: str, module: ModuleType) -> None:
    """Refuse what would fail in the middle of a training."""
    from fastae.executor import PythonExecutor

    for flag, value in (
        ("PADDED", module.PADDED),
        ("FUSED_UPDATE", module.FUSED_UPDATE),
        ("SHARDED", getattr(module, "SHARDED", False)),
    ):
        if type(value) is not bool:
            raise ValueError(f"backend {name!r}: {flag}: expected True or False, given {value!r}")
    for attribute in ("prepare", "describe", "Executor"):
        if not callable(value := getattr(module, attribute)):
            raise ValueError(
                f"backend {name!r}: {attribute}: expected something to call, given {value!r:.50}"
            )
    executor = module.Executor
    if isinstance(executor, type) and not callable(getattr(executor, "run", None)):
        raise ValueError(
            f"backend {name!r}: Executor: expected a class with a method run, given {executor!r}"
        )
    if isinstance(executor, type) and issubclass(executor, PythonExecutor):
        if getattr(executor, "kernels", None) is not module:
            raise ValueError(
                f"backend {name!r}: Executor.kernels: expected the module {module.__name__} "
                f"(kernels = sys.modules[__name__]), given {getattr(executor, 'kernels', None)!r}"
            )
        if module.PADDED:
            raise ValueError(
                f"backend {name!r}: PADDED: expected False with the PythonExecutor, which has rows that lie "
                "close together; given True"
            )


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
    available = available_backends()
    sections = {
        "fastae": {
            "version": __version__,
            "backend": chosen,
            "processors": str(processors_present()),
            "machine": f"{platform.machine()}, {platform.system()}",
        },
        "backends": {name: reason or "available" for name, reason in available.items()},
    }
    for name, reason in available.items():
        if reason is None:
            try:
                module = load(name).module
                sections[name] = dict(module.describe()) | _origin(name, module)
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


def _origin(name: str, module: ModuleType) -> dict[str, str]:
    """Say where a backend that is not fastae's comes from, and whose kernels it calls."""
    if name in NAMES:
        return {}
    borrows = ", ".join(getattr(module, "BORROWS", ()))
    return {"module": module.__name__} | ({"kernels of": borrows} if borrows else {})


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
