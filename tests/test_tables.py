"""Tables: what is read and written, and how a file that is none is refused."""

import errno
import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastae import datasets, tables


@pytest.fixture
def image(require):
    """Pillow's images."""
    return require("PIL.Image")


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


ROWS = np.random.default_rng(0).normal(size=(7, 3))


# -- what is written can be read -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    values=st.sampled_from([np.float32, np.float64]).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=2, max_dims=2, max_side=5),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    ),
    suffix=st.sampled_from(tables.OUTPUT_SUFFIXES),
)
def test_numbers_come_back_bit_for_bit(tmp_path_factory, values, suffix):
    path = tmp_path_factory.mktemp("table") / f"x{suffix}"
    tables.write(path, {"x": values})
    again = tables.read(path)
    same(again.values.astype(values.dtype), values)
    assert again.source == (f"{path}:x" if suffix == ".npz" else str(path))
    assert again.columns == (tuple(f"x{i}" for i in range(values.shape[1])) if suffix == ".csv" else None)


@pytest.mark.parametrize("suffix", tables.OUTPUT_SUFFIXES)
def test_several_arrays(tmp_path, suffix):
    path = tmp_path / f"both{suffix}"
    score, outlier = ROWS[:, 0], ROWS[:, 0] > 0
    tables.write(path, {"score": score, "outlier": outlier})
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            same(found["score"], score)
            same(found["outlier"], outlier)
        return
    found = tables.read(path)
    np.testing.assert_array_equal(found.values, np.column_stack([score, outlier]))
    assert found.columns == (("score", "outlier") if suffix == ".csv" else None)


def test_names_of_columns_come_back(tmp_path):
    names = ("length", 'width "outer"', "a, b", "ü;")
    tables.write(tmp_path / "x.csv", {"x": np.ones((2, 4))}, {"x": names})
    assert tables.read(tmp_path / "x.csv").columns == names


def test_images_are_flat_in_csv(tmp_path):
    levels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    tables.write(tmp_path / "x.csv", {"x": levels})
    np.testing.assert_array_equal(tables.read(tmp_path / "x.csv").values, levels.reshape(2, 12))


def test_files_are_replaced_only_when_told(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        tables.check_output(path)
    with pytest.raises(FileExistsError):
        tables.write(path, {"x": ROWS})
    assert path.read_text() == "mine"
    tables.check_output(path, overwrite=True)
    tables.write(path, {"x": ROWS}, overwrite=True)
    np.testing.assert_array_equal(tables.read(path).values, ROWS)
    assert os.listdir(tmp_path) == ["x.csv"]


def test_full_disk_leaves_what_there_was(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    path.write_text("mine")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        tables.write(path, {"x": ROWS}, overwrite=True)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", r"x\.txt: expected a name that ends in \.npy, \.npz, \.csv"),
        ("none/x.npy", r"x\.npy: there is no folder .*none"),
        (".", "expected"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        tables.check_output(tmp_path / name)
    with pytest.raises((ValueError, OSError)):
        tables.write(tmp_path / name, {"x": ROWS})


# -- npy and npz ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", "CF")
def test_dtypes_and_orders(tmp_path, dtype, order):
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype, order=order)
    np.save(tmp_path / "x.npy", values)
    np.savez_compressed(tmp_path / "x.npz", x=values)
    for name in ("x.npy", "x.npz"):
        found = tables.read(tmp_path / name).values
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("names", "key", "expected"),
    [
        ({"a": (4, 3), "labels": (4,)}, None, "a"),
        ({"a": (4, 3), "images": (4, 3, 3)}, None, "images"),
        ({"a": (4, 3), "images": (4, 3, 3)}, "a", "a"),
        ({"train": (4, 3), "b": (4, 3)}, None, "train"),
        ({"train": (4, 3), "test": (5, 3)}, "test", "test"),
        ({"rgb": (4, 3, 2, 2), "labels": (4,)}, None, "rgb"),
    ],
)
def test_array_of_an_archive(tmp_path, names, key, expected):
    path = tmp_path / "x.npz"
    np.savez(path, **{name: np.full(shape, i / 2) for i, (name, shape) in enumerate(names.items())})
    found = tables.read(f"{path}:{key}" if key else path)
    assert found.values.shape == names[expected]
    assert (found.values == list(names).index(expected) / 2).all()
    assert found.source == f"{path}:{expected}"


def test_parts_of_an_archive(tmp_path):
    np.savez(tmp_path / "x.npz", train=ROWS, test=ROWS[:2], other=ROWS)
    train, test = tables.read_parts(tmp_path / "x.npz")
    same(train.values, ROWS)
    same(test.values, ROWS[:2])
    assert tables.read_parts(f"{tmp_path / 'x.npz'}:other")[1] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected an array 'train' or a single array of rows, found nothing"),
        ({"a": ROWS, "b": ROWS}, r"found a \(7, 3\), b \(7, 3\); .*x\.npz:NAME chooses one"),
        ({"a": ROWS.astype(int)}, "array 'a': expected uint8 or floats, got dtype int64"),
        ({"a": ROWS.astype(complex)}, "expected uint8 or floats, got dtype complex128"),
        ({"a": ROWS[:0]}, r"expected shape .*, got \(0, 3\)"),
        ({"train": ROWS[0]}, r"expected shape .*, got \(3,\)"),
        ({"train": ROWS, "test": ROWS[:, 1:]}, r"'test' has float64 of \(2,\), 'train' float64 of \(3,\)"),
    ],
)
def test_archives_that_do_not_fit(tmp_path, content, message):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(ValueError, match=message) as caught:
        tables.read_parts(tmp_path / "x.npz")
    assert str(caught.value).startswith(str(tmp_path / "x.npz"))


def test_array_that_is_not_in_the_file(tmp_path):
    np.savez(tmp_path / "x.npz", a=ROWS)
    np.save(tmp_path / "x.npy", ROWS)
    with pytest.raises(ValueError, match=r"expected an array 'b', found a \(7, 3\)$"):
        tables.read(f"{tmp_path / 'x.npz'}:b")
    with pytest.raises(ValueError, match=r"x\.npy:b: expected an \.npz file"):
        tables.read(f"{tmp_path / 'x.npy'}:b")


class Bomb:
    """What unpickling it does would be seen."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npy(shape=(2, 3), descr="<f8", data=b"\0" * 48, fortran=False, version=1, header=None):
    """A file of NumPy's that states what it likes."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}) if header is None else header
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(text)) + text.encode() + data


HOSTILE = {
    "a million million rows": npy((10**12, 3)),
    "more than 64 bits": npy((10**30, 3)),
    "negative": npy((-2, -3)),
    "no integers": npy((2.0, 3)),
    "true": npy((True, 3), data=b"\0" * 24),
    "a list": npy([2, 3]),
    "too few": npy(data=b"\0" * 47),
    "too many": npy(data=b"\0" * 49),
    "objects": npy(descr="|O"),
    "records": npy(descr=[("a", "<f8")]),
    "an unknown type": npy(descr="<q9"),
    "an expression": npy(header="__import__('os').mkdir('x')"),
    "nested": npy(header="(" * 9000),
    "a large header": npy(version=2, header="#" * 20000),
    "another version": npy(version=9),
    "no header": npy(header="{}"),
    "nothing": b"",
    "text": b"not an array",
}


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_arrays_are_refused_before_one_is_made(tmp_path, monkeypatch, what, archived):
    path = tmp_path / ("x.npz" if archived else "x.npy")
    if archived:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("x.npy", HOSTILE[what])
    else:
        path.write_bytes(HOSTILE[what])
    made = []
    monkeypatch.setattr(np, "empty", lambda *arguments, **options: made.append(arguments))
    with pytest.raises(ValueError, match=r"x\.np[yz]: ") as caught:
        tables.read(path)
    monkeypatch.undo()
    assert not made
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(tmp_path):
    trap = tmp_path / "trap"
    content = pickle.dumps(Bomb(str(trap)))
    (tmp_path / "a.npy").write_bytes(content)
    np.save(tmp_path / "b.npy", np.array([[Bomb(str(trap))]]), allow_pickle=True)
    np.savez(tmp_path / "c.npz", x=np.array([[Bomb(str(trap))]]), allow_pickle=True)
    (tmp_path / "d.csv").write_bytes(content)
    for name in ("a.npy", "b.npy", "c.npz", "d.csv"):
        with pytest.raises(ValueError, match=name):
            tables.read(tmp_path / name)
    assert not trap.exists()


def test_archives_that_state_more_than_they_have(tmp_path, monkeypatch):
    """The directory of an archive is believed as far as deflate can go, and no further."""
    path = tmp_path / "x.npz"
    zeros = npy((1 << 17, 8), data=b"\0" * (1 << 23))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", zeros)
    assert tables.read(path).values.shape == (1 << 17, 8)  # so much is real
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # uncompressed size, in the directory
    assert struct.unpack_from("<I", content, at) == (len(zeros),)
    struct.pack_into("<I", content, at, 0x7FFFFFFF)
    path.write_bytes(content)
    monkeypatch.setattr(np, "empty", lambda *arguments: pytest.fail("an array was made"))
    with pytest.raises(ValueError, match=r"not a \.npz or \.npy file of numbers, or damaged"):
        tables.read(path)


@pytest.mark.parametrize("change", ["flip", "cut", "lzma"])
def test_damaged_archives(tmp_path, change):
    path = tmp_path / "x.npz"
    if change == "lzma":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
            file.writestr("x.npy", npy())
    else:
        np.savez(path, x=np.ones((100, 10)))
        content = bytearray(path.read_bytes())
        content[300] ^= 1
        path.write_bytes(content if change == "flip" else path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"x\.npz: not a \.npz or \.npy file of numbers, or damaged"):
        tables.read(path)


# -- CSV -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1,2\n3,4.5\n", None),
        ("a,b\n1,2\n3,4.5", ("a", "b")),
        ("a;b\r\n1;2\r\n3;4.5\r\n", ("a", "b")),
        ("a\tb\n1\t2\n3\t4.5\n", ("a", "b")),
        ("\n\n1,2\n\n3,4.5\n\n", None),
        (' a , "b"\n +1 , 2. \n"3",45e-1\n', ("a", "b")),
        ("\ufeffa,b\n1,2\n3,4.5\n", ("a", "b")),
        ('"first, of two",ü\n1,2\n3,4.5\n', ("first, of two", "ü")),
        (",b\n1,2\n3,4.5\n", ("", "b")),
        ("a#,b\n1,2\n3,4.5\n", ("a#", "b")),
    ],
)
def test_layouts_of_csv(tmp_path, text, columns):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    found = tables.read(path)
    same(found.values, np.array([[1, 2], [3, 4.5]]))
    assert found.columns == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,\n", "line 3, column 2 ('b'): expected a number, and the value is missing"),
        ("1,2\n ,4\n", "line 2, column 1: expected a number, and the value is missing"),
        ("1,2\n3,x\n", "line 2, column 2: expected a finite number, given 'x'"),
        ("1,2,setosa\n3,4,setosa\n", "line 1, column 3: expected a finite number, given 'setosa'"),
        ("a,b\n\n1,2\n\n3,NA\n", "line 5, column 2 ('b'): expected a finite number, given 'NA'"),
        ("1,2\n3,nan\n", "line 2, column 2: expected a finite number, given 'nan'"),
        ("1,2\n-inf,4\n", "line 2, column 1: expected a finite number, given '-inf'"),
        ("1,2\n1e999,4\n", "line 2, column 1: expected a finite number, given '1e999'"),
        ("1_000,2\n", "line 1, column 1: expected a finite number, given '1_000'"),
        ("1,2\n3,4,5\n", "line 2: expected 2 values, as line 1 has, given 3"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 values, as the header has, given 1"),
        ("a,b,c\n1,2\n", "line 2: expected 3 values, as the header has, given 2"),
        ("1,2,\n3,4,\n", "line 1, column 3: expected a number, and the value is missing"),
        ("1;2\n3,5;4\n", "line 2, column 1: expected a finite number, given '3,5'"),
        ("1,2\n3,4 # no comment\n", "line 2, column 2: expected a finite number, given '4 # no comment'"),
        ("a,b\n", "expected rows of numbers, given none"),
        ("", "expected rows of numbers, given an empty file"),
        ("\n \n", "expected rows of numbers, given an empty file"),
        ("1,2\n3,4\0\n", "line 2, column 2: expected a finite number, given '4\\x00'"),
        ("\0\0\0\0", "expected .npy, .npz, CSV, IDX or a folder of images, given something else"),
        (b"\xff\xfe1\0", "expected .npy, .npz, CSV, IDX or a folder of images, given something else"),
        (b"1,2\n" * 9000 + b"3,\xff\n", "expected text in UTF-8, given other bytes"),
    ],
)
def test_csv_that_is_refused(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"x\.csv") as caught:
        tables.read(path)
    assert str(caught.value) == f"{path}: {message}"


def test_the_last_of_many_lines_is_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + "1,2\n" * 50000 + "1,oops\n")
    with pytest.raises(ValueError, match=r"line 50002, column 2 \('b'\): .* 'oops'"):
        tables.read(path)


# -- IDX -----------------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("name", "zipped"), [("x-idx3-ubyte", False), ("x-idx3-ubyte.gz", True), ("x", True)]
)
def test_idx(tmp_path, name, zipped):
    levels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = idx(levels)
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    same(tables.read(tmp_path / name).values, levels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros(5, np.uint8)), r"expected shape .*, got \(5,\)"),
        (idx(np.zeros((5, 2), np.uint8))[:-1], "damaged, or not the IDX file"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "it states 4294967295x4294967295 values"),
    ],
)
def test_idx_that_is_refused(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tables.read(tmp_path / "x")


# -- folders of images ---------------------------------------------------------------------------------


def test_folder_of_images(tmp_path, image):
    levels = np.random.default_rng(1).integers(0, 256, (4, 5, 6), np.uint8)
    for name, grey in zip(("d.png", "a.bmp", "b.PGM", "c.tif"), levels, strict=True):
        image.fromarray(grey).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    same(tables.read(tmp_path).values, levels[[1, 2, 3, 0]])  # in the order of their names


def test_colours_become_grey(tmp_path, image):
    colours = np.random.default_rng(1).integers(0, 256, (5, 6, 3), np.uint8)
    image.fromarray(colours).save(tmp_path / "a.png")
    image.fromarray(colours[..., 0]).convert("1").save(tmp_path / "b.png")
    found = tables.read(tmp_path).values
    expected = colours @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(found[0] - expected).max() <= 1
    assert set(np.unique(found[1])) == {0, 255}


def test_images_of_two_sizes(tmp_path, image):
    for name, shape in (("a.png", (5, 6)), ("b.png", (5, 6)), ("c.png", (6, 5))):
        image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name)
    with pytest.raises(ValueError, match="expected an image") as caught:
        tables.read(tmp_path)
    a, c = tmp_path / "a.png", tmp_path / "c.png"
    assert str(caught.value) == f"{c}: expected an image of 6x5, as {a} is, given 5x6"


def png(width, height):
    """A PNG file that states a size and has a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"no image", png(40000, 40000), png(10000, 10000), png(50, 50)])
@pytest.mark.usefixtures("image")
def test_images_that_are_none(tmp_path, content):
    """Also one that states more than memory should be spent on, and one that ends too early."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: not an image, or damaged: ") as caught:
        tables.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_of_16_bits(tmp_path, image):
    image.fromarray(np.full((5, 6), 4000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected an image of 8 bits, given mode I;16"):
        tables.read(tmp_path)


@pytest.mark.usefixtures("image")
def test_folder_without_images(tmp_path):
    with pytest.raises(ValueError, match=r"expected images \(bmp, .*\), found none"):
        tables.read(tmp_path)


def test_folder_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'images need Pillow: pip install "fastae\[images\]"'):
        tables.read(tmp_path)


# -- rows ----------------------------------------------------------------------------------------------


def test_grey_levels_are_scaled_and_floats_are_not(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    same(tables.as_rows(levels, dtype, "x"), datasets.rows(levels.reshape(4, 64), dtype))
    values = np.linspace(-5, 300, 24, dtype=dtype).reshape(2, 3, 4)
    rows = tables.as_rows(values, dtype, "x")
    same(rows, values.reshape(2, 12))
    assert np.shares_memory(rows, values)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_that_are_not_finite(value):
    values = ROWS.copy()
    values[4, 1] = value
    with pytest.raises(
        ValueError, match=r"x\.npy: expected finite values, given (nan|inf) in row 4, column 1"
    ):
        tables.as_rows(values, "float32", "x.npy")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tables.read(tmp_path / "x.csv")


def test_module_does_not_load_what_is_heavy():
    code = "import sys, fastae.tables; print({'PIL', 'numba', 'matplotlib', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- damage of any kind --------------------------------------------------------------------------------


def saved_bytes(save, **content):
    stream = io.BytesIO()
    save(stream, **content)
    return stream.getvalue()


LEVELS = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
INTACT = {
    "x.npy": saved_bytes(np.save, arr=ROWS),
    "x.npz": saved_bytes(np.savez, other=ROWS, train=LEVELS),
    "z.npz": saved_bytes(np.savez_compressed, x=ROWS),
    "x.csv": b'a,b\n1,2\n3,4.5\n-1e3,"7"\n',
    "x-idx3-ubyte": idx(LEVELS),
    "x.gz": gzip.compress(idx(LEVELS)),
}


@pytest.mark.parametrize("name", INTACT)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_happened_to_a_file_is_a_table_or_one_line(tmp_path_factory, name, data):
    content = bytearray(INTACT[name])
    for _ in range(data.draw(st.integers(0, 3), label="changes")):
        at = data.draw(st.integers(0, len(content)), label="at")
        gone = data.draw(st.integers(0, 8), label="gone")
        content[at : at + gone] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"999999", b"nan,"])
        )
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(content)
    said = str(path)
    try:
        size = tables.read(path).values.size
    except ValueError as error:
        said, size = str(error), 0
    assert said.startswith(str(path))
    assert "\n" not in said
    assert size <= 1032 * len(content)
