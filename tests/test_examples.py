"""The examples: what comes of them on the bundled digits, and that simpler or untrained models miss it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastae import datasets

if os.environ.get("CI"):
    import matplotlib
    import sklearn
else:
    matplotlib = pytest.importorskip("matplotlib")
    sklearn = pytest.importorskip("sklearn")

from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples"
# In CI they are there, but for the tests of a wheel, which has none.
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir() and not (os.environ.get("CI") and not os.environ.get("FASTAE_TEST_INSTALLED")),
    reason="examples/ is not beside the tests",
)

#: Figures that show that an example does what it says, with their bound: above it, or below it if negative.
BOUNDS = {
    "reconstruct": {"autoencoder": -0.011},
    "codes": {"autoencoder": 0.75},
    "denoise": {"autoencoder": -0.0215},
    "anomalies": {"ROC AUC, autoencoder": 0.97, "noisy among the isolated": 0.6},
    "generate": {"mixture, recognised": 0.75, "mixture, told apart": -0.88, "Gaussian, told apart": -0.95},
    "follow_training": {"validation, last epoch": -0.0095, "the image, after": -0.01},
}

#: Figures of other ways in the same table, which miss the bound of the one they stand beside.
OTHERS = {
    "reconstruct": {"PCA": "autoencoder"},
    "codes": {"PCA": "autoencoder"},
    "denoise": {"linear": "autoencoder", "noisy": "autoencoder"},
    "anomalies": {
        "ROC AUC, PCA": "ROC AUC, autoencoder",
        "ROC AUC, isolation forest": "ROC AUC, autoencoder",
    },
    "generate": {
        "N(0, 1) noise, recognised": "mixture, recognised",
        "N(0, 1) noise, told apart": "Gaussian, told apart",
        "Gaussian, recognised": "mixture, recognised",
        "Gaussian, told apart": "mixture, told apart",
    },
    "follow_training": {"validation, first epoch": "validation, last epoch"},
}


@pytest.fixture
def example(monkeypatch):
    """Imports an example as one that is run finds its neighbour."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("common", *BOUNDS)
    for name in names:
        sys.modules.pop(name, None)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def within(value: float, bound: float) -> bool:
    return value > bound if bound > 0 else value < -bound


def test_every_example_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"common", *BOUNDS}


@pytest.mark.parametrize("name", BOUNDS)
def test_result_is_one_that_others_miss(name, example, tmp_path, capsys):
    figures = example(name).main(["--out", str(tmp_path / "new")])
    for figure, bound in BOUNDS[name].items():
        assert within(figures[figure], bound), (figure, figures)
    for other, figure in OTHERS[name].items():
        assert not within(figures[other], BOUNDS[name][figure]), (other, figures)
    printed = capsys.readouterr().out
    assert all(f"{figure} " in printed and f"{value:.4g}" in printed for figure, value in figures.items())
    with Image.open(tmp_path / "new" / f"{name}.png") as picture:
        picture.load()
        assert min(picture.size) > 100
    if name == "follow_training":
        with Image.open(tmp_path / "new" / f"{name}.gif") as animation:
            assert animation.n_frames == 61  # the untrained one, and one for each epoch


def test_runs_as_a_script_from_anywhere(tmp_path):
    run = [sys.executable, "-W", "error", str(FOLDER / "reconstruct.py")]
    ran = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "autoencoder" in ran.stdout
    assert [path.name for path in (tmp_path / "fastae-examples").iterdir()] == ["reconstruct.png"]


@pytest.mark.parametrize("name", BOUNDS)
def test_an_untrained_model_misses_every_bound(name, example, tmp_path, monkeypatch):
    common = example("common")
    trained = common.Data.training
    still = {"learning_rate_init": 1e-12}
    monkeypatch.setattr(common.Data, "training", lambda self, epochs: trained(self, 1) | still)
    figures = example(name).main(["--out", str(tmp_path)])
    reached = [figure for figure, bound in BOUNDS[name].items() if within(figures[figure], bound)]
    assert not reached, figures


def test_bad_arguments_are_one_line(example, tmp_path, monkeypatch, capsys):
    reconstruct = example("reconstruct")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTAE_DATA_DIR", str(tmp_path / "nowhere"))
    for arguments, message in (
        (["--data", "letters"], "invalid choice: 'letters'"),
        (["--data", "mnist"], "nowhere, which is no folder"),
        (["--out", str(tmp_path / "file")], "File exists"),
    ):
        with pytest.raises(SystemExit) as stopped:
            reconstruct.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def noisy_pairs(folder: Path) -> Path:
    """300 of the digits with white noise on every tenth pixel."""
    clean, rng = datasets.digits_canvas(12)[:300], np.random.default_rng(0)
    noisy = np.where(rng.random(clean.shape) < 0.1, 255, clean)
    np.savez(folder / "pairs.npz", noisy=noisy, clean=clean)
    return folder / "pairs.npz"


@pytest.mark.parametrize(("published", "share"), [(False, 0.75), (True, 0.1)])
def test_pairs_are_denoised(published, share, example, tmp_path):
    path = noisy_pairs(tmp_path)
    if published:
        path = Path(os.environ.get("FASTAE_DATA_DIR", tmp_path)) / "noisy_digits.npz"
        if not path.is_file():
            pytest.skip("FASTAE_DATA_DIR names a folder with noisy_digits.npz")
    figures = example("denoise").main(["--pairs", str(path), "--out", str(tmp_path)])
    assert figures["autoencoder"] < share * figures["linear"] < share * figures["noisy"]
    with Image.open(tmp_path / "denoise.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"noisy": np.zeros((6, 5, 4))}, "expected an .npz file with numbers in arrays 'noisy' and 'clean'"),
        ({"noisy": np.array([{}] * 6), "clean": np.zeros(6)}, "expected an .npz file with numbers"),
        (
            {"noisy": np.zeros((6, 5, 4)), "clean": np.zeros((6, 5, 5))},
            "given noisy (6, 5, 4) and clean (6, 5, 5)",
        ),
        ({"noisy": np.zeros((4, 5, 4)), "clean": np.zeros((4, 5, 4))}, "expected 5 or more pairs"),
        (
            {"noisy": np.full((6, 5, 4), np.nan), "clean": np.zeros((6, 5, 4))},
            "expected finite numbers in 'noisy'",
        ),
        (
            {"noisy": np.zeros((6, 5, 4)), "clean": np.zeros((6, 5, 4), str)},
            "expected finite numbers in 'clean'",
        ),
        (b"PK nothing", "expected an .npz file"),
        (None, "No such file"),
    ],
)
def test_pairs_that_are_none_are_one_line(arrays, message, example, tmp_path, capsys):
    path = tmp_path / "pairs.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(SystemExit) as stopped:
        example("denoise").main(["--pairs", str(path), "--out", str(tmp_path / "new")])
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pairs.npz" in line
    assert message in line
    assert not (tmp_path / "new").exists()


def test_mnist_where_it_is(example, tmp_path):
    folder = os.environ.get("FASTAE_DATA_DIR")
    if not folder or not any(Path(folder).rglob("t10k-images-idx3-ubyte*")):
        pytest.skip("FASTAE_DATA_DIR names a folder with MNIST")
    figures = example("follow_training").main(["--data", "mnist", "--out", str(tmp_path)])
    # The least a linear model with a code of 16 can lose on these very images: what PCA of them leaves out.
    rows = datasets.rows(datasets.mnist("test")[0])
    left_out = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[:-16].sum() / rows.shape[1]
    assert figures["validation, last epoch"] < 0.018 < left_out
