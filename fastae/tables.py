"""Rows of numbers from files and back: npy, npz, CSV, IDX, folders of images.

::

    .npy  .npz[:name]  .csv  IDX (.gz)  folder of images ──> Table: values, names of the columns
                                                                 │ as_rows: uint8 scaled to [0, 1], finite
                                                                 v
    .npy  .npz  .csv  <── write                             what a Trainer takes

No array is made before its stated size was compared with what the file can hold, and nothing is unpickled.
Every ValueError names the file, and within it the array, or the line and the column.
"""

from __future__ import annotations

import ast
import csv
import errno
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from fastae import datasets
from fastae.checks import real_dtype, within

__all__ = ["Table", "as_rows", "check_output", "read", "read_parts", "write"]

Array = npt.NDArray[Any]

#: Suffixes of what is looked for in a folder of images.
IMAGE_SUFFIXES: Final = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

#: What `write` can write.
OUTPUT_SUFFIXES: Final = (".npy", ".npz", ".csv")

#: Longest header of an .npy file, as NumPy has it.
_MAX_HEADER = 10000

#: Most bytes that one byte of deflate's can stand for.
_RATIO = 1032

_CHUNK = 1 << 20

#: Longest first line of a CSV file: a column takes 2 bytes or more.
_LONGEST_LINE = 1 << 26

#: A number as a CSV file has it; float() would take underscores and other digits too.
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


@dataclass(frozen=True)
class Table:
    """What a file holds.

    Attributes
    ----------
    values : ndarray of uint8 or floats, (n, values), (n, height, width) or (n, channels, height, width)
        As they are in the file.
    columns : tuple of str or None
        Names of the columns, where the file has them.
    source : str
        The file, for messages.
    """

    values: Array
    columns: tuple[str, ...] | None
    source: str


# -- reading -------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Table:
    """Read one table.

    Parameters
    ----------
    path : str or path
        A .npy file; an .npz file, whose array "train" is taken, or its single array of rows, or with
        ``FILE.npz:NAME`` the one of that name; a CSV file (.csv, .tsv, .txt; commas, semicolons or tabs; with
        one line of names before the numbers, or none); an IDX file, plain or gzipped; a folder of images of
        one size, which become grey (``pip install "fastae[images]"``), in the order of their names.

    Returns
    -------
    Table

    Raises
    ------
    ValueError
        It is none of these, is damaged, or has text, missing or other values that are no numbers; images
        have not one size.
    OSError
        It is not there or cannot be read.
    ImportError
        For a folder, when Pillow is not installed.
    """
    return read_parts(path)[0]


def read_parts(path: str | os.PathLike[str]) -> tuple[Table, Table | None]:
    """Read rows to train on and, from an .npz file with arrays "train" and "test", rows to validate on.

    Parameters, what is raised, and without an array "test" the result, are those of `read`.
    """
    path, name = _split(os.fspath(path))
    if os.path.isdir(path):
        return Table(_read_images(Path(path)), None, path), None
    kind = _kind(path)
    if name is not None and kind != "npz":
        raise ValueError(f"{path}:{name}: expected an .npz file before the name of an array")
    if kind == "csv":
        return _read_csv(path), None
    if kind == "idx":
        values = datasets.read_idx(path)
        return Table(_checked(path, values), None, path), None
    try:
        with open(path, "rb") as file:
            if kind == "npy":
                values = _read_npy(file, os.fstat(file.fileno()).st_size)
                found = {"": values}
            else:
                found = _read_npz(path, file, name)
    except (MemoryError, _Refused):
        raise
    except Exception as error:  # zipfile, zlib and NumPy have a dozen ways to say so, none for users
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's, and not of a seek to where there is nothing
        raise ValueError(f"{path}: not a .npz or .npy file of numbers, or damaged") from error
    tables = [
        Table(_checked(path, values, label), None, f"{path}:{label}" if label else path)
        for label, values in found.items()
    ]
    if len(tables) == 1:
        return tables[0], None
    train, test = tables
    if (test.values.shape[1:], test.values.dtype == np.uint8) != (
        train.values.shape[1:],
        train.values.dtype == np.uint8,
    ):
        raise ValueError(
            f"{path}: 'test' has {test.values.dtype} of {test.values.shape[1:]}, "
            f"'train' {train.values.dtype} of {train.values.shape[1:]}"
        )
    return train, test


class _Refused(ValueError):
    """A ValueError that says all there is to say."""


def _split(path: str) -> tuple[str, str | None]:
    """Part ``FILE.npz:NAME``."""
    head, colon, name = path.rpartition(":")
    if colon and not os.path.exists(path) and os.path.isfile(head):
        return head, name
    return path, None


def _kind(path: str) -> str:
    """Kind of a file: by its suffix, or by its first bytes where that says nothing."""
    known = {".npy": "npy", ".npz": "npz", ".csv": "csv", ".tsv": "csv", ".txt": "csv"}
    with open(path, "rb") as file:  # whatever it is, it has to be there
        start = file.read(4)
    if kind := known.get(os.path.splitext(path)[1].lower()):
        return kind
    beginnings = {b"\x93NUM": "npy", b"PK\x03\x04": "npz", b"\x1f\x8b": "idx", b"\0\0": "idx"}
    return next((kind for begin, kind in beginnings.items() if start.startswith(begin)), "csv")


def _checked(path: str, array: Array, name: str = "") -> Array:
    """Return the array if it is one of rows or images."""
    where = f"{path}: array {name!r}" if name else path
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise _Refused(f"{where}: expected uint8 or floats, got dtype {array.dtype}")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise _Refused(
            f"{where}: expected shape (n, height, width) or (n, values), or (n, channels, height, width), "
            f"got {array.shape}"
        )
    return array


# npy and npz ------------------------------------------------------------------------------------------


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read the header of an array: shape, whether in Fortran's order, dtype, bytes of the header.

    NumPy's own reader makes the array a header states before it looks for its bytes.
    """
    magic = file.read(8)
    version = tuple(magic[6:8])
    if magic[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError("no array of NumPy's")
    width = 2 if version == (1, 0) else 4
    size = int.from_bytes(file.read(width), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes")
    text = file.read(size)
    header = ast.literal_eval(text.decode("utf-8" if version == (3, 0) else "latin1"))
    shape, descr, fortran = header["shape"], header["descr"], header["fortran_order"]
    if not isinstance(descr, str) or not isinstance(shape, tuple) or type(fortran) is not bool:
        raise ValueError("no plain array")
    if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an impossible shape")
    dtype = np.dtype(descr)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError("no numbers")
    return shape, fortran, dtype, 8 + width + len(text)


def _read_npy(file: IO[bytes], size: int) -> Array:
    """Read an array from a stream of `size` bytes."""
    shape, fortran, dtype, header = _npy_header(file)
    stated = math.prod(shape) * dtype.itemsize
    if stated != size - header:
        raise ValueError(f"it states {stated} bytes of numbers and has {size - header}")
    flat = np.empty(math.prod(shape), dtype)
    room = memoryview(flat.view(np.uint8))
    done = 0
    while done < stated:
        count = file.readinto(room[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends too early")
        done += count
    if file.read(1):  # at the end of a member of an archive this also compares its checksum
        raise ValueError("it goes on")
    array = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_npz(path: str, file: IO[bytes], wanted: str | None) -> dict[str, Array]:
    """Read from an archive the array that is wanted, or that fits; "test" too, where "train" fits."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        shapes = {}
        for name, info in members.items():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("compressed in a way that NumPy does not use")
            most = info.compress_size * (_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1)
            if info.compress_size > size or info.file_size > most:
                raise ValueError(f"{name}: states more bytes than it can have")
            with archive.open(info) as stream:
                shapes[name] = _npy_header(stream)[0]
        for dimensions in (3, 2, 4):
            candidates = [name for name, shape in shapes.items() if len(shape) == dimensions]
            if candidates:
                break
        if wanted is None and "train" in shapes:
            chosen = ["train", *(["test"] if "test" in shapes else [])]
        elif wanted is not None and wanted in shapes:
            chosen = [wanted]
        elif wanted is None and len(candidates) == 1:
            chosen = candidates
        else:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
            expected = f"an array {wanted!r}" if wanted else "an array 'train' or a single array of rows"
            choose = f"; {path}:NAME chooses one" if shapes and wanted is None else ""
            raise _Refused(f"{path}: expected {expected}, found {found}{choose}")
        arrays = {}
        for name in chosen:
            with archive.open(members[name]) as stream:
                arrays[name] = _read_npy(stream, members[name].file_size)
    return arrays


# CSV --------------------------------------------------------------------------------------------------


def _read_csv(path: str) -> Table:
    """Read a CSV file of numbers, with a line of names or none."""
    foreign = f"{path}: expected .npy, .npz, CSV, IDX or a folder of images, given something else"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            skipped, line = 0, "\n"
            while line and not line.strip():
                line = file.readline(_LONGEST_LINE)
                skipped += 1
    except UnicodeDecodeError as error:
        raise ValueError(foreign) from error
    if "\0" in line or len(line) >= _LONGEST_LINE:
        raise ValueError(foreign)
    if not line.strip():
        raise ValueError(f"{path}: expected rows of numbers, given an empty file")
    # No number has a tab or a semicolon in it; commas may be decimal where one of these is there.
    unquoted = re.sub(r'"[^"]*"', "", line)
    delimiter = next((d for d in "\t;" if d in unquoted), ",")
    first = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    columns = None
    if not any(_NUMBER.fullmatch(field) for field in first):
        columns = tuple(field.strip() for field in first)
    layout = _Layout(path, delimiter, skipped if columns is not None else 0, columns)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a file without rows
            values = np.loadtxt(
                path,
                dtype=np.float64,
                delimiter=delimiter,
                comments=None,
                quotechar='"',
                skiprows=layout.skipped,
                ndmin=2,
                encoding="utf-8-sig",
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, given other bytes") from error
    except UserWarning as error:
        raise ValueError(f"{path}: expected rows of numbers, given none") from error
    except ValueError as error:
        layout.refuse()
        raise ValueError(f"{path}: {error}") from error  # found by NumPy alone
    wrong_header = columns is not None and len(columns) != values.shape[1]
    if wrong_header or not np.isfinite(values).all():
        layout.refuse()
        raise ValueError(f"{path}: expected finite numbers")
    return Table(values, columns, path)


@dataclass(frozen=True)
class _Layout:
    """How a CSV file is laid out; finds what is wrong with it."""

    path: str
    delimiter: str
    skipped: int
    columns: tuple[str, ...] | None

    def refuse(self) -> None:
        """Raise an error for the first line that has not the right numbers."""
        try:
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                for number, fields in self._lines(file):
                    self._check(number, fields)
        except csv.Error as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _lines(self, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
        """Lines that hold rows, with their numbers, counted from 1."""
        reader = csv.reader(file, delimiter=self.delimiter)
        width, of = 0, "the header"
        if self.columns is not None:
            width = len(self.columns)
        for fields in reader:
            number = reader.line_num
            if number <= self.skipped or not fields:
                continue
            if not width:
                width, of = len(fields), f"line {number}"
            if len(fields) != width:
                raise ValueError(
                    f"{self.path}: line {number}: expected {width} values, as {of} has, given {len(fields)}"
                )
            yield number, fields

    def _check(self, number: int, fields: list[str]) -> None:
        for i, field in enumerate(fields):
            if _NUMBER.fullmatch(field) and math.isfinite(float(field)):
                continue
            name = f" ({self.columns[i]!r:.50})" if self.columns is not None else ""
            where = f"{self.path}: line {number}, column {i + 1}{name}"
            text = field.strip()
            if not text:
                raise ValueError(f"{where}: expected a number, and the value is missing")
            raise ValueError(f"{where}: expected a finite number, given {text!r:.50}")


# images -----------------------------------------------------------------------------------------------


def _read_images(folder: Path) -> npt.NDArray[np.uint8]:
    """Read the images of a folder, in the order of their names, as grey levels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f'{folder}: images need Pillow: pip install "fastae[images]"') from error
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: expected images ({kinds}), found none")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of tags it does without
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            size = None
            for path in paths:  # heads alone: sizes are compared before anything is decoded
                with Image.open(path) as image:
                    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
                        raise _Refused(f"{path}: expected an image of 8 bits, given mode {image.mode}")
                    size = image.size if size is None else size
                    if image.size != size:
                        raise _Refused(
                            f"{path}: expected an image of {size[0]}x{size[1]}, as {paths[0]} is, "
                            f"given {image.size[0]}x{image.size[1]}"
                        )
            assert size is not None
            grey = np.empty((len(paths), size[1], size[0]), np.uint8)
            for path, room in zip(paths, grey, strict=True):
                with Image.open(path) as image:
                    room[...] = np.asarray(image.convert("L"))
    except (_Refused, MemoryError):
        raise
    except Exception as error:  # Pillow's readers have many ways to say so
        raise ValueError(f"{path}: not an image, or damaged: {error}") from error
    return grey


# -- rows ----------------------------------------------------------------------------------------------


def as_rows(values: Array, dtype: npt.DTypeLike, source: str) -> Array:
    """Make what a Trainer takes of a table's values.

    Parameters
    ----------
    values : ndarray of uint8 or floats, (n, ...)
        uint8 are grey levels from 0 to 255 and are scaled to [0, 1], as `fastae.datasets.rows` does;
        floats are taken as they are.
    dtype : "float32" or "float64"
        Of the rows.
    source : str
        Where they are from, for messages.

    Returns
    -------
    ndarray, (n, values), C-contiguous
        Finite; the same array where nothing has to be done.

    Raises
    ------
    ValueError
        A value is not finite, or is not in this dtype.
    """
    real = real_dtype(dtype)
    flat = values.reshape(len(values), -1)
    if flat.dtype == np.uint8:
        return datasets.rows(flat, real)
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(flat, real)
    within(source, rows, -math.inf, math.inf)
    return rows


# -- writing -------------------------------------------------------------------------------------------


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """See that `write` can write a file, before what is to be in it is computed.

    Raises
    ------
    ValueError
        The suffix is none of `OUTPUT_SUFFIXES`.
    FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError
        It is there already and not to be overwritten, or its folder cannot be written to.
    """
    text = os.fspath(path)
    if os.path.splitext(text)[1].lower() not in OUTPUT_SUFFIXES:
        raise ValueError(f"{text}: expected a name that ends in {', '.join(OUTPUT_SUFFIXES)}")
    check_place(path, overwrite)


def check_place(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """See that there is room for a file of this name; errors as `check_output`."""
    text = os.fspath(path)
    if os.path.isdir(text):
        raise ValueError(f"{text}: expected a file, given a folder")
    if os.path.exists(text) and not overwrite:
        raise FileExistsError(text)
    folder = os.path.dirname(os.path.abspath(text))
    if not os.path.isdir(folder):
        raise ValueError(f"{text}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{text}: no permission to write there")


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    columns: Mapping[str, tuple[str, ...]] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write arrays with a row for each row of the data.

    Parameters
    ----------
    path : str or path
        .npy: one array, several side by side; .npz: each array under its name; .csv: a line of names, then
        the rows, with as many digits as tell a number from its neighbours. It is replaced as a whole.
    arrays : mapping of str to ndarray, (n,) or (n, ...)
        By name.
    columns : mapping of str to tuple of str, optional
        Names of an array's columns in a CSV file; else the array's name, followed by a number from 0 where
        there are several columns.
    overwrite : bool
        Whether to replace a file that is there.

    Raises
    ------
    ValueError
        The suffix is none of `OUTPUT_SUFFIXES`.
    OSError
        It cannot be written; a FileExistsError where it is there already.
    """
    from fastae.persistence import replace_with

    suffix = os.path.splitext(os.fspath(path))[1].lower()

    def put(file: IO[bytes]) -> None:
        if suffix == ".npz":
            np.savez(file, **arrays)  # type: ignore[arg-type]
        elif suffix == ".npy":
            np.save(file, _joined(arrays), allow_pickle=False)
        else:
            _write_csv(file, arrays, columns or {})

    if suffix not in OUTPUT_SUFFIXES:
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in {', '.join(OUTPUT_SUFFIXES)}")
    replace_with(os.fspath(path), put, overwrite=overwrite)


def _joined(arrays: Mapping[str, Array]) -> Array:
    """One array of all of them."""
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    return np.column_stack(list(arrays.values()))


def _write_csv(file: IO[bytes], arrays: Mapping[str, Array], columns: Mapping[str, tuple[str, ...]]) -> None:
    parts: list[Array] = []
    names: list[str] = []
    for name, array in arrays.items():
        flat = array.reshape(len(array), -1)
        parts.append(flat)
        width = flat.shape[1]
        default = (name,) if array.ndim == 1 else tuple(f"{name}{i}" for i in range(width))
        names += columns.get(name, default)
    file.write((",".join(map(_quoted, names)) + "\n").encode())
    for start in range(0, len(parts[0]), 1024):
        blocks = [_texts(part[start : start + 1024]) for part in parts]
        rows = ([*chain(*row)] for row in zip(*blocks, strict=True))
        file.write("".join(",".join(row) + "\n" for row in rows).encode())


def _quoted(name: str) -> str:
    """A name as a CSV file has it."""
    name = re.sub(r"[\r\n]+", " ", name)  # one line of names
    return '"' + name.replace('"', '""') + '"' if re.search(r'[",;\t]', name) else name


def _texts(values: Array) -> list[list[str]]:
    """The shortest texts that give the same numbers again in their dtype."""
    if values.dtype == np.float32:
        return values.astype("U16").tolist()
    if values.dtype.kind == "f":
        return [[*map(repr, row)] for row in values.tolist()]
    return [[*map(str, row)] for row in values.astype(np.int64).tolist()]
