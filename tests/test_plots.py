"""Pictures: what is drawn, where it is drawn, and what is left alone."""

import subprocess
import sys

import numpy as np
import pytest

from fastae import plots

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


SECONDS = {"scalar": 0.08, "numpy": 3e-5, "cython": 1.2e-5}
IMAGES = np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (plots.learning_curve, ([3.0, 2.0, 1.0],)),
        (plots.learning_curve, ({"numpy": np.arange(50.0), "scalar": [3.0]},)),
        (plots.speedup, (SECONDS,)),
        (plots.speedup, ({"forward": SECONDS, "step": SECONDS},)),
        (plots.reconstructions, (IMAGES, IMAGES * 0.5)),
    ],
)
def test_draws_into_given_or_new_axes(draw, arguments, axes, tmp_path):
    assert draw(*arguments, ax=axes) is axes
    axes.figure.savefig(tmp_path / "given.png")
    new = draw(*arguments, title="A title")
    assert new.get_title() == "A title"
    new.figure.savefig(tmp_path / "new.png")
    assert (tmp_path / "new.png").stat().st_size > 1000


def test_learning_curve_says_what_it_shows():
    ax = plots.learning_curve({"a": [3, 2, 1], "b": [3, 2]}, xlabel="epoch", ylabel="loss (MSE)")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss (MSE)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    lines = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3], [1, 2]]
    assert lines[1].get_zorder() > lines[0].get_zorder()  # the short one can be seen
    assert len({line.get_color() for line in lines}) == 2
    assert plots.learning_curve([1.0, 2.0]).get_legend() is None


def test_speedup_is_a_ratio_on_a_logarithmic_axis():
    ax = plots.speedup(SECONDS)
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(SECONDS)
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(ends, [1, 0.08 / 3e-5, 0.08 / 1.2e-5])
    assert [text.get_text() for text in ax.texts] == [
        "1.00x   80.0 ms",
        "2,667x   30.0 µs",
        "6,667x   12.0 µs",
    ]
    assert "numpy" in plots.speedup(SECONDS, baseline="numpy").get_xlabel()


def test_speedup_keeps_slower_bars_visible():
    ax = plots.speedup({"scalar": 1.0, "slower": 10.0})
    assert ax.get_xlim()[0] < 0.1
    assert all(bar.get_width() > 0 for bar in ax.patches)


def test_reconstructions_are_two_rows_in_one_grey_scale():
    ax = plots.reconstructions(IMAGES, IMAGES + 100)
    (image,) = ax.images
    mosaic = image.get_array()
    assert mosaic.shape == (2 * 4 + 1, 3 * 5 + 2)
    np.testing.assert_array_equal(mosaic[:4, 6:11], IMAGES[1])
    np.testing.assert_array_equal(mosaic[5:, 12:], IMAGES[2] + 100)
    assert image.get_clim() == (IMAGES.min(), IMAGES.max())
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["original", "reconstruction"]


def test_reconstructions_take_flat_images():
    flat = IMAGES.reshape(3, 20)
    same = plots.reconstructions(flat, flat, image_shape=(4, 5)).images[0].get_array()
    np.testing.assert_array_equal(same, plots.reconstructions(IMAGES, IMAGES).images[0].get_array())
    assert plots.reconstructions(np.zeros((2, 9)), np.zeros((2, 9))).images[0].get_array().shape == (7, 7)


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (plots.learning_curve, ({},), "losses: expected at least one series"),
        (plots.learning_curve, ([],), "losses: expected at least one number"),
        (plots.learning_curve, ({"a": [[1.0]]},), "losses: .*'a' has"),
        (plots.speedup, ({},), "seconds: expected at least one time"),
        (plots.speedup, ({"numpy": 1.0},), "no baseline 'scalar'"),
        (plots.speedup, ({"scalar": 1.0, "numpy": 0.0},), "positive number for 'numpy'"),
        (plots.speedup, ({"scalar": 1.0, "numpy": float("nan")},), "positive number for 'numpy'"),
        (plots.reconstructions, (IMAGES, IMAGES[:2]), "reconstructed: expected shape"),
        (plots.reconstructions, (IMAGES[:0], IMAGES[:0]), "originals: expected shape"),
        (plots.reconstructions, (np.zeros((2, 20)), np.zeros((2, 20))), "give image_shape"),
    ],
)
def test_refuses(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (1.5e-9, "1.50 ns"),
        (9.999e-7, "1.00 µs"),
        (4.18e-5, "41.8 µs"),
        (0.1234, "123 ms"),
        (65.4, "65.4 s"),
    ],
)
def test_duration(seconds, text):
    assert plots.duration(seconds) == text


def test_leaves_pyplot_and_the_backend_alone():
    code = (
        "import sys, fastae.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.learning_curve([1.0]); plots.speedup({'scalar': 1.0})\n"
        "plots.reconstructions([[[1.0]]], [[[1.0]]])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_the_extra_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install \"fastae\[plots\]\""):
        plots.learning_curve([1.0])
