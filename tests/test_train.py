"""``fastae train``: the published experiments by name, their figures, files and errors."""

import errno
import io
import math
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import backend, cli, datasets, models, tables, train
from fastae.history import History

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(capsys):
    """Run ``fastae train`` on the numpy backend; gives exit status, standard output and standard error."""

    def run(*arguments):
        named = () if "--backend" in arguments else ("--backend", "numpy")
        try:
            status = cli.main(["train", *map(str, arguments), *named])
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def needs_files():
    pytest.importorskip("safetensors")
    pytest.importorskip("matplotlib")


def images(count, side=28, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), np.uint8)


@pytest.fixture
def file(tmp_path):
    """80 images of 28x28 to train on and 20 to validate on."""
    path = tmp_path / "images.npz"
    np.savez(path, train=images(80), test=images(20, seed=1))
    return path


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """80 images of 6x6 and 20; and no pictures, which take longer than the training."""
    monkeypatch.setattr(train, "_draw", lambda *arguments: [])
    path = tmp_path / "tiles.npz"
    np.savez(path, train=images(80, 6), test=images(20, 6, seed=1))
    return path


@pytest.fixture
def mnist(monkeypatch):
    """A small MNIST."""

    def load(split="train"):
        count = {"train": 96, "test": 32}[split]
        return images(count, seed=count), np.zeros(count, np.uint8)

    monkeypatch.setattr(datasets, "mnist", load)


def cells(out):
    """Cells of the table of figures by label."""
    lines = (re.split(r" {2,}", line) for line in out.splitlines())
    return {line[0]: line[1:] for line in lines if len(line) == 4}


# -- what is trained -----------------------------------------------------------------------------------


def test_published_experiment(run, mnist):
    status, out, err = run("quark_mlp")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "quark_mlp on MNIST: 96 images of 28x28, 32 for validation."
    assert lines[1] == (
        "MSE, Adam(learning_rate=0.001), batches of 32, 10 epochs, float32, numpy, 1 thread, seed 0."
    )
    assert models.quark_mlp().summary() in out
    table = cells(out)
    assert table[""] == ["here", "published", "reference"]
    assert table["parameters"] == ["16584", "16584", "-"]
    assert table["validation loss, epoch 1"][1:] == ["0.0675", "0.0621"]
    assert table["validation loss, epoch 10"][1:] == ["0.0566", "0.0460"]
    assert 0 < float(table["validation loss, epoch 10"][0]) < 1
    assert table["minutes in all"][1:] == ["23.0", "-"]
    assert float(table["seconds per epoch"][0]) > 0
    assert "are those of" not in out
    assert len(re.findall(r"^epoch \d+: loss .*, val_loss .* s$", err, re.MULTILINE)) == 10
    status, quiet, err = run("quark_mlp", "--quiet")
    assert (status, err) == (0, "")
    assert untimed(quiet) == untimed(out)


def test_the_published_rows_are_taken(run, monkeypatch):
    """Of generic_conv the first 1000 training images, and the next 1000 to validate on."""
    seen = []
    whole = images(2100, seed=5)
    monkeypatch.setattr(datasets, "mnist", lambda split: (whole if split == "train" else whole[:3], None))
    fit = train.Trainer.fit

    def once(self, X, *, steps_per_epoch, validation_data, **more):
        seen.append((X, validation_data))
        return fit(self, X, steps_per_epoch=1, validation_data=X[:32], **more)

    monkeypatch.setattr(train.Trainer, "fit", once)
    status, out, err = run("generic_conv", "--epochs", 1, "--quiet")
    assert (status, err) == (0, "")
    first = "generic_conv on the first 2000 images of MNIST: 1000 images of 28x28, 1000 for validation."
    assert out.splitlines()[0] == first
    ((data, held),) = seen
    rows = datasets.rows(whole)
    np.testing.assert_array_equal(data, rows[:1000])
    np.testing.assert_array_equal(held, rows[1000:2000])


def test_a_source_that_does_not_come_back_is_named(run, tmp_path):
    np.save(tmp_path / "odd.npy", images(20, 27))
    status, _, err = run("generic_conv", "--data", tmp_path / "odd.npy")
    assert status != 0
    assert "got 27, near which 20, 24, 28, 32 would" in err


def untimed(out):
    """Words of the output but for the times, whose width moves the columns too."""
    out = re.sub(r"(seconds per epoch|minutes in all) +[\d.e-]+", r"\1", out)
    return re.sub(r"-{2,}", "", out).split()


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_trains(run, file, name):
    status, out, err = run(name, "--data", file, "--epochs", 1, "--quiet")
    assert (status, err) == (0, "")
    assert f"{name} on {file}: 80 images of 28x28, 20 for validation." in out
    assert models.MODELS[name]().recipe.loss.upper() in out
    table = cells(out)
    for label, stated in (("training loss, epoch 1", "-"), ("validation loss, epoch 1", None)):
        assert math.isfinite(float(table[label][0].replace(",", "")))
        assert stated is None or table[label][1] == stated
    assert "The published and the reference figures are those of " in out


@pytest.mark.usefixtures("needs_files")
def test_layers_of_ones_own(run, tmp_path):
    """The widths, the loss and the rate that are asked for, on a CSV file; better than its mean after all."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6))
    path = tmp_path / "rows.csv"
    tables.write(path, {"x": values})
    options = ("--hidden", "16,8", "--latent", 2, "--epochs", 60, "--learning-rate", 0.01, "--out", tmp_path)
    status, out, err = run("mlp", "--data", path, *options, "--quiet")
    assert (status, err) == (0, "")
    assert out.startswith(
        f"mlp on {path}: 360 rows, 40 for validation.\nMSE, Adam(learning_rate=0.01), batches"
    )
    assert "published" not in out
    trainer = fastae.load(tmp_path / "mlp.safetensors", backend="numpy")
    widths = [layer.units for layer in (*trainer.net.encoder, *trainer.net.decoder)]
    assert widths == [16, 8, 2, 8, 16, 6]
    assert trainer.history.val_loss[-1] < 0.1 * values[360:].var()
    figures = dict(re.findall(r"^(\w.*?) {3,}(\S+)$", out, re.MULTILINE))
    assert figures["parameters"] == str(trainer.net.n_parameters)
    assert float(figures["validation loss, epoch 60"]) == pytest.approx(
        trainer.history.val_loss[-1], rel=0.01
    )


@pytest.mark.parametrize(
    ("width", "named", "shape"), [(16, False, (4, 4)), (16, True, None), (9, False, None), (12, False, None)]
)
def test_which_columns_are_pixels(tmp_path, width, named, shape):
    """A square of columns is an image, unless they have names of their own or are too few."""
    path = tmp_path / "rows.csv"
    tables.write(path, {"x": np.ones((20, width))})
    if not named:
        path.write_text(path.read_text().partition("\n")[2])
    assert train.load_data("mlp", str(path), "float32").image_shape == shape


def test_loss_of_ones_own(run, tmp_path):
    status, out, _ = run("mlp", "--data", "digits", "--hidden", "none", "--loss", "bce", "--epochs", 1)
    assert status == 0
    assert out.startswith("mlp on the bundled UCI digits: 1500 images of 28x28, 297 for validation.\nBCE, ")
    assert str(2 * 784 * 16 + 784 + 16) in out  # parameters of one layer each way


@pytest.mark.parametrize(("name", "side", "count"), [("autoencnet", 15, 1000), ("quark_mlp", 28, 1500)])
def test_bundled_digits(run, name, side, count):
    status, out, err = run(name, "--data", "digits", "--epochs", 2, "--quiet")
    assert (status, err) == (0, "")
    held = 1797 - count
    head = f"{name} on the bundled UCI digits: {count} images of {side}x{side}, {held} for validation."
    assert out.startswith(head)


def test_autoencnet_as_published(run):
    status, out, err = run("autoencnet", "--quiet")
    assert (status, err) == (0, "")
    assert "SSE, SGD(learning_rate=0.0001), batches of 20 drawn with replacement, 20 epochs, float64" in out
    table = cells(out)
    assert table["loss of the first batch"][1:] == ["110", "119"]
    assert table["input layer speedup"] == ["-", "476", "-"]
    last = float(table["loss of a batch, mean of epoch 20"][0])
    assert last < 0.8 * float(table["loss of the first batch"][0])


def test_fashion_mnist(run, mnist, monkeypatch):
    monkeypatch.setattr(datasets, "fashion_mnist", datasets.mnist)
    status, out, _ = run("quark_mlp", "--data", "fashion_mnist", "--epochs", 1)
    assert status == 0
    assert out.startswith("quark_mlp on Fashion-MNIST: 96 images")
    assert "The published and the reference figures are those of MNIST." in out


def test_arguments_take_the_place_of_the_recipe(run, tiles):
    options = ("--epochs", 2, "--dtype", "float64", "--batch-size", 7, "--seed", 5)
    status, out, _ = run("batchnorm_mlp", "--data", tiles, *options)
    assert status == 0
    assert "batches of 7, 2 epochs, float64, numpy, 1 thread, seed 5." in out
    assert cells(out)["validation loss, epoch 20"] == ["-", "-", "0.0049"]


@pytest.mark.parametrize("name", backend.NAMES[1:])
def test_backends(run, file, name):
    if reason := fastae.available_backends()[name]:
        pytest.skip(reason)
    status, out, err = run("deep_mlp", "--data", file, "--epochs", 1, "--backend", name)
    assert status == 0, err
    assert f"float32, {name}, 1 thread" in out


def test_rows_of_floats_are_taken_as_they_are(run, tmp_path):
    values = np.random.default_rng(0).normal(5, 1, (50, 11)).astype(np.float32)
    np.save(tmp_path / "rows.npy", values)
    status, out, _ = run("batchnorm_mlp", "--data", tmp_path / "rows.npy", "--epochs", 1)
    assert status == 0
    assert "45 rows, 5 for validation." in out
    loaded = train.load_data("batchnorm_mlp", str(tmp_path / "rows.npy"), "float32")
    np.testing.assert_array_equal(loaded.train, values[:45])
    np.testing.assert_array_equal(loaded.validation, values[45:])
    assert loaded.image_shape is None


def test_grey_levels_are_scaled(file, tmp_path):
    loaded = train.load_data("quark_mlp", str(file), "float64")
    np.testing.assert_array_equal(loaded.train, images(80).reshape(80, -1) / 255.0)
    own = train.load_data("autoencnet", str(file), "float64")
    np.testing.assert_allclose(own.train.mean(0), 0, atol=1e-14)
    np.testing.assert_allclose(own.grey(own.validation), images(20, seed=1).reshape(20, -1), atol=1e-9)


# -- what is written -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_files")
def test_files_of_a_run(run, file, tmp_path):
    folder = tmp_path / "new" / "run"
    status, out, err = run("deep_mlp", "--data", file, "--epochs", 2, "--out", folder)
    assert status == 0, err
    pictures = {"learning-curve.png", "reconstructions.png", "codes.png"}
    names = {"deep_mlp.safetensors", "history.csv", *pictures}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        assert name in out.splitlines()[-1]
        assert not name.endswith(".png") or (folder / name).read_bytes().startswith(PNG)
    trainer = fastae.load(folder / "deep_mlp.safetensors", backend="numpy")
    assert len(trainer.history.val_loss) == 2
    assert trainer.encode(datasets.rows(images(3))).shape == (3, 4)
    recorded = tables.read(folder / "history.csv")
    assert recorded.columns == ("epoch", "loss", "val_loss", "seconds")
    history = trainer.history
    expected = np.column_stack([[1, 2], history.loss, history.val_loss, history.seconds])
    np.testing.assert_array_equal(recorded.values, expected)


@pytest.mark.usefixtures("needs_files")
def test_rows_that_are_no_images_have_a_curve_only(run, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).uniform(size=(50, 11)))
    arguments = ("--data", tmp_path / "rows.npy", "--epochs", 1, "--out", tmp_path / "run")
    assert run("batchnorm_mlp", *arguments)[0] == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"batchnorm_mlp.safetensors", "history.csv", "learning-curve.png"}


@pytest.mark.usefixtures("needs_files")
def test_files_are_replaced_only_when_told(run, file, tmp_path):
    arguments = ("quark_mlp", "--data", file, "--epochs", 1, "--out", tmp_path)
    (tmp_path / "learning-curve.png").write_text("mine")
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"fastae: error: {tmp_path / 'learning-curve.png'} exists; give another --out")
    assert (tmp_path / "learning-curve.png").read_text() == "mine"
    assert run(*arguments, "--force")[0] == 0
    assert (tmp_path / "learning-curve.png").read_bytes().startswith(PNG)


def weights(folder, name="batchnorm_mlp"):
    return fastae.load(folder / f"{name}.safetensors", backend="numpy").weights


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.tobytes() == other[name].tobytes(), name


@pytest.mark.usefixtures("needs_files")
def test_resumed_run_equals_one_that_was_not_stopped(run, tiles, tmp_path):
    arguments = ("batchnorm_mlp", "--data", tiles, "--batch-size", 16, "--out")
    assert run(*arguments, tmp_path / "whole", "--epochs", 4)[0] == 0
    first = (*arguments, tmp_path / "parts", "--checkpoint-every", 1)
    assert run(*first, "--epochs", 2)[0] == 0
    status, out, err = run(*first, "--epochs", 4, "--resume")
    assert status == 0, err
    assert f"going on from {tmp_path / 'parts' / 'batchnorm_mlp.safetensors'}." in out
    assert re.findall(r"^epoch (\d)", err, re.MULTILINE) == ["3", "4"]
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert fastae.load(tmp_path / "parts" / "batchnorm_mlp.safetensors").history.updates == 4 * 5


@pytest.mark.usefixtures("needs_files")
def test_interrupted_run_is_saved(run, tiles, tmp_path, monkeypatch):
    fit = fastae.Trainer.fit

    def interrupted(self, *args, epochs, **options):
        fit(self, *args, epochs=2, **options)
        raise KeyboardInterrupt

    arguments = ("batchnorm_mlp", "--data", tiles, "--epochs", 3, "--batch-size", 16, "--out")
    assert run(*arguments, tmp_path / "whole")[0] == 0
    monkeypatch.setattr(fastae.Trainer, "fit", interrupted)
    status, _, err = run(*arguments, tmp_path / "parts", "--quiet")
    assert status == 130
    saved = tmp_path / "parts" / "batchnorm_mlp.safetensors"
    assert err == f"\nfastae: saved as {saved}; --resume goes on from there\n\nfastae: interrupted\n"
    monkeypatch.undo()
    assert run(*arguments, tmp_path / "parts", "--resume")[0] == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a process to be killed")
@pytest.mark.usefixtures("needs_files")
def test_killed_run_is_resumed(run, tiles, tmp_path):
    arguments = ["batchnorm_mlp", "--data", tiles, "--batch-size", 16, "--checkpoint-every", 1, "--out"]
    command = [
        *map(str, ("train", *arguments, tmp_path / "parts")),
        "--epochs",
        "100000",
        "--backend",
        "numpy",
    ]
    saved = tmp_path / "parts" / "batchnorm_mlp.safetensors"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([sys.executable, "-m", "fastae", *command], stdout=log, stderr=log) as process,
    ):
        deadline = time.monotonic() + 60
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert saved.exists(), (tmp_path / "log").read_text()
    done = len(fastae.load(saved, backend="numpy").history.loss)
    assert run(*arguments, tmp_path / "parts", "--epochs", done + 2, "--resume")[0] == 0
    assert run(*arguments, tmp_path / "whole", "--epochs", done + 2)[0] == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quark_mpl",), "MODEL: expected one of autoencnet, quark_mlp, batchnorm_mlp"),
        (("quark_mlp", "--backend", "quick"), "quick"),
        (("quark_mlp", "--data", "mnits"), "--data mnits: no such file; or use mnist, fashion_mnist, digits"),
        (
            ("quark_mlp", "--data", "digits", "--latent", 3),
            "--latent: expected with MODEL mlp alone, got quark",
        ),
        (("mlp", "--data", "digits", "--hidden", "8,0"), "expected whole numbers >= 1, such as 128,64"),
        (("quark_mlp", "--data", "digits", "--resume"), "--resume needs --out"),
        (("quark_mlp", "--data", "digits", "--checkpoint-every", 1), "--checkpoint-every needs --out"),
        (("quark_mlp", "--data", "digits", "--threads", 2), "--threads 2: the backend numpy has no threads"),
        (("batchnorm_mlp", "--data", "digits", "--batch-size", 1499), "expected batches of 2 rows or more"),
    ],
)
def test_one_line_for_what_is_wrong(run, arguments, message):
    status, _, err = run(*arguments, "--epochs", 1, "--quiet")
    assert status == (2 if "--hidden" in arguments else 1)  # argparse has 2 for an argument by itself
    assert err.startswith(("fastae: error: ", "fastae train: error: argument --hidden: "))
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: MODEL"),
        (("quark_mlp", "--epochs", "0"), "expected a whole number >= 1, got '0'"),
        (("quark_mlp", "--dtype", "float16"), "invalid choice: 'float16'"),
        (("quark_mlp", "--checkpoint-every", "often"), "expected a whole number >= 1, got 'often'"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err


ROWS = np.ones((20, 784), np.uint8)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("quark_mlp", {}, "expected an array 'train' or a single array of rows, found nothing"),
        ("quark_mlp", {"a": ROWS, "b": ROWS}, "found a (20, 784), b (20, 784)"),
        ("quark_mlp", {"train": ROWS[:, :49]}, "quark_mlp takes 784 values a row; "),
        ("quark_mlp", {"train": ROWS[:, :50]}, "has 50 (1x50)"),
        ("quark_mlp", {"train": ROWS[0]}, "array 'train': expected shape (n, height, width) or (n, values)"),
        ("quark_mlp", {"train": ROWS[:0]}, "array 'train': expected shape"),
        ("quark_mlp", {"train": ROWS[:1]}, "expected 2 rows or more, one for validation, got 1"),
        ("quark_mlp", {"train": ROWS.astype(int)}, "expected uint8 or floats, got dtype int64"),
        ("quark_mlp", {"train": np.full((4, 784), "a")}, "expected uint8 or floats, got dtype <U1"),
        ("quark_mlp", {"train": np.full((4, 784), None)}, "not a .npz or .npy file of numbers, or damaged"),
        (
            "quark_mlp",
            {"train": ROWS, "test": ROWS[:, 1:]},
            "'test' has uint8 of (783,), 'train' uint8 of (784,)",
        ),
        ("quark_mlp", {"train": ROWS, "test": ROWS / 2}, "'test' has float64 of (784,), 'train' uint8"),
        ("quark_mlp", {"train": ROWS * np.nan}, "expected finite values"),
        ("deep_mlp", {"train": ROWS * 2.0}, "expected values from 0 to 1"),
        ("autoencnet", {"train": ROWS * 1e30}, "training diverged: "),
    ],
)
def test_other_data_are_refused(run, tmp_path, name, arrays, message):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with np.errstate(all="ignore"):
        status, _, err = run(name, "--data", path, "--quiet")
    assert status == 1
    assert err.startswith("fastae: error: ")
    assert message in err
    assert err.count("\n") == 1


def zipped_text():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train", "no array")
    return archive.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"not an archive", b"PK\x03\x04 junk", b"\x93NUMPY junk", zipped_text(), "truncated"]
)
def test_damaged_data_are_refused(run, file, content):
    file.write_bytes(file.read_bytes()[:700] if content == "truncated" else content)
    status, out, err = run("quark_mlp", "--data", file)
    assert (status, out) == (1, "")
    assert err == f"fastae: error: --data {file}: not a .npz or .npy file of numbers, or damaged\n"


@pytest.mark.usefixtures("needs_files")
def test_nothing_to_do(run, tiles, tmp_path):
    arguments = ("batchnorm_mlp", "--data", tiles, "--out", tmp_path / "run")
    assert run(*arguments, "--epochs", 2)[0] == 0
    before = weights(tmp_path / "run")
    for epochs in (1, 2):
        resumed = run(*arguments, "--epochs", epochs, "--resume")
        assert resumed == (0, "", "fastae: nothing to do: 2 epochs done\n")
    assert_same(before, weights(tmp_path / "run"))


@pytest.mark.usefixtures("needs_files")
@pytest.mark.parametrize(
    "arguments", [("--resume",), ("--threads", 2), ("--data", "mnits"), ("--backend", "quick")]
)
def test_what_is_refused_leaves_no_folder(run, tmp_path, arguments):
    status, out, _ = run("quark_mlp", "--data", "digits", "--out", tmp_path / "run", *arguments)
    assert (status, out) == (1, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("needs_files")
def test_folder_that_cannot_be_made(run, file):
    status, out, err = run("quark_mlp", "--data", "digits", "--out", file / "run")
    assert (status, out) == (1, "")
    assert err == f"fastae: error: --out {file / 'run'}: Not a directory\n"


@pytest.mark.usefixtures("needs_files")
def test_full_disk_names_the_folder(run, tiles, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(fastae.Trainer, "save", full)
    for options in ((), ("--checkpoint-every", 1)):
        arguments = ("batchnorm_mlp", "--data", tiles, "--epochs", 1, "--quiet", "--out", tmp_path / "run")
        status, _, err = run(*arguments, *options)
        assert status == 1
        assert err == f"fastae: error: --out {tmp_path / 'run'}: {os.strerror(errno.ENOSPC)}\n"


def test_damaged_mnist_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"\x1f\x8b damaged")
    status, out, err = run("quark_mlp")
    assert (status, out) == (1, "")
    assert err.startswith(f"fastae: error: {path}: damaged, or not ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("needs_files")
def test_nothing_to_resume(run, tmp_path):
    status, out, err = run("quark_mlp", "--data", "digits", "--out", tmp_path, "--resume")
    assert (status, out) == (1, "")
    assert err == f"fastae: error: --resume: there is no {tmp_path / 'quark_mlp.safetensors'}\n"


@pytest.mark.usefixtures("needs_files")
def test_resume_of_another_training_or_a_damaged_file(run, tiles, tmp_path):
    arguments = ("batchnorm_mlp", "--data", tiles, "--epochs", 1, "--out", tmp_path)
    assert run(*arguments)[0] == 0
    saved = tmp_path / "batchnorm_mlp.safetensors"
    status, _, err = run(*arguments, "--batch-size", 8, "--resume")
    assert status == 1
    assert f"{saved} is of another training: its batch_size is 128" in err
    saved.write_bytes(saved.read_bytes()[:-1])
    status, _, err = run(*arguments, "--resume")
    assert status == 1
    assert f"{saved} is truncated" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("needs_files")
def test_what_is_missing_is_said_before_the_training(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    status, out, err = run("quark_mlp", "--data", "digits", "--out", tmp_path / "run")
    assert (status, out) == (1, "")
    assert 'pip install "fastae[files]"' in err


def test_without_matplotlib_there_are_no_pictures(run, require, tmp_path, monkeypatch):
    require("safetensors")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = tmp_path / "run"
    status, out, err = run("quark_mlp", "--data", "digits", "--epochs", 1, "--out", folder)
    assert status == 0
    assert err.splitlines()[0] == (
        'fastae: there will be no pictures: drawing needs matplotlib: pip install "fastae[plots]"'
    )
    assert {path.name for path in folder.iterdir()} == {"quark_mlp.safetensors", "history.csv"}
    assert out.splitlines()[-1] == f"In {folder}: quark_mlp.safetensors, history.csv"


@pytest.mark.usefixtures("needs_files")
def test_folder_that_is_a_file(run, file):
    status, out, err = run("quark_mlp", "--data", "digits", "--out", file)
    assert (status, out) == (1, "")
    assert err == f"fastae: error: --out {file}: not a folder\n"


# -- figures -------------------------------------------------------------------------------------------


def test_figures_of_a_longer_training():
    history = History(
        [0.2] * 9 + [0.04] + [0.03], [0.06] + [0.2] * 8 + [0.045, 0.035], [1.0] * 11, [np.ones(3)]
    )
    table = cells(train.figures(models.quark_mlp(), history, minutes=3.0))
    assert table["validation loss, epoch 1"] == ["0.0600", "0.0675", "0.0621"]
    assert table["validation loss, epoch 10"] == ["0.0450", "0.0566", "0.0460"]
    assert table["training loss, epoch 10"] == ["0.0400", "-", "0.0464"]
    assert table["validation loss, epoch 11"] == ["0.0350", "-", "-"]
    assert table["minutes in all"] == ["-", "23.0", "-"]  # of another number of epochs
    assert table["seconds per epoch"] == ["1", "-", "-"]


def test_help_names_every_model(run):
    status, out, _ = run("--help")
    assert status == 0
    for name in models.MODELS:
        assert f"\n  {name} " in out
    for name in backend.NAMES:
        assert name in out


def test_module_does_not_load_what_is_heavy():
    code = "import sys, fastae.train; print({'numba', 'matplotlib', 'pooch', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert Path(train.__file__).name == "train.py"
