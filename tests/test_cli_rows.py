"""``fastae encode``, ``decode``, ``reconstruct``, ``detect`` and ``bench``: results, files, refusals."""

import pickle
import re
import struct
import sys

import numpy as np
import pytest

import fastae
from fastae import apply, backend, bench, cli, datasets, models, tables

pytestmark = pytest.mark.usefixtures("_files")


@pytest.fixture
def _files(require):
    require("safetensors")


@pytest.fixture
def _sklearn(require):
    require("sklearn")


needs_sklearn = pytest.mark.usefixtures("_sklearn")


@pytest.fixture
def run(capsys):
    """Run the command; gives its exit status, standard output and standard error."""

    def run(*arguments):
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refuse(run):
    """Run a command that is refused; gives the one line it says, and the status."""

    def refuse(*arguments):
        status, out, err = run(*arguments)
        assert status != 0
        assert out == ""
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return status, err[:-1]

    return refuse


def small(features=6, loss="mse", dtype="float32", seed=0):
    output = "sigmoid" if loss == "bce" else "linear"
    net = fastae.Network(
        [fastae.Dense(5, "tanh"), fastae.Dense(2)], [fastae.Dense(features, output)], features
    )
    return fastae.Trainer(net, loss, batch_size=16, dtype=dtype, seed=seed)


ROWS = np.random.default_rng(0).uniform(size=(70, 6))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "small.safetensors"
    small().save(path)
    return path


@pytest.fixture
def rows(tmp_path):
    """A CSV file with names."""
    path = tmp_path / "rows.csv"
    tables.write(path, {"x": ROWS}, {"x": tuple("abcdef")})
    return path


def saved(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as found:
            (name,) = found.files
            return found[name]
    return np.load(path, allow_pickle=False) if path.suffix == ".npy" else tables.read(path).values


# -- encode, decode, reconstruct -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", tables.OUTPUT_SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_those_of_the_trainer(run, tmp_path, rows, backend, dtype, suffix):
    trainer = small(dtype=dtype)
    trainer.backend = backend
    path = tmp_path / "model.safetensors"
    trainer.save(path)
    data = ROWS.astype(dtype)
    codes, again = tmp_path / f"codes{suffix}", tmp_path / f"again{suffix}"
    options = ("--backend", backend, "--quiet")  # numba may have to compile first, which takes a bar
    for name, source, out in (
        ("encode", rows, codes),
        ("decode", codes, tmp_path / f"output{suffix}"),
        ("reconstruct", rows, again),
    ):
        status, said, err = run(name, path, "--data", source, "--out", out, *options)
        assert (status, err) == (0, "")
        assert said == f"{out}: {name}, 70 rows of {2 if name == 'encode' else 6} values, {dtype}\n"
    kind = data.dtype  # a CSV is read as float64, and has all digits
    assert saved(codes).astype(kind).tobytes() == trainer.encode(data).tobytes()
    assert saved(again).astype(kind).tobytes() == trainer.reconstruct(data).tobytes()
    assert saved(tmp_path / f"output{suffix}").astype(kind).tobytes() == trainer.reconstruct(data).tobytes()


def test_many_rows_go_in_parts(run, tmp_path, model, rows, monkeypatch):
    assert run("encode", model, "--data", rows, "--out", tmp_path / "whole.npy")[0] == 0
    monkeypatch.setattr(apply, "_AT_ONCE", 200)  # two batches of 16 rows of 6 values
    seen = []
    encode = fastae.Trainer.encode
    monkeypatch.setattr(fastae.Trainer, "encode", lambda self, X: (seen.append(len(X)), encode(self, X))[1])
    assert run("encode", model, "--data", rows, "--out", tmp_path / "parts.npy")[0] == 0
    assert seen == [32, 32, 6]
    assert saved(tmp_path / "whole.npy").tobytes() == saved(tmp_path / "parts.npy").tobytes()


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_of_long_work(run, require, tmp_path, model, rows, monkeypatch, tqdm):
    if tqdm:
        require("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    progress = apply.progress
    monkeypatch.setattr(apply, "_AT_ONCE", 200)
    monkeypatch.setattr(apply, "progress", lambda *a, delay, **b: progress(*a, delay=0.0, **b))
    arguments = ("encode", model, "--data", rows, "--out", tmp_path / "codes.npy", "--force")
    status, out, err = run(*arguments)
    assert status == 0
    assert "encode" in err
    assert "0/70" in err
    assert out.count("\n") == 1
    assert run(*arguments, "--quiet") == (0, out, "")


def test_names_of_columns_are_kept(run, tmp_path, model, rows):
    assert run("reconstruct", model, "--data", rows, "--out", tmp_path / "again.csv")[0] == 0
    assert tables.read(tmp_path / "again.csv").columns == tuple("abcdef")
    assert run("encode", model, "--data", rows, "--out", tmp_path / "codes.csv")[0] == 0
    assert tables.read(tmp_path / "codes.csv").columns == ("code0", "code1")


@pytest.mark.parametrize("name", ["quark_mlp", "strided_conv"])
def test_images(run, tmp_path, name):
    """Images come back as images; codes of several dimensions are rows."""
    trainer = fastae.Trainer.from_recipe(models.MODELS[name](), seed=0)
    trainer.save(tmp_path / "m.safetensors")
    levels = datasets.digits_canvas(28)[:40]
    np.savez(tmp_path / "images.npz", images=levels, labels=np.zeros(40))
    X = datasets.rows(levels)
    data = ("--data", tmp_path / "images.npz")
    assert run("reconstruct", tmp_path / "m.safetensors", *data, "--out", tmp_path / "again.npz")[0] == 0
    again = saved(tmp_path / "again.npz")
    assert again.shape == (40, 28, 28)
    assert again.tobytes() == trainer.reconstruct(X).tobytes()
    assert run("encode", tmp_path / "m.safetensors", *data, "--out", tmp_path / "codes.npy")[0] == 0
    codes = saved(tmp_path / "codes.npy")
    assert codes.shape == (40, np.prod(trainer.net.code_shape))
    data = ("--data", tmp_path / "codes.npy")
    assert run("decode", tmp_path / "m.safetensors", *data, "--out", tmp_path / "output.npy")[0] == 0
    decoded = saved(tmp_path / "output.npy")
    assert decoded.shape == ((40, 28, 28) if name == "strided_conv" else (40, 784))
    assert decoded.tobytes() == again.tobytes()


def test_logits_become_probabilities(run, tmp_path, rows):
    trainer = small(loss="bce_with_logits", dtype="float64")
    trainer.save(tmp_path / "m.safetensors")
    arguments = ("reconstruct", tmp_path / "m.safetensors", "--data", rows, "--out", tmp_path / "again.npy")
    assert run(*arguments)[0] == 0
    expected = 1 / (1 + np.exp(-trainer.reconstruct(ROWS)))
    np.testing.assert_allclose(saved(tmp_path / "again.npy"), expected, rtol=1e-14)


@needs_sklearn
def test_file_of_an_estimator(run, tmp_path, rows):
    ae = fastae.Autoencoder(3, (8,), max_iter=2, random_state=0).fit(ROWS)
    ae.save(tmp_path / "ae.safetensors")
    arguments = ("encode", tmp_path / "ae.safetensors", "--data", rows, "--out", tmp_path / "codes.npy")
    assert run(*arguments)[0] == 0
    assert saved(tmp_path / "codes.npy").tobytes() == ae.transform(ROWS).tobytes()


def test_digits_from_training_to_reconstruction(run, tmp_path):
    """What a reader of the help would type: better than the mean image by far, on images held back."""
    out = tmp_path / "run"
    options = ("--hidden", 64, "--latent", 16, "--epochs", 30, "--out", out, "--quiet")
    status, _, err = run("train", "mlp", "--data", "digits", *options)
    assert (status, err) == (0, "")
    model = out / "mlp.safetensors"
    assert run("reconstruct", model, "--data", "digits", "--out", out / "again.npy")[0] == 0
    X = datasets.digits_canvas(28)[1500:] / 255.0
    again = saved(out / "again.npy")[1500:]
    error, alone = ((again - X) ** 2).mean(), ((X - X.mean(axis=0)) ** 2).mean()
    assert error < 0.35 * alone
    assert error == pytest.approx(fastae.load(model).history.val_loss[-1], rel=1e-5)


def test_folder_of_images(run, require, tmp_path):
    image = require("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    levels = datasets.digits_canvas(10)[:30]
    for i, grey in enumerate(levels):
        image.fromarray(grey).save(folder / f"{i:02}.png")
    arguments = ("--data", folder, "--epochs", 1, "--out", tmp_path / "run", "--quiet")
    assert run("train", "mlp", *arguments)[0] == 0
    model = tmp_path / "run" / "mlp.safetensors"
    assert run("encode", model, "--data", folder, "--out", tmp_path / "codes.npy")[0] == 0
    expected = fastae.load(model).encode(datasets.rows(levels))
    assert saved(tmp_path / "codes.npy").tobytes() == expected.tobytes()


@pytest.mark.parametrize(("part", "count"), [("mnist", 60000), ("mnist:train", 60000), ("mnist:test", 10000)])
def test_parts_of_mnist(part, count, monkeypatch):
    monkeypatch.setattr(
        datasets,
        "mnist",
        lambda split: (np.zeros(({"train": 60000, "test": 10000}[split], 2, 2), "u1"), None),
    )
    assert len(apply.load_table(part).values) == count


@pytest.mark.parametrize(("features", "side"), [(64, 8), (225, 15), (784, 28), (50, 28), (4, 28), (None, 28)])
def test_canvas_of_the_digits(features, side):
    assert apply.load_table("digits", features).values.shape == (1797, side, side)


# -- what is refused -----------------------------------------------------------------------------------


def hostile(kind, good):
    header = b'{"__metadata__":{"fastae":"{}","sha256":"' + b"0" * 64 + b'"}}'
    return {
        "text": b"no model",
        "empty": b"",
        "truncated": good[:-5],
        "altered": good[:-5] + b"\1\2\3\4\5",
        "pickle": pickle.dumps([1, 2, 3]),
        "large header": struct.pack("<Q", 1 << 60) + good[8:],
        "of another program": struct.pack("<Q", 2) + b"{}",
        "no declaration": struct.pack("<Q", len(header)) + header,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "empty",
        "truncated",
        "altered",
        "pickle",
        "large header",
        "of another program",
        "no declaration",
    ],
)
@pytest.mark.parametrize("command", ["encode", "detect"])
def test_hostile_models(refuse, tmp_path, model, rows, command, kind):
    model.write_bytes(hostile(kind, model.read_bytes()))
    out = tmp_path / "out.npy"
    named = (model,) if command == "encode" else ("--contamination", 0.1, "--model", model)
    status, line = refuse(command, *named, "--data", rows, "--out", out)
    assert status == 1
    about = "MODEL" if command == "encode" else "--model"
    assert line.startswith(f"fastae: error: {about} {model} ")
    assert not out.exists()


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "detect"])
def test_wrong_number_of_values(refuse, tmp_path, model, command):
    np.save(tmp_path / "wrong.npy", np.ones((4, 7)))
    out = tmp_path / "out.npy"
    named = ("--contamination", 0.1, "--model", model) if command == "detect" else (model,)
    status, line = refuse(command, *named, "--data", tmp_path / "wrong.npy", "--out", out)
    what, takes = ("codes", 2) if command == "decode" else ("values", 6)
    assert status == 1
    assert line == f"fastae: error: --data {tmp_path / 'wrong.npy'}: 7 {what} a row; {model} takes {takes}"
    assert not out.exists()


@pytest.mark.parametrize("command", ["encode", "train", "detect"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,red\n", "line 3, column 2 ('b'): expected a finite number, given 'red'"),
        ("1,2\n,4\n", "line 2, column 1: expected a number, and the value is missing"),
        (None, "no such file"),
    ],
)
def test_bad_csv(refuse, require, tmp_path, model, command, text, message):
    if command == "detect":
        require("sklearn")
    path, out = tmp_path / "bad.csv", tmp_path / "out.npy"
    if text is not None:
        path.write_text(text)
    named = {"encode": (model,), "train": ("mlp",), "detect": ()}[command]
    status, line = refuse(command, *named, "--data", path, "--out", out)
    assert status == 1
    assert line.startswith(f"fastae: error: --data {path}: {message}")
    assert not out.exists()


def test_images_of_two_sizes(refuse, require, tmp_path):
    image = require("PIL.Image")
    for name, shape in (("a.png", (5, 6)), ("b.png", (6, 5))):
        image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name)
    status, line = refuse("train", "mlp", "--data", tmp_path)
    assert status == 1
    assert f"{tmp_path / 'b.png'}: expected an image of 6x5, as {tmp_path / 'a.png'} is, given 5x6" in line


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("encode", "MODEL", "--data", "ROWS", "--out", "x.npy", "--backend", "quick"), 1, "given 'quick'"),
        (
            ("encode", "MODEL", "--data", "ROWS", "--out", "x.npy", "--backend", "numpy", "--threads", 2),
            1,
            "--threads 2: the backend numpy has no threads",
        ),
        (("encode", "MODEL", "--data", "ROWS", "--out", "x.txt"), 1, "expected a name that ends in .npy"),
        (("encode", "MODEL", "--data", "ROWS", "--out", "none/x.npy"), 1, "there is no folder"),
        (
            ("encode", "MODEL", "--data", "ROWS", "--out", "there.npy"),
            1,
            "there.npy exists; give another --out",
        ),
        (("encode", "MODEL", "--out", "x.npy"), 2, "required: --data"),
        (
            ("encode", "none.safetensors", "--data", "ROWS", "--out", "x.npy"),
            1,
            "none.safetensors: no such file",
        ),
        (("encode", "MODEL", "--data", "nan.npy", "--out", "x.npy"), 1, "given nan in row 1, column 3"),
        (
            ("encode", "MODEL", "--data", "int.npy", "--out", "x.npy"),
            1,
            "expected uint8 or floats, got dtype int",
        ),
        (
            ("decode", "MODEL", "--data", "levels.npy", "--out", "x.npy"),
            1,
            "codes, which are floats, got uint8",
        ),
        (("detect", "--data", "ROWS", "--out", "there.npy"), 1, "there.npy exists; give another --out"),
        (("detect", "--data", "ROWS", "--out", "x.csv", "--save", "there.npy"), 1, "give another --save"),
        (
            ("detect", "--data", "ROWS", "--out", "x.csv", "--save", "./x.csv"),
            1,
            "--save: expected another file",
        ),
        *(
            (
                ("detect", "--data", "ROWS", "--out", "x.csv", "--contamination", share),
                2,
                f"argument --contamination: expected a number in (0, 0.5], got '{share}'",
            )
            for share in ("0", "0.51", "-0.1", "nan", "some")
        ),
        (
            ("detect", "--data", "ROWS", "--out", "x.csv", "--latent", 0),
            2,
            "argument --latent: expected a whole",
        ),
        (
            ("train", "mlp", "--data", "ROWS", "--latent", 0),
            2,
            "argument --latent: expected a whole number >= 1",
        ),
        (("train", "quark_mlp", "--data", "ROWS"), 1, "quark_mlp takes 784 values a row; "),
        (
            ("detect", "--data", "ROWS", "--out", "x.csv", "--model", "MODEL"),
            1,
            "--contamination: expected, as MODEL is no detector",
        ),
        (
            ("detect", "--data", "ROWS", "--out", "x.csv", "--model", "MODEL", "--latent", 3),
            1,
            "--latent: expected without --model",
        ),
        (
            ("detect", "--data", "ROWS", "--out", "x.csv", "--save", "d.safetensors", "--standardize"),
            1,
            "--save: expected without --standardize",
        ),
        (("bench", "quark_mpl"), 1, "MODEL: expected one of autoencnet, quark_mlp"),
        (("bench", "batchnorm_mlp", "--batch-size", 1, "--quiet"), 1, "--batch-size 1: expected 2 or more"),
        (("bench", "--seconds", "0"), 2, "argument --seconds: expected a number > 0, got '0'"),
    ],
)
def test_one_line_for_what_is_wrong(refuse, tmp_path, monkeypatch, model, rows, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    np.save("there.npy", ROWS)
    broken = ROWS.copy()
    broken[1, 3] = np.nan
    np.save("nan.npy", broken)
    np.save("int.npy", np.ones((4, 6), int))
    np.save("levels.npy", np.ones((4, 2), np.uint8))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = [{"MODEL": model, "ROWS": rows}.get(a, a) for a in arguments]
    found, line = refuse(*given)
    assert message.replace("MODEL is", f"{model} is") in line
    assert found == status
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_grey_levels_without_their_mean(refuse, run, tmp_path):
    """AutoEncNet takes images less a mean that is not in its file: what would be wrong is refused."""
    trainer = fastae.Trainer.from_recipe(models.autoencnet(), seed=0)
    trainer.save(tmp_path / "m.safetensors")
    named = ("encode", tmp_path / "m.safetensors", "--out", tmp_path / "codes.npy", "--data")
    status, line = refuse(*named, "digits")
    assert status == 1
    assert "takes images less the mean of those it was trained on" in line
    X, _ = datasets.autoencnet_data(datasets.digits_canvas(15))
    np.save(tmp_path / "x.npy", X)
    assert run(*named, tmp_path / "x.npy")[0] == 0
    assert saved(tmp_path / "codes.npy").tobytes() == trainer.encode(X).tobytes()


def test_network_whose_output_cannot_be_compared(refuse, tmp_path, rows):
    net = fastae.Network([fastae.Dense(2)], [fastae.Dense(4)], 6)
    fastae.Trainer(net).save(tmp_path / "m.safetensors")
    named = ("--model", tmp_path / "m.safetensors", "--contamination", 0.1)
    status, line = refuse("detect", *named, "--data", rows, "--out", tmp_path / "x.csv")
    assert status == 1
    assert "expected outputs that can be compared with rows, given 4 for 6 values" in line


def test_memory_that_there_is_not(refuse, tmp_path, model, rows, monkeypatch):
    def none(self, X):
        raise MemoryError("Unable to allocate 1. EiB")

    monkeypatch.setattr(fastae.Trainer, "encode", none)
    status, line = refuse("encode", model, "--data", rows, "--out", tmp_path / "x.npy")
    assert (status, line) == (1, "fastae: error: not enough memory: Unable to allocate 1. EiB")


# -- detect --------------------------------------------------------------------------------------------


def planted(scale=1.0):
    """300 rows on a plane of 2 dimensions in 6, and 9 beside it, the last ones."""
    rng = np.random.default_rng(4)
    plane = rng.normal(size=(309, 2)) @ rng.normal(size=(2, 6)) + 0.02 * rng.normal(size=(309, 6))
    plane[300:] += 1.5 * rng.normal(size=(9, 6))
    plane[:, 0] *= scale
    return plane


FAST = ("--hidden", "16", "--epochs", 60, "--quiet")


@needs_sklearn
@pytest.mark.parametrize("suffix", tables.OUTPUT_SUFFIXES)
def test_outliers_are_found(run, tmp_path, suffix):
    tables.write(tmp_path / "rows.csv", {"x": planted()})
    out = tmp_path / f"flags{suffix}"
    options = ("--out", out, "--contamination", 9 / 309, "--dtype", "float64", *FAST)
    status, said, err = run("detect", "--data", tmp_path / "rows.csv", *options)
    assert (status, err) == (0, "")
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as found:
            score, outlier = found["score"], found["outlier"]
            assert outlier.dtype == bool
    else:
        score, outlier = saved(out).T
    assert outlier.sum() == 9
    assert outlier[300:].sum() >= 8
    options = {"max_iter": 60, "batch_size": 32, "tol": 0.0, "random_state": 0}
    detector = fastae.AutoencoderOutlierDetector(9 / 309, 2, (16,), **options).fit(planted())
    np.testing.assert_array_equal(outlier == 1, detector.predict(planted()) == -1)
    np.testing.assert_allclose(score, -detector.score_samples(planted()), rtol=1e-12)
    threshold = float(re.search(r"9 of 309 rows are outliers, with a score above (\S+)$", said)[1])
    assert ((score > threshold) == (outlier == 1)).all()


@needs_sklearn
def test_saved_detector_flags_other_rows(run, tmp_path):
    X = planted()
    np.save(tmp_path / "normal.npy", X[:300])
    np.save(tmp_path / "new.npy", X)
    model = tmp_path / "d.safetensors"
    options = ("--contamination", 0.01, "--save", model, *FAST)
    status, said, _ = run("detect", "--data", tmp_path / "normal.npy", "--out", tmp_path / "a.npy", *options)
    assert status == 0
    assert said.splitlines()[1] == f"{model}: the detector"
    assert (
        run("detect", "--data", tmp_path / "new.npy", "--model", model, "--out", tmp_path / "b.npy")[0] == 0
    )
    flags = saved(tmp_path / "b.npy")
    np.testing.assert_array_equal(flags[:288], saved(tmp_path / "a.npy")[:288])  # whole batches
    assert flags[:300, 1].sum() == 3
    assert flags[300:, 1].sum() >= 8
    detector = fastae.load(model)
    np.testing.assert_array_equal(flags[:, 1] == 1, detector.predict(X.astype("float32")) == -1)
    status, _, err = run(
        *("detect", "--data", tmp_path / "new.npy", "--model", model, "--out", tmp_path / "c.npy"),
        *("--contamination", 0.2),
    )
    assert status == 1
    assert f"--contamination: the detector in {model} has its threshold" in err


@needs_sklearn
@pytest.mark.parametrize("command", ["reconstruct", "detect"])
def test_threads_of_a_file_are_not_those_of_another_backend(run, tmp_path, rows, backend, command):
    path = tmp_path / "d.safetensors"
    options = {"max_iter": 1, "random_state": 0, "backend": "cython", "n_threads": 2}
    fastae.AutoencoderOutlierDetector(0.1, 2, (4,), **options).fit(ROWS).save(path)
    named = ("reconstruct", path) if command == "reconstruct" else ("detect", "--model", path)
    status, _, err = run(*named, "--data", rows, "--out", tmp_path / "x.npy", "--backend", backend, "--quiet")
    assert (status, err) == (0, "")


@needs_sklearn
def test_any_model_detects(run, tmp_path, model, rows):
    """The share that is asked for is flagged: the rows with the highest errors."""
    options = ("--model", model, "--contamination", 0.1, "--out", tmp_path / "flags.npy")
    assert run("detect", "--data", rows, *options)[0] == 0
    score, outlier = saved(tmp_path / "flags.npy").T
    expected = ((small().reconstruct(ROWS.astype("float32")) - ROWS) ** 2).mean(axis=1)
    np.testing.assert_allclose(score, expected, rtol=1e-4)
    assert outlier.sum() == 7
    assert score[outlier == 1].min() > score[outlier == 0].max()


@needs_sklearn
def test_columns_of_other_sizes(run, tmp_path):
    """One column in other units hides the outliers of the others, unless all are brought to one scale."""
    np.save(tmp_path / "rows.npy", planted(scale=300.0))
    found = {}
    for name, options in (("raw", ()), ("scaled", ("--standardize",))):
        out = tmp_path / f"{name}.npy"
        arguments = ("--data", tmp_path / "rows.npy", "--out", out, "--contamination", 9 / 309)
        assert run("detect", *arguments, *FAST, *options)[0] == 0
        found[name] = saved(out)[300:, 1].sum()
    assert found["scaled"] >= 8
    assert found["raw"] <= 5


# -- bench ---------------------------------------------------------------------------------------------

QUICK = ("--batch-size", 4, "--seconds", 0.02, "--quiet")


def test_bench(run):
    status, out, err = run("bench", "autoencnet", *QUICK)
    assert (status, err) == (0, "")
    assert out.startswith("autoencnet: SSE, SGD(learning_rate=0.0001), batches of 4, float64, 1 thread")
    assert "agree with those of numpy in float64" in out
    lines = {line.split()[0]: re.split(r" {2,}", line) for line in out.splitlines() if line}
    assert [name for name in lines if name in backend.NAMES] == list(backend.NAMES)
    for name, reason in fastae.available_backends().items():
        if reason is not None:
            assert lines[name][1].startswith("not available: ")
            continue
        _, rows, step, fastest, rate, ratio = lines[name]
        assert rows == "4"
        assert re.fullmatch(r"[\d.,]+ (s|ms|µs)", step)
        assert re.fullmatch(r"[\d.,]+ (s|ms|µs)", fastest)
        assert float(rate) > 0
        assert float(ratio[:-1]) > 0
        assert name != "numpy" or ratio == "1x"


def test_bench_of_a_batch_that_is_too_much_for_scalar(run):
    status, out, _ = run("bench", "quark_mlp", "--batch-size", 64, *QUICK[2:])
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("scalar")).split()
    assert (line[1], line[-1]) == ("32", "-")
    assert "A batch of 64 takes scalar too long" in out


def test_bench_does_not_time_what_is_wrong(refuse, monkeypatch):
    monkeypatch.setattr(bench, "TOLERANCE", {"float32": -1.0, "float64": -1.0})
    status, line = refuse("bench", *QUICK)
    assert status == 1
    assert re.fullmatch(
        "fastae: error: losses of scalar differ from those of numpy in float64 by .* > -1e[+]00: "
        "its times would mean nothing",
        line,
    )


def test_bench_names_a_missing_backend(run, monkeypatch):
    load = backend.load

    def without_numba(name):
        if name == "numba":
            raise ImportError("backend 'numba' needs numba: pip install \"fastae[numba]\"")
        return load(name)

    monkeypatch.setattr(backend, "load", without_numba)
    status, out, _ = run("bench", *QUICK)
    assert status == 0
    assert "numba     not available: backend 'numba' needs numba: pip install" in out
