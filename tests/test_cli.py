"""The fastae command: what it prints, what it writes, and how it says no."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import backend, cli, demo

PNG = b"\x89PNG\r\n\x1a\n"
needs_matplotlib = pytest.mark.usefixtures("_matplotlib")


@pytest.fixture
def _matplotlib():
    pytest.importorskip("matplotlib")


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
def images(tmp_path):
    """A file of 40 images of 6x5."""
    path = tmp_path / "images.npz"
    levels = np.random.default_rng(3).integers(0, 256, (40, 6, 5), np.uint8)
    np.savez(path, train=levels[:30], test=levels[30:])
    return path


# -- the command ---------------------------------------------------------------------------------------


def test_version(run):
    assert run("--version") == (0, f"fastae {fastae.__version__}\n", "")


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "fastae", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"fastae {fastae.__version__}\n")


COMMANDS = ("demo", "train", "bench", "encode", "decode", "reconstruct", "detect", "export", "info")


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS)])
def test_help(run, arguments):
    status, out, err = run(*arguments, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(" ".join(("usage: fastae", *arguments)))
    assert "info" in arguments or "examples:\n  fastae " in out
    epilog = out.partition("examples:")[2]
    assert all(len(line) <= 112 for line in epilog.splitlines())
    if not arguments:
        assert re.findall(r"^    (\w+)", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_examples_of_the_help_are_commands(run, command):
    _, out, _ = run(*([command] if command else []), "--help")
    examples = re.findall(r"^  (fastae .*?)(?: {3,}.*)?$", out.partition("examples:")[2], re.MULTILINE)
    assert examples or command == "info"
    for example in examples:
        arguments = cli._parser().parse_args(
            shlex.split(example)[1:]
        )  # leaves through SystemExit where it fails
        assert command is None or example.split()[1] == command
        assert callable(arguments.run)


def test_no_command_shows_help(run):
    status, out, err = run()
    assert (status, out) == (2, "")
    assert "examples:" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dmeo",), "invalid choice: 'dmeo'"),
        (("demo", "--updates", "0"), "expected a whole number >= 1, got '0'"),
        (("demo", "--scalar-updates", "many"), "expected a whole number >= 1, got 'many'"),
        (("demo", "--seed", "-1"), "expected a whole number >= 0, got '-1'"),
        (("demo", "--colour"), "unrecognized arguments: --colour"),
    ],
)
def test_wrong_arguments(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastae")
    assert err.count("\n") == 1


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    assert fastae.__version__ in out
    for name in (*backend.NAMES, "safetensors", "scikit-learn", "pooch", "matplotlib", "tqdm", "pillow"):
        assert name in out
    if fastae.available_backends()["cython"] is None:
        assert "instruction set" in out


def test_info_with_a_backend_that_is_none(run, monkeypatch):
    fastae.set_backend(None)
    monkeypatch.setenv("FASTAE_BACKEND", "quick")
    status, out, _ = run("info")
    assert status == 0  # what is wrong is what it is there to show
    assert "FASTAE_BACKEND=quick" in out


def test_demo_with_an_instruction_set_that_is_none(images, tmp_path):
    arguments = ("demo", "--data", images, "--out", tmp_path)
    environment = os.environ | {"FASTAE_ISA": "quick"}
    command = [sys.executable, "-m", "fastae", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("fastae: error: FASTAE_ISA: expected one of ")


def test_interrupt_ends_in_one_line(run, monkeypatch):
    def interrupted(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert run("demo") == (130, "", "\nfastae: interrupted\n")


# -- the demonstration ---------------------------------------------------------------------------------


@needs_matplotlib
def test_demo(run, tmp_path, images):
    folder = tmp_path / "new" / "pictures"
    status, out, err = run("demo", "--data", images, "--out", folder, "--updates", 60, "--scalar-updates", 3)
    assert status == 0, err
    assert out.startswith(f"AutoEncNet 30-75-30 on {images}: 30 images of 6x5.")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line[:6].strip() in backend.NAMES}
    assert list(rows) == list(backend.NAMES)
    for name, reason in fastae.available_backends().items():
        if reason is None:
            assert rows[name][-2] == ("3" if name == "scalar" else "60")
        else:
            assert rows[name][1:3] == ["not", "available:"]
    assert "curves of scalar, numpy" in out
    assert " agree: " in out
    assert "475.6281x" in out
    assert "one run of each" in out
    assert str(folder) in out
    for name in demo.PICTURES:
        assert name in out
        assert (folder / name).read_bytes().startswith(PNG)
    assert "numpy" in err  # the progress bar
    assert "updates" in err


@needs_matplotlib
def test_demo_runs_on_autoencnets_own_images(run, tmp_path):
    path = Path(os.environ.get("FASTAE_DATA_DIR", "")) / "autoencnet_digits.npz"
    if not path.is_file():
        pytest.skip("FASTAE_DATA_DIR has no autoencnet_digits.npz")
    arguments = ("--out", tmp_path, "--data", path, "--updates", 50, "--scalar-updates", 1)
    status, out, err = run("demo", *arguments)
    assert status == 0, err
    assert "1000 images of 15x15" in out


@needs_matplotlib
def test_demo_replaces_pictures_only_when_told(run, tmp_path, images):
    (tmp_path / "speed-up.png").write_text("mine")
    arguments = ("demo", "--data", images, "--out", tmp_path, "--updates", 2, "--scalar-updates", 1)
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    there = tmp_path / "speed-up.png"
    assert err == f"fastae: error: {there} exists; give another --out, or --force to replace it\n"
    assert there.read_text() == "mine"
    assert run(*arguments, "--force")[0] == 0
    assert there.read_bytes().startswith(PNG)


def test_demo_refuses_a_file_as_folder(run, images):
    status, out, err = run("demo", "--out", images)
    assert (status, out) == (1, "")
    assert err == f"fastae: error: --out {images}: not a folder\n"


@needs_matplotlib
def test_demo_names_a_missing_backend(run, tmp_path, images, monkeypatch):
    load = backend.load

    def without_numba(name):
        if name == "numba":
            raise ImportError("backend 'numba' needs numba: pip install \"fastae[numba]\"")
        return load(name)

    monkeypatch.setattr(backend, "load", without_numba)
    arguments = ("--data", images, "--out", tmp_path, "--updates", 2, "--scalar-updates", 1)
    status, out, _ = run("demo", *arguments)
    assert status == 0
    assert "numba     not available: backend 'numba' needs numba: pip install" in out


@needs_matplotlib
def test_demo_fails_when_curves_disagree(run, tmp_path, images, monkeypatch):
    monkeypatch.setattr(demo, "AGREEMENT", -1.0)
    arguments = ("--data", images, "--out", tmp_path, "--updates", 2, "--scalar-updates", 1)
    status, out, err = run("demo", *arguments)
    assert status == 1
    assert "DISAGREE" in out
    assert "fastae: error: loss curves differ" in err


def test_demo_asks_for_matplotlib_before_it_trains(run, tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run("demo", "--data", images, "--out", tmp_path)
    assert (status, out) == (1, "")
    assert err == 'fastae: error: drawing needs matplotlib: pip install "fastae[plots]"\n'


@needs_matplotlib
def test_demo_shows_progress_without_tqdm(run, tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    arguments = ("--data", images, "--out", tmp_path, "--updates", 2, "--scalar-updates", 2)
    status, _, err = run("demo", *arguments)
    assert status == 0
    assert f"\rscalar |{'#' * 30}| 2/2 updates" in err
    assert f"\rnumpy  |{'#' * 30}| 2/2 updates" in err
    assert "\n" not in err


def test_training_that_diverges_names_the_update():
    data = np.full((20, 9), 1e12)  # far beyond what rounding decides
    weights = fastae.models.autoencnet(9, demo.HIDDEN).initial_weights(0)
    with pytest.raises(cli.CommandError, match=r"diverged at update \d+ on numpy"):
        demo.train(backend.load("numpy"), data, np.tile(np.arange(20), 60), weights)


def test_disagreement_is_the_largest_of_any_pair():
    def result(*losses):
        return demo.Result("", 0, 0, 0, np.array(losses), lambda rows: rows)

    assert demo.disagreement([result(1.0, 2.0)]) == 0
    assert demo.disagreement([result(4.0, 2.0), result(4.0), result(4.0, 3.0)]) == 0.5
    # a loss that is nowhere near the other is not hidden by a zero
    assert demo.disagreement([result(0.0), result(1.0)]) > 1


# -- images of one's own -------------------------------------------------------------------------------


def test_bundled_images():
    loaded = demo.load_images()
    assert (loaded.train.shape, loaded.test.shape) == ((1000, 15, 15), (20, 15, 15))


@pytest.mark.parametrize(
    ("arrays", "train", "test"),
    [
        ({"train": (30, 6, 5), "test": (4, 6, 5)}, (30, 6, 5), (4, 6, 5)),
        ({"train": (30, 6, 5)}, (27, 6, 5), (3, 6, 5)),
        ({"images": (500, 6, 5), "labels": (500,)}, (480, 6, 5), (20, 6, 5)),
        ({"arr_0": (10, 49)}, (9, 7, 7), (1, 7, 7)),
        ({"arr_0": (1, 7, 7)}, (1, 7, 7), (1, 7, 7)),
    ],
)
def test_images_are_found(tmp_path, arrays, train, test):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, **{name: np.ones(shape, np.uint8) for name, shape in arrays.items()})
    loaded = demo.load_images(path)
    assert (loaded.train.shape, loaded.test.shape) == (train, test)


def test_images_of_the_bundled_file_are_found():
    path = Path(fastae.__file__).with_name("data") / "digits.npz"
    assert demo.load_images(path).train.shape == (1777, 8, 8)


LEVELS = np.ones((4, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected an array 'train' or a single array of images, found nothing"),
        ({"labels": np.ones(4)}, "found labels (4,)"),
        ({"noisy": LEVELS, "clean": LEVELS}, "found noisy (4, 3, 3), clean (4, 3, 3)"),
        ({"train": np.ones((4, 3, 3, 1))}, "array 'train': expected images of shape (n, height, width)"),
        ({"train": LEVELS[:0]}, "array 'train': expected images of shape (n, height, width)"),
        ({"train": np.ones((4, 10))}, "flat images that are square, got shape (4, 10)"),
        ({"train": LEVELS, "test": LEVELS[:, :2]}, "'test' has images of (2, 3), 'train' of (3, 3)"),
        ({"train": LEVELS - 2.0}, "expected grey levels from 0 to 255, got -1.0 to -1.0"),
        ({"train": LEVELS * 256.0}, "expected grey levels from 0 to 255"),
        ({"train": LEVELS * np.nan}, "expected grey levels from 0 to 255, got nan"),
        ({"train": np.full((4, 3, 3), "a")}, "expected grey levels from 0 to 255, got dtype"),
        ({"train": np.full((4, 3, 3), None)}, "not an .npz file of numbers, or damaged"),
    ],
)
def test_other_files_are_refused(run, tmp_path, arrays, message):
    path = tmp_path / "images.npz"
    np.savez(path, **arrays)
    status, out, err = run("demo", "--data", path, "--out", tmp_path / "out")
    assert (status, out) == (1, "")
    assert err.startswith(f"fastae: error: {path}: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "not an .npz file of numbers, or damaged"),
        (b"not an archive", "not an .npz file of numbers, or damaged"),
        ("truncated", "not an .npz file of numbers, or damaged"),
        ("npy", "not an .npz file of numbers, or damaged (it is a lone .npy array)"),
        ("folder", "not a file"),
    ],
)
def test_files_that_are_no_archive_are_refused(run, tmp_path, images, content, message):
    path = tmp_path / "other.npz"
    if content == "folder":
        path.mkdir()
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, LEVELS)
    elif content == "truncated":
        path.write_bytes(images.read_bytes()[:700])
    elif content is not None:
        path.write_bytes(content)
    status, out, err = run("demo", "--data", path)
    assert (status, out) == (1, "")
    assert err.startswith(f"fastae: error: {path}: {message}")
    assert err.count("\n") == 1
