"""The bundled digits, MNIST from files, cache and mirrors, and their preparation."""

import gzip
import hashlib
import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fastae import datasets


def test_digits_are_the_uci_digits():
    images, labels = datasets.digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), np.uint8)
    assert images.max() == 16
    assert labels[:10].tolist() == list(range(10))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # of the bytes, so that a file made anew can differ in its compression but not in a pixel
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_digits_equal_scikit_learns():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    theirs = sklearn_datasets.load_digits()
    images, labels = datasets.digits()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


@pytest.mark.parametrize(("size", "first"), [(8, 0), (9, 1), (15, 4), (16, 4), (28, 10)])
def test_canvas_holds_each_digit_in_its_middle(size, first):
    canvas = datasets.digits_canvas(size)
    assert (canvas.shape, canvas.dtype) == ((1797, size, size), np.uint8)
    inside = canvas[:, first : first + 8, first : first + 8]
    images, _ = datasets.digits()
    np.testing.assert_array_equal(inside, np.rint(images / 16 * 255))
    assert inside.max() == 255
    assert canvas.sum(dtype=int) == inside.sum(dtype=int)  # nothing outside


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (7, ValueError, "size: expected at least 8"),
        (15.0, TypeError, "size: expected an int"),
        (True, TypeError, "size: expected an int"),
    ],
)
def test_canvas_refuses(size, error, message):
    with pytest.raises(error, match=message):
        datasets.digits_canvas(size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autoencnet_data_subtracts_the_mean_image(dtype):
    images = datasets.digits_canvas()
    x, mean = datasets.autoencnet_data(images[:1000], dtype=dtype)
    assert (x.shape, x.dtype, mean.shape, mean.dtype) == ((1000, 225), dtype, (225,), dtype)
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6 if dtype == "float32" else 1e-14)
    np.testing.assert_allclose(x * 255 + mean, images[:1000].reshape(1000, -1), atol=1e-4)
    test, same = datasets.autoencnet_data(images[1000:], mean, dtype)
    np.testing.assert_array_equal(same, mean)
    np.testing.assert_allclose(test, (images[1000:].reshape(797, -1) - mean) / 255, atol=1e-7)


def test_autoencnet_data_takes_flat_images():
    images = datasets.digits_canvas()[:5]
    np.testing.assert_array_equal(
        datasets.autoencnet_data(images.reshape(5, -1))[0], datasets.autoencnet_data(images)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(225),), ValueError, "images: expected shape"),
        ((np.zeros((0, 15, 15)),), ValueError, "images: expected shape"),
        ((np.zeros((2, 3, 15, 15)),), ValueError, "images: expected shape"),
        ((np.array([["a", "b"]]),), TypeError, "images: expected real numbers"),
        ((np.zeros((2, 4), complex),), TypeError, "images: expected real numbers"),
        ((np.zeros((2, 4)), np.zeros(3)), ValueError, "mean: expected 4 values"),
        ((np.zeros((2, 4)), None, "int64"), TypeError, "dtype: expected float32 or float64"),
    ],
)
def test_autoencnet_data_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        datasets.autoencnet_data(*arguments)


def test_rows_are_scaled_to_one():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    for dtype in ("float32", "float64"):
        scaled = datasets.rows(images, dtype)
        assert (scaled.shape, scaled.dtype) == ((4, 64), dtype)
        assert scaled.flags.c_contiguous
        np.testing.assert_array_equal(scaled, images.reshape(4, 64).astype(dtype) / np.dtype(dtype).type(255))
    assert datasets.rows(images.reshape(4, 64)).dtype == np.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((2, 3)),), TypeError, "images: expected uint8"),
        ((np.zeros(3, np.uint8),), ValueError, "images: expected shape"),
        ((np.zeros((0, 2, 2), np.uint8),), ValueError, "images: expected shape"),
        ((np.zeros((1, 2, 2), np.uint8), "int32"), ValueError, "dtype: expected float32 or float64"),
    ],
)
def test_rows_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        datasets.rows(*arguments)


# -- IDX files -----------------------------------------------------------------------------------------

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
PACKINGS = {"plain": bytes, "gzip": partial(gzip.compress, mtime=0)}


def idx(array):
    """An array as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    kind = array.dtype.str[1:]
    return bytes([0, 0, CODES[kind], array.ndim]) + sizes + array.astype(f">{kind}").tobytes()


@pytest.fixture(params=PACKINGS)
def pack(request):
    return PACKINGS[request.param]


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (1, 1, 1, 2), (0, 3)])
def test_idx_round_trip(tmp_path, pack, kind, shape):
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(kind)
    path = tmp_path / "file"
    path.write_bytes(pack(idx(array)))
    found = datasets.read_idx(path)
    assert (found.dtype, found.shape) == (np.dtype(kind), shape)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


IMAGE = idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it ends after 0 bytes"),
        (IMAGE[:3], "it ends after 3 bytes"),
        (IMAGE[:15], "it ends within the sizes"),
        (IMAGE[:-1], "3x2x2|it ends after 27 bytes of 28"),
        (IMAGE + b"\0", "3x2x2|goes on after"),
        (b"\1" + IMAGE[1:], "it begins with 01 00 08 03"),
        (b"\0\1" + IMAGE[2:], "it begins with 00 01 08 03"),
        (b"\0\0\x0a" + IMAGE[3:], "it begins with 00 00 0a 03"),
        (b"\0\0\x08\0" + IMAGE[4:], "it begins with 00 00 08 00"),
        (b"\0\0\x08\xff" + IMAGE[4:] * 100, "255 dimensions"),
        (b"\0\0\x0e\x03" + b"\xff" * 12 + IMAGE, "4294967295x4294967295"),  # nothing of this size is made
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, pack, content, message):
    path = tmp_path / "file"
    path.write_bytes(pack(content))
    with pytest.raises(ValueError, match=f"{path}: damaged, or not the IDX file it should be: .*({message})"):
        datasets.read_idx(path)


def test_idx_file_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        datasets.read_idx(tmp_path / "file")


# -- MNIST, made small ---------------------------------------------------------------------------------

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class Small:
    """A set of 30 and 10 images, in place of a real one."""

    def __init__(self, name, seed):
        rng = np.random.default_rng(seed)
        self.name = name
        self.arrays, self.files, parts = {}, {}, {}
        for part, count in (("train", 30), ("test", 10)):
            both = (
                rng.integers(0, 256, (count, 28, 28), np.uint8),
                rng.integers(0, 10, count).astype(np.uint8),
            )
            self.arrays[part] = both
            known = []
            for file, array in zip(NAMES[part], both, strict=True):
                content = self.files[file] = idx(array)
                known.append(datasets._File(file, array.shape, hashlib.sha256(content).hexdigest()))
            parts[part] = tuple(known)
        self.source = replace(datasets._SOURCES[name], parts=parts, mirrors=())

    def write(self, folder, pack=PACKINGS["gzip"], ending=".gz"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.files.items():
            (folder / f"{file}{ending}").write_bytes(pack(content))

    def check(self, split="train"):
        images, labels = getattr(datasets, self.name)(split)
        parts = ["train", "test"] if split is None else [split]
        for found, kind in ((images, 0), (labels, 1)):
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, np.concatenate([self.arrays[p][kind] for p in parts]))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.delenv("FASTAE_DATA_DIR", raising=False)
    made = {name: Small(name, seed) for seed, name in enumerate(("mnist", "fashion_mnist"))}
    for name, one in made.items():
        monkeypatch.setitem(datasets._SOURCES, name, one.source)
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's cache."""
    pooch = pytest.importorskip("pooch")
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder / project)
    return folder / "fastae"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("split", ["train", "test", None])
def test_files_of_the_data_folder(small, tmp_path, monkeypatch, name, ending, split):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    for folder in datasets._SOURCES[name].folders:
        small[name].write(tmp_path / folder, PACKINGS["gzip" if ending else "plain"], ending)
        small[name].check(split)
        for path in (tmp_path / folder).glob("*ubyte*"):
            path.unlink()


def test_gzip_is_seen_from_the_content(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    small["mnist"].write(tmp_path, PACKINGS["plain"], ".gz")
    small["mnist"].check()


def test_flat_files_of_the_other_set_are_not_taken(small, tmp_path, monkeypatch, cache):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    small["mnist"].write(tmp_path)
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST's train-images-idx3-ubyte is not there"):
        datasets.fashion_mnist()
    small["fashion_mnist"].write(cache / "fashion_mnist")
    small["fashion_mnist"].check()
    small["mnist"].check()
    small["mnist"].write(tmp_path / "fashion_mnist")  # in its own folder it is an error
    with pytest.raises(ValueError, match="damaged, or not Fashion-MNIST's"):
        datasets.fashion_mnist()


def test_data_folder_that_is_none(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"FASTAE_DATA_DIR is .*absent, which is no folder"):
        datasets.mnist()


@pytest.mark.parametrize("split", ["training", 0, True, b"train"])
def test_unknown_split(split):
    with pytest.raises(ValueError, match="split: expected 'train', 'test' or None, given"):
        datasets.mnist(split)


def damages(content, header):
    """Contents that are not the right one, by what was done."""
    yield "empty", b""
    for i in range(header):
        for bit in (0x01, 0x80):
            yield f"byte {i} ^ {bit}", content[:i] + bytes([content[i] ^ bit]) + content[i + 1 :]
    for length in [*range(header), header + 1, len(content) // 2, len(content) - 1]:
        yield f"cut to {length}", content[:length]
    yield "one more", content + b"\0"
    middle = len(content) // 2
    yield "a pixel", content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize("file", NAMES["train"])
def test_damaged_files_are_named_and_not_used(small, tmp_path, monkeypatch, pack, file):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    small["mnist"].write(tmp_path)
    path = tmp_path / f"{file}.gz"
    for what, content in damages(small["mnist"].files[file], 16 if "images" in file else 8):
        path.write_bytes(pack(content))
        with pytest.raises(ValueError, match=f"{path}: damaged, or not ") as caught:
            datasets.mnist()
        assert "\n" not in str(caught.value), what


def test_damaged_gzip_streams_are_named_and_not_used(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    small["mnist"].write(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    places = [*range(4), *range(len(whole) - 8, len(whole)), *rng.integers(10, len(whole), 50)]
    cut = [whole[:length] for length in (1, 2, 3, 9, 10, 11, 500, len(whole) - 8, len(whole) - 1)]
    flipped = [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in map(int, places)]
    for content in (*cut, *flipped, whole + b"rest"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}: damaged, or not "):
            datasets.mnist()
    path.write_bytes(whole)
    small["mnist"].check()


def test_full_mnist():
    folder = os.environ.get("FASTAE_DATA_DIR", "")
    if not os.path.isdir(os.path.join(folder, "mnist")):
        pytest.skip("FASTAE_DATA_DIR has no folder mnist")
    images, labels = datasets.mnist("test")
    assert images.shape == (10000, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# -- cache and mirrors ---------------------------------------------------------------------------------


class Mirror:
    """A mirror on this machine; `cut` ends each answer after so many bytes, as a lost connection does."""

    def __init__(self, files):
        self.files = {f"/{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
        self.requests = []
        self.ranges = True
        self.cut = None

    @contextmanager
    def serve(self):
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                mirror.requests.append((self.path, asked))
                content = mirror.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int(asked[6:-1]) if asked and mirror.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: mirror.cut])

            def log_message(self, *arguments):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def mirrored(small, cache, monkeypatch):
    """Small MNIST with two mirrors, of which the first has what the second has until a test changes it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirrors = [Mirror(small["mnist"].files) for _ in range(2)]
    with mirrors[0].serve() as first, mirrors[1].serve() as second:
        monkeypatch.setitem(
            datasets._SOURCES, "mnist", replace(small["mnist"].source, mirrors=(first, second))
        )
        yield mirrors


IMAGES = "/train-images-idx3-ubyte.gz"


def test_download_into_the_cache(small, cache, mirrored):
    small["mnist"].check()
    assert [path for path, _ in mirrored[0].requests] == [IMAGES, "/train-labels-idx1-ubyte.gz"]
    small["mnist"].check()  # from the cache
    assert len(mirrored[0].requests) == 2
    assert not mirrored[1].requests
    kept = {path.name for path in (cache / "mnist").iterdir() if path.suffix != ".lock"}
    assert kept == {f"{name}.gz" for name in NAMES["train"]}


def test_download_that_was_cut_off_goes_on(small, cache, mirrored):
    for mirror in mirrored:
        mirror.cut = 9000  # a little more than what is written at a time
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        datasets.mnist()
    part = cache / "mnist" / "train-images-idx3-ubyte.gz.part"
    ((_, first),), ((_, second),) = mirrored[0].requests, mirrored[1].requests
    assert first is None
    there = int(second.removeprefix("bytes=").removesuffix("-"))  # the other mirror is asked for the rest
    assert 0 < there <= 9000
    assert there < part.stat().st_size <= 18000
    assert part.read_bytes() == mirrored[0].files[IMAGES][: part.stat().st_size]
    assert not (cache / "mnist" / "train-images-idx3-ubyte.gz").exists()
    for mirror in mirrored:
        mirror.cut = None
        mirror.requests.clear()
    there = part.stat().st_size
    small["mnist"].check()
    assert mirrored[0].requests[0] == (IMAGES, f"bytes={there}-")
    assert not part.exists()


@pytest.mark.parametrize("rest", ["no ranges", "another file", "all of it", "longer"])
def test_rest_of_a_download_that_does_not_fit(small, cache, mirrored, rest):
    part = cache / "mnist" / "train-images-idx3-ubyte.gz.part"
    part.parent.mkdir(parents=True)
    whole = mirrored[0].files[IMAGES]
    mirrored[0].ranges = rest != "no ranges"
    beginnings = {"another file": b"x" * 100, "all of it": whole, "longer": whole + b"x"}
    part.write_bytes(beginnings.get(rest, whole[:100]))
    small["mnist"].check()
    assert [asked for path, asked in mirrored[0].requests if path == IMAGES][-1] is None
    assert not part.exists()


@pytest.mark.parametrize("fault", ["missing", "altered", "truncated", "other", "empty"])
def test_next_mirror_is_asked(small, cache, mirrored, fault):
    content = mirrored[0].files[IMAGES]
    mirrored[0].files[IMAGES] = {
        "missing": None,
        "altered": gzip.compress(IMAGE),
        "truncated": content[:-100],
        "other": b"<html>down for maintenance</html>",
        "empty": b"",
    }[fault]
    small["mnist"].check()
    assert [path for path, _ in mirrored[1].requests] == [IMAGES]


def test_wrong_content_everywhere_is_not_kept(cache, mirrored):
    for mirror in mirrored:
        mirror.files[IMAGES] = gzip.compress(IMAGE)
    with pytest.raises(FileNotFoundError, match=r"What was tried: http.*damaged, or not .*; http"):
        datasets.mnist()
    assert [path.suffix for path in (cache / "mnist").iterdir()] == [".lock"]


def test_damaged_file_of_the_cache_is_downloaded_again(small, cache, mirrored):
    small["mnist"].check()
    path = cache / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    small["mnist"].check()
    path.write_bytes(path.read_bytes()[:1000])
    for mirror in mirrored:
        mirror.files.clear()
    with pytest.raises(FileNotFoundError, match=f"{path}: damaged, or not "):
        datasets.mnist()


def test_plain_file_from_a_mirror(small, cache, mirrored):
    mirrored[0].files[IMAGES] = small["mnist"].files[IMAGES[1:-3]]
    small["mnist"].check()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_offline_without_data(small, cache, monkeypatch, name):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nobody = ("http://127.0.0.1:9/",)
    monkeypatch.setitem(datasets._SOURCES, name, replace(small[name].source, mirrors=nobody))
    with pytest.raises(FileNotFoundError) as caught:
        getattr(datasets, name)()
    message = str(caught.value)
    assert "set FASTAE_DATA_DIR to a folder" in message
    for file in (*NAMES["train"], *NAMES["test"]):
        assert file in message
    assert "127.0.0.1:9/: ConnectionError" in message
    assert "\n" not in message
    assert not list((cache / name).glob("*.part"))


def test_cache_that_cannot_be_made(small, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError, match="set FASTAE_DATA_DIR to a folder") as caught:
        datasets.mnist()
    message = str(caught.value)
    assert f"the cache {cache / 'mnist'} cannot be used" in message
    for file in (*NAMES["train"], *NAMES["test"]):
        assert file in message


def test_intact_file_that_does_not_fit_into_memory_is_kept(small, cache, monkeypatch):
    small["mnist"].write(cache / "mnist")

    def fail(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_parse_idx", fail)
        with pytest.raises(MemoryError):
            datasets.mnist()
    small["mnist"].check()


def test_without_pooch(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "fastae\[data\]"; or set FASTAE_DATA_DIR'):
        datasets.mnist()


def test_two_threads_download_once(small, cache, mirrored):
    pytest.importorskip("fcntl")
    threads = [threading.Thread(target=datasets.mnist) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mirrored[0].requests) == 2
    small["mnist"].check()


def test_known_files_are_all_different():
    files = [f for s in datasets._SOURCES.values() for part in s.parts.values() for f in part]
    assert len({file.sha256 for file in files}) == len(files) == 8
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in files)
