"""The data fastae ships with, MNIST and Fashion-MNIST, and their preparation for training.

The bundled digits are the testing part of *Optical Recognition of Handwritten Digits* (E. Alpaydin,
C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), CC BY 4.0;
``fastae/data/digits.txt`` says what was changed.

MNIST and Fashion-MNIST are not part of fastae::

    FASTAE_DATA_DIR ──> the user's cache ──> mirrors, one after the other, into the cache
           │                   │                  │
           └───────────────────┴──────────────────┴──> SHA-256 of the decompressed file ──> arrays
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from fastae.checks import real_dtype

__all__ = ["autoencnet_data", "digits", "digits_canvas", "fashion_mnist", "mnist", "read_idx", "rows"]

_SIDE = 8
_LEVELS = 16


def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Load the bundled handwritten digits of the UCI repository.

    Returns
    -------
    images : ndarray of uint8, shape (1797, 8, 8)
        Grey levels from 0 (background) to 16 (ink).
    labels : ndarray of uint8, shape (1797,)
        The digit each image shows, 0 to 9.

    Notes
    -----
    E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0. The values are unchanged.

    Examples
    --------
    >>> images, labels = fastae.datasets.digits()
    >>> images.shape, int(labels[0])
    ((1797, 8, 8), 0)
    """
    path = resources.files("fastae") / "data" / "digits.npz"
    with path.open("rb") as file, np.load(file) as data:
        return data["images"], data["labels"]


def digits_canvas(size: int = 15) -> npt.NDArray[np.uint8]:
    """Place the bundled digits on a larger, empty canvas, with grey levels from 0 to 255.

    Parameters
    ----------
    size : int, default 15
        Side of the square canvas in pixels, at least 8. 15 is the size AutoEncNet uses.

    Returns
    -------
    ndarray of uint8, shape (1797, size, size)
        The digits at their own size in the middle of the canvas. Where the margin is odd, the spare
        row and column are on the top and on the left, as in AutoEncNet's own images: on 15x15 a digit
        covers rows and columns 4 to 11. A level v of 0..16 becomes v 255 / 16, rounded to nearest.

    Raises
    ------
    TypeError
        `size` is not an integer.
    ValueError
        `size` is less than 8.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(f"size: expected an int, got {type(size).__name__}")
    if size < _SIDE:
        raise ValueError(f"size: expected at least {_SIDE}, the side of a digit, got {size}")
    images, _ = digits()
    start = (size - _SIDE + 1) // 2
    canvas = np.zeros((len(images), size, size), np.uint8)
    scaled = np.rint(images * (255 / _LEVELS)).astype(np.uint8)
    canvas[:, start : start + _SIDE, start : start + _SIDE] = scaled
    return canvas


def autoencnet_data(
    images: npt.ArrayLike, mean: npt.ArrayLike | None = None, dtype: npt.DTypeLike = np.float64
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Prepare images as AutoEncNet does: flatten, subtract the mean training image, divide by 255.

    Parameters
    ----------
    images : array_like of real numbers, shape (n, height, width) or (n, pixels)
        Images with grey levels from 0 to 255.
    mean : array_like, shape (pixels,), optional
        Mean training image in grey levels. It is computed from `images` when it is not given; give
        the one of the training images when you prepare test images.
    dtype : dtype, default float64
        Type of both results, float32 or float64. The mean is always summed in float64.

    Returns
    -------
    X : ndarray, shape (n, pixels)
        ``(images - mean) / 255``, C-contiguous.
    mean : ndarray, shape (pixels,)
        The mean that was subtracted, in grey levels. ``X * 255 + mean`` gives the images back.

    Raises
    ------
    TypeError
        `images` does not hold real numbers, or `dtype` is neither float32 nor float64.
    ValueError
        `images` has another number of dimensions, no images or no pixels, or `mean` another length.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    array = np.asarray(images)
    if array.dtype.kind not in "uif":
        raise TypeError(f"images: expected real numbers, got dtype {array.dtype}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"images: expected shape (n, height, width) or (n, pixels), none of them 0, got {array.shape}"
        )
    flat = array.reshape(len(array), -1)
    average = flat.mean(axis=0, dtype=np.float64) if mean is None else np.asarray(mean, np.float64).ravel()
    if len(average) != flat.shape[1]:
        raise ValueError(f"mean: expected {flat.shape[1]} values, as an image has, got {len(average)}")
    return ((flat - average) / 255).astype(dtype), average.astype(dtype)


# MNIST and Fashion-MNIST ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """An IDX file: its name without ".gz", its shape, and the SHA-256 of its decompressed content."""

    name: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class _Source:
    """A data set of images and labels, in two parts.

    Attributes
    ----------
    title : str
        As people call it.
    folders : tuple of str
        Where in FASTAE_DATA_DIR its files may lie; the first is also its folder in the cache.
    mirrors : tuple of str
        Addresses that a file's name with ".gz" is put behind.
    parts : dict of str to tuple of two files
        Images and labels by name of the split.
    """

    title: str
    folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    parts: dict[str, tuple[_File, _File]]

    @property
    def names(self) -> str:
        """All files, for messages."""
        return ", ".join(file.name for part in self.parts.values() for file in part)


def _parts(
    train_images: str, train_labels: str, test_images: str, test_labels: str
) -> dict[str, tuple[_File, _File]]:
    """Name the four files, which are the same in both sets but for their content."""
    return {
        "train": (
            _File("train-images-idx3-ubyte", (60000, 28, 28), train_images),
            _File("train-labels-idx1-ubyte", (60000,), train_labels),
        ),
        "test": (
            _File("t10k-images-idx3-ubyte", (10000, 28, 28), test_images),
            _File("t10k-labels-idx1-ubyte", (10000,), test_labels),
        ),
    }


# The digests of Fashion-MNIST are those of files whose compressed form has the MD5 its authors publish.
_SOURCES: Final[dict[str, _Source]] = {
    "mnist": _Source(
        "MNIST",
        ("mnist", "MNIST/raw", ""),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://raw.githubusercontent.com/fgnt/mnist/master/",
        ),
        _parts(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": _Source(
        "Fashion-MNIST",
        ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", ""),
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        _parts(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}

Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def mnist(split: str | None = "train") -> Labelled:
    """Load MNIST: handwritten digits.

    The files are looked for in the folder that the environment variable FASTAE_DATA_DIR names (there in
    ``mnist/``, in ``MNIST/raw/`` or directly; plain or gzipped), then in the user's cache; else they are
    downloaded into the cache, 11 MB once. Whatever they come from, the content is compared with its
    known SHA-256 every time.

    Parameters
    ----------
    split : "train", "test" or None
        The 60000 images for training, the 10000 for testing, or both, those for training first.

    Returns
    -------
    images : ndarray of uint8, shape (n, 28, 28)
        Grey levels from 0 (background) to 255 (ink). `rows` makes them what a Trainer takes.
    labels : ndarray of uint8, shape (n,)
        The digit each image shows, 0 to 9.

    Raises
    ------
    ValueError
        `split` is another one; or a file is damaged, truncated or not MNIST's: the message names it.
    FileNotFoundError
        There is no file and none can be downloaded, or FASTAE_DATA_DIR is no folder.
    ImportError
        There is no file, and pooch, which downloads, is not installed (``pip install "fastae[data]"``).

    References
    ----------
    LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition (1998).

    Examples
    --------
    >>> images, labels = fastae.datasets.mnist()
    >>> X = fastae.datasets.rows(images)
    >>> X.shape, X.dtype, float(X.max())
    ((60000, 784), dtype('float32'), 1.0)
    """
    return _load("mnist", split)


def fashion_mnist(split: str | None = "train") -> Labelled:
    """Load Fashion-MNIST: pictures of clothes in MNIST's format, 31 MB.

    Parameters, results, errors and where it is looked for are those of `mnist`; in FASTAE_DATA_DIR the
    folder is ``fashion_mnist/``, ``fashion-mnist/`` or ``FashionMNIST/raw/``. Labels: 0 T-shirt or top,
    1 trousers, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.

    References
    ----------
    Xiao, Rasul, Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms (2017), https://github.com/zalandoresearch/fashion-mnist, MIT licence.
    """
    return _load("fashion_mnist", split)


def rows(images: npt.ArrayLike, dtype: npt.DTypeLike = "float32") -> npt.NDArray[Any]:
    """Flatten grey images and scale them from 0..255 to [0, 1]: rows as a Trainer takes them.

    Parameters
    ----------
    images : array_like of uint8, shape (n, height, width) or (n, pixels)
        Grey levels from 0 to 255.
    dtype : "float32" or "float64"
        Type of the result.

    Returns
    -------
    ndarray, shape (n, pixels)
        ``images / 255``, C-contiguous; the only array that is made.

    Raises
    ------
    TypeError
        `images` are not uint8: what is scaled already only needs ``reshape`` and ``astype``.
    ValueError
        `images` has another number of dimensions, no images or no pixels, or `dtype` is another one.
    """
    real = real_dtype(dtype)
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"images: expected uint8, grey levels from 0 to 255, given {array.dtype}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"images: expected shape (n, height, width) or (n, pixels), none of them 0, given {array.shape}"
        )
    scaled = np.empty((len(array), math.prod(array.shape[1:])), real)
    np.divide(array.reshape(scaled.shape), 255, out=scaled, dtype=real, casting="unsafe")
    return scaled


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read an IDX file, MNIST's format, plain or gzipped.

    Parameters
    ----------
    path : str or path
        The file; whether it is gzipped is seen from its content.

    Returns
    -------
    ndarray
        A new array of the shape and type the file states, in the byte order of this machine.

    Raises
    ------
    ValueError
        It is no IDX file, damaged, truncated, or has more in it than it states; the message names it.
    OSError
        It is not there or cannot be read.

    Notes
    -----
    Two zero bytes, a code for the type, the number of dimensions, each size as four bytes, then the
    values, all with the highest byte first (Y. LeCun, The MNIST database of handwritten digits).
    """
    return _read_idx(path, None)[0]


#: Types of an IDX file by their codes.
_IDX_TYPES: Final = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: Most bytes that one byte of a gzip stream can stand for (deflate's limit).
_GZIP_RATIO = 1032

_CHUNK = 1 << 20


def _read_idx(path: str | os.PathLike[str], wanted: tuple[int, ...] | None) -> tuple[npt.NDArray[Any], str]:
    """Read an IDX file, of uint8 if a shape is wanted; gives the array and the SHA-256 of the content."""
    name = os.fspath(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            if not zipped:
                return _parse_idx(file, size, True, wanted)
            with gzip.GzipFile(fileobj=file) as content:
                return _parse_idx(content, _GZIP_RATIO * size, False, wanted)
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name}: damaged, or not the IDX file it should be: {error}") from error


def _parse_idx(
    content: BinaryIO | gzip.GzipFile, size: int, exact: bool, wanted: tuple[int, ...] | None
) -> tuple[npt.NDArray[Any], str]:
    """Read what an IDX file has in it, of which there are `size` bytes, or at most so many."""
    start = content.read(4)
    if len(start) < 4:
        raise ValueError(f"it ends after {len(start)} bytes")
    if start[:2] != b"\0\0" or start[2] not in _IDX_TYPES or start[3] == 0:
        raise ValueError(
            f"it begins with {start.hex(' ')}, not with 00 00, a type and a number of dimensions"
        )
    if start[3] > 32:  # more than NumPy ever had
        raise ValueError(f"it states {start[3]} dimensions")
    lengths = content.read(4 * start[3])
    if len(lengths) < 4 * start[3]:
        raise ValueError("it ends within the sizes of its dimensions")
    shape = tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4))
    dtype = np.dtype(_IDX_TYPES[start[2]])
    if wanted is not None and (dtype.name, shape) != ("uint8", wanted):
        raise ValueError(f"it states {dtype.name} of shape {shape}, expected uint8 of {wanted}")
    header, stated = len(start) + len(lengths), math.prod(shape) * dtype.itemsize
    if size < header + stated or (exact and size > header + stated):  # before an array of this size is made
        raise ValueError(
            f"it states {'x'.join(map(str, shape))} values, {header + stated} bytes with the header, and has "
            f"{size}{'' if exact else ' at most'}"
        )
    digest = hashlib.sha256(start + lengths)
    array = np.empty(shape, dtype)
    room = memoryview(array.reshape(-1).view(np.uint8))
    done = 0
    while done < stated:
        count = content.readinto(room[done : done + _CHUNK])  # type: ignore[union-attr]
        if not count:
            raise ValueError(f"it ends after {header + done} bytes of {header + stated}")
        digest.update(room[done : done + count])
        done += count
    if content.read(1):  # at the end of a gzip stream this also compares its checksum
        raise ValueError(f"it goes on after the {header + stated} bytes it states")
    return array.astype(dtype.newbyteorder("="), copy=False), digest.hexdigest()


def _read_checked(path: Path, source: _Source, wanted: _File) -> npt.NDArray[np.uint8]:
    """Read one of the known files; a ValueError that names it unless it is exactly that one."""
    array, digest = _read_idx(path, wanted.shape)
    if digest != wanted.sha256:
        raise ValueError(
            f"{path}: damaged, or not {source.title}'s {wanted.name}: the SHA-256 of its content is "
            f"{digest}, expected {wanted.sha256}"
        )
    return array


def _load(name: str, split: str | None) -> Labelled:
    source = _SOURCES[name]
    if split is not None and (not isinstance(split, str) or split not in source.parts):
        raise ValueError(f"split: expected 'train', 'test' or None, given {split!r}")
    chosen = list(source.parts) if split is None else [split]
    found = [[_find(source, file) for file in source.parts[part]] for part in chosen]
    if len(found) == 1:
        return found[0][0], found[0][1]
    images, labels = (np.concatenate(kind) for kind in zip(*found, strict=True))
    return images, labels


def _find(source: _Source, wanted: _File) -> npt.NDArray[np.uint8]:
    """Read a file from where it is; see the drawing at the top."""
    given = os.environ.get("FASTAE_DATA_DIR")
    if given:
        if not os.path.isdir(given):
            raise FileNotFoundError(f"FASTAE_DATA_DIR is {given}, which is no folder")
        for folder in source.folders:
            for ending in (".gz", ""):
                path = Path(given, folder, wanted.name + ending)
                if not path.is_file():
                    continue
                try:
                    return _read_checked(path, source, wanted)
                except ValueError:
                    # Of the two sets, which have the same names, one may lie here and one be elsewhere.
                    if folder or not _is_of_another(path, source):
                        raise
    return _cached(source, wanted)


def _is_of_another(path: Path, source: _Source) -> bool:
    """Whether a file that lies in no folder of its own is intact, and of the other set."""
    others = {f.sha256 for s in _SOURCES.values() if s is not source for p in s.parts.values() for f in p}
    try:
        return _read_idx(path, None)[1] in others
    except ValueError:
        return False


def _cached(source: _Source, wanted: _File) -> npt.NDArray[np.uint8]:
    """Read a file from the user's cache; one that is not there, or is damaged, is downloaded first."""
    help = (
        f"set FASTAE_DATA_DIR to a folder that has {source.title}'s files, plain or with .gz, in "
        f"{source.folders[0]}/ or directly: {source.names}"
    )
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f'{source.title} has to be downloaded, which needs pooch: pip install "fastae[data]"; or {help}'
        ) from error
    folder = Path(pooch.os_cache("fastae")) / source.folders[0]
    path = folder / f"{wanted.name}.gz"
    reasons = []
    try:
        with _alone(folder / f"{wanted.name}.lock", path):
            if path.is_file():
                try:
                    return _read_checked(path, source, wanted)
                except ValueError as error:
                    reasons.append(str(error))
                    path.unlink()  # pooch would take it as it is
            for mirror in source.mirrors:
                try:
                    fetch = _downloader(folder / f"{wanted.name}.gz.part", source, wanted)
                    catalogue = pooch.create(folder, mirror, registry={path.name: None})
                    catalogue.fetch(path.name, downloader=fetch)
                    return _read_checked(path, source, wanted)
                except (OSError, ValueError) as error:  # what requests raises is an OSError
                    known = isinstance(error, ValueError) or getattr(error, "response", None) is not None
                    reasons.append(f"{mirror}: {error if known else type(error).__name__}")
    except OSError as error:
        reasons.append(f"the cache {folder} cannot be used: {error}")
    raise FileNotFoundError(
        f"{source.title}'s {wanted.name} is not there and could not be downloaded; {help}. "
        f"What was tried: {'; '.join(reasons)}"
    )


def _downloader(part: Path, source: _Source, wanted: _File) -> Callable[[str, str, Any], None]:
    """Make what pooch calls to have a file downloaded to where it then takes it from.

    What arrives is kept in `part` until it is all there, so that a download that was cut off goes on
    where it was, from another mirror too. Only what has the right content is handed over.
    """
    from pooch import HTTPDownloader

    def download(url: str, output_file: str, caller: Any) -> None:
        there = part.stat().st_size if part.is_file() else 0
        for have in dict.fromkeys((there, 0)):
            headers = {"Range": f"bytes={have}-"} if have else {}
            try:
                with part.open("ab" if have else "wb") as file:
                    HTTPDownloader(chunk_size=1 << 13, timeout=20, headers=headers)(url, file, caller)
                    file.flush()
                    os.fsync(file.fileno())
                _read_checked(part, source, wanted)
            except (OSError, ValueError) as error:
                refused = isinstance(error, ValueError) or getattr(error, "response", None) is not None
                if have and refused:  # the mirror knows no ranges, or has compressed it otherwise: all again
                    continue
                if refused or not part.stat().st_size:
                    part.unlink()
                raise
            os.replace(part, output_file)
            return

    return download


@contextmanager
def _alone(lock: Path, what: Path) -> Iterator[None]:
    """Have one process at a time download a file, where the system can lock."""
    try:
        import fcntl
    except ImportError:  # Windows; two at a time would still use nothing that is damaged
        yield
        return
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError:
        if not what.is_file():
            raise
        file = None  # a cache that can only be read
    if file is None:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
