"""Pictures: what is drawn, where it is drawn, and what is left alone."""

import subprocess
import sys

import numpy as np
import pytest

import fastae
from fastae import Dense, Network, Parallel, plots

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


SECONDS = {"scalar": 0.08, "numpy": 3e-5, "cython": 1.2e-5}
IMAGES = np.arange(3 * 4 * 5).reshape(3, 4, 5)
CODES = np.random.default_rng(0).normal(size=(60, 2))
LABELS = np.arange(60) % 10
SCORES = -np.abs(CODES[:, 0])
POINTS = [("dense_forward", 12.0, 90.0), ("adam", 0.2, 2.0)]
MACHINE = {"peak": 116.0, "bandwidth": 20.0}


NESTED = Network(
    [Parallel([Parallel([], [Dense(3), Dense(9, "tanh")]), Dense(1)], [Dense(1)])], [Dense(9)], input_shape=9
)

#: Every picture with arguments to draw it from.
PICTURES = [
    (plots.learning_curve, ([3.0, 2.0, 1.0],), {}),
    (plots.learning_curve, ({"numpy": np.arange(50.0), "scalar": [3.0]},), {}),
    (plots.latent_scatter, (CODES, LABELS), {}),
    (plots.latent_scatter, (CODES,), {}),
    (plots.anomalies, (SCORES, SCORES < -2), {"threshold": -2.0}),
    (plots.anomalies, (SCORES,), {}),
    (plots.image_rows, ({"first": IMAGES, "second": IMAGES - 1, "third": IMAGES + 1},), {}),
    (plots.reconstructions, (IMAGES, IMAGES * 0.5), {}),
    (plots.noise_removal, (IMAGES + 9, IMAGES * 0.5, IMAGES), {}),
    (plots.noise_removal, (IMAGES + 9, IMAGES), {}),
    (plots.training_strip, (IMAGES, IMAGES[0]), {}),
    (plots.training_strip, (IMAGES,), {}),
    (plots.speedup, (SECONDS,), {}),
    (plots.speedup, ({"forward": SECONDS, "step": SECONDS},), {}),
    (plots.roofline, (POINTS,), MACHINE),
    (plots.roofline, (POINTS,), {"peak": 116, "bandwidth": {"L2": 160, "memory": 20}}),
    (plots.network, (fastae.models.autoencnet(),), {}),
    (plots.network, (fastae.models.upsample_conv(),), {}),
    (plots.network, (NESTED,), {}),
]
each_picture = pytest.mark.parametrize(
    ("draw", "arguments", "named"), PICTURES, ids=[draw.__name__ for draw, *_ in PICTURES]
)


def test_every_picture_is_drawn_here():
    functions = {getattr(plots, name) for name in plots.__all__} - {plots.COLOURS, plots.duration}
    assert functions - {plots.significant, plots.training_animation} == {draw for draw, *_ in PICTURES}


@each_picture
def test_draws_into_given_or_new_axes(draw, arguments, named, axes, tmp_path):
    assert draw(*arguments, ax=axes, **named) is axes
    axes.figure.savefig(tmp_path / "given.svg")  # each format is a backend of its own
    new = draw(*arguments, title="A title", **named)
    assert new.get_title() == "A title"
    for name in ("new.png", "new.pdf"):
        new.figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


@each_picture
def test_nothing_is_cut_off_or_without_a_label(draw, arguments, named):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    ax = draw(*arguments, **named)
    FigureCanvasAgg(ax.figure).draw()
    whole, inside = ax.figure.bbox, ax.get_tightbbox()
    assert inside.x0 >= whole.x0 - 1
    assert inside.y0 >= whole.y0 - 1
    assert inside.x1 <= whole.x1 + 1
    assert inside.y1 <= whole.y1 + 1
    for axis in (ax.xaxis, ax.yaxis):  # what has numbers along it says of what
        shown = [text.get_text() for text in axis.get_ticklabels() if text.get_text()]
        assert axis.get_label_text() or not any(text.strip("0123456789.−") == "" for text in shown)


@each_picture
def test_colours_are_those_of_the_palette_or_grey(draw, arguments, named):
    from matplotlib.colors import to_hex, to_rgb

    ax = draw(*arguments, **named)
    drawn = [line.get_color() for line in ax.lines] + [patch.get_facecolor() for patch in ax.patches]
    drawn += [colour for points in ax.collections for colour in points.get_facecolor()]
    drawn += [text.get_color() for text in ax.texts]
    known = {to_hex(colour) for colour in plots.COLOURS}
    assert all(to_hex(colour) in known or len(set(to_rgb(colour))) == 1 for colour in drawn)


def test_points_of_different_labels_differ_in_colour_and_mark():
    ax = plots.latent_scatter(CODES, LABELS)
    assert [len(points.get_offsets()) for points in ax.collections] == [6] * 10
    np.testing.assert_array_equal(ax.collections[3].get_offsets(), CODES[LABELS == 3])
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in ax.collections
    }
    assert len(looks) == 10
    assert [text.get_text() for text in ax.texts] == [str(label) for label in range(10)]
    assert ax.texts[3].get_position() == tuple(np.median(CODES[LABELS == 3], axis=0))
    assert len(ax.get_legend().get_texts()) == 10


def test_anomalies_counts_each_row_once():
    outliers = SCORES < -2
    ax = plots.anomalies(SCORES, outliers, threshold=-2)
    heights = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert heights == [(~outliers).sum(), outliers.sum()]
    assert all(bar.get_x() < -2 for bar in ax.containers[1] if bar.get_height())
    assert [list(line.get_xdata()) for line in ax.lines] == [[-2, -2]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"normal ({(~outliers).sum()})",
        f"outlier ({outliers.sum()})",
        "threshold -2",
    ]


def test_noise_removal_is_three_rows_in_the_grey_scale_of_the_clean():
    ax = plots.noise_removal(IMAGES + 100, IMAGES + 1, IMAGES)
    (image,) = ax.images
    mosaic = image.get_array()
    assert mosaic.shape == (3 * 4 + 2, 3 * 5 + 2)
    for row, images in enumerate((IMAGES + 100, IMAGES + 1, IMAGES)):
        np.testing.assert_array_equal(mosaic[5 * row : 5 * row + 4, 6:11], images[1])
    assert image.get_clim() == (IMAGES.min(), IMAGES.max())
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["noisy", "denoised", "clean"]


def test_training_strip_shows_some_epochs_and_the_first_and_the_last():
    many = np.arange(30.0)[:, None, None] * np.ones((4, 5))
    ax = plots.training_strip(many, many[5] + 0.5, most=4, epochs=range(10, 310, 10))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "110", "200", "300", "original"]
    np.testing.assert_array_equal(ax.images[0].get_array()[0, ::6], [0, 10, 19, 29, 5.5])
    assert ax.get_xlabel() == "reconstruction after epoch"
    (label,) = plots.training_strip(many, most=1).get_xticklabels()
    assert label.get_text() == "30"


def test_training_animation_moves(axes, tmp_path):
    from PIL import Image

    images = np.linspace(0, 1, 5)[:, None, None] * np.ones((4, 4))
    animation = plots.training_animation(images, images[4], epochs=[0, 1, 2, 4, 8], interval=100, ax=axes)
    assert axes.images
    seen = []
    original = axes.images[0].set_data
    axes.images[0].set_data = lambda data: (seen.append(data.copy()), original(data))[1]
    animation.save(tmp_path / "training.gif", writer="pillow")
    # Drawn once more to begin with; the original stays, its neighbour is that of the epoch.
    np.testing.assert_array_equal([frame[0, -1] for frame in seen[-5:]], images[:, 0, 0])
    assert {frame[0, 0] for frame in seen} == {1.0}
    assert axes.get_title() == "epoch 8"
    with Image.open(tmp_path / "training.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (5, 100)


def test_roofline_says_what_share_of_the_roof_is_reached():
    ax = plots.roofline(POINTS, peak=116, bandwidth={"memory": 20, "L2": 160})
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "dense_forward  78 %",  # 90 of 116
        "adam  6 %",  # 2 of 0.2 x 160
    ]
    roofs = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert [line.get_xydata()[1].tolist() for line in roofs[:2]] == [[116 / 160, 116], [116 / 20, 116]]
    for line, value in zip(roofs, (160, 20), strict=False):
        assert line.get_ydata()[0] == pytest.approx(value * line.get_xdata()[0])
    points = [line.get_xydata()[0].tolist() for line in ax.lines if len(line.get_xdata()) == 1]
    assert points == [[12, 90], [0.2, 2]]


def test_network_is_drawn_layer_by_layer():
    net = fastae.models.autoencnet()
    ax = plots.network(net)
    names = ["input", "in", "rec", "every_third", "link", "sum", "out"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    texts = [text.get_text() for text in ax.texts]
    assert texts[::2] == ["225", *["75"] * 5, "225"]
    assert texts[1::2] == [
        "",
        "branch 1 of 2, relu, 16,950 parameters",
        "relu, 5,700 parameters, fixed",
        "branch 2 of 2, of the same input",
        "5,625 parameters",
        "the code, sum of 2 branches",
        "relu, 17,100 parameters",
    ]
    bars = [bar.get_width() for container in ax.containers for bar in container]
    np.testing.assert_allclose(bars, np.log2(2 * np.array([225, 75, 75, 75, 75, 75, 225])))
    assert ax.get_title() == "autoencnet"


def test_learning_curve_says_what_it_shows():
    ax = plots.learning_curve({"a": [3, 2, 1], "b": [3, 2]}, xlabel="epoch", ylabel="loss (MSE)")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss (MSE)")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    lines = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3], [1, 2]]
    assert lines[1].get_zorder() > lines[0].get_zorder()  # the short one can be seen
    assert len({line.get_color() for line in lines}) == 2
    assert all(tick % 1 == 0 for tick in ax.get_xticks())  # there is no half an epoch
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


def test_rows_of_images_have_the_grey_scale_of_one_of_them():
    rows = {"first": IMAGES, "second": IMAGES - 1, "third": 2 * IMAGES}
    ax = plots.image_rows(rows, scale="third")
    assert ax.images[0].get_clim() == (0, 2 * IMAGES.max())
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [*rows]
    np.testing.assert_array_equal(ax.images[0].get_array()[5:9, :5], IMAGES[0] - 1)
    assert plots.image_rows(rows).images[0].get_clim() == (0, IMAGES.max())


def test_images_of_one_channel_are_images():
    channel = IMAGES[:, None]
    for draw in (plots.reconstructions, plots.noise_removal):
        one, other = draw(channel, channel).images[0], draw(IMAGES, IMAGES).images[0]
        np.testing.assert_array_equal(one.get_array(), other.get_array())
    strip = plots.training_strip(channel, channel[0]).images[0].get_array()
    np.testing.assert_array_equal(strip, plots.training_strip(IMAGES, IMAGES[0]).images[0].get_array())


def test_branches_of_branches_are_drawn_too():
    ax = plots.network(NESTED)
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[:6] == ["input", "as it is", "dense_1", "dense_2", "parallel_2", "dense_3"]
    texts = [text.get_text() for text in ax.texts][1::2]
    assert texts[1] == "branch 1 of 2, branch 1 of 2"
    assert texts[2] == "branch 2 of 2, of the same input, 30 parameters"
    assert texts[3] == "tanh, 36 parameters"
    assert texts[4] == "sum of 2 branches"
    assert texts[6] == "branch 2 of 2, of the same input, 10 parameters"
    assert [i for i, text in enumerate(texts) if "the code" in text] == [7]


def test_labels_of_any_type_are_written():
    ax = plots.latent_scatter(CODES[:4], [None, "b", None, 3])
    assert [text.get_text() for text in ax.texts] == ["3", "None", "b"]
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 2, 1]


def test_reconstructions_take_flat_images():
    flat = IMAGES.reshape(3, 20)
    same = plots.reconstructions(flat, flat, image_shape=(4, 5)).images[0].get_array()
    np.testing.assert_array_equal(same, plots.reconstructions(IMAGES, IMAGES).images[0].get_array())
    assert plots.reconstructions(np.zeros((2, 9)), np.zeros((2, 9))).images[0].get_array().shape == (7, 7)


NAN = np.full((2, 4), np.nan)


@pytest.mark.parametrize(
    ("draw", "arguments", "named", "message"),
    [
        (plots.learning_curve, ({},), {}, "losses: expected at least one series"),
        (plots.learning_curve, ([],), {}, "losses: expected at least one number"),
        (plots.learning_curve, ({"a": [[1.0]]},), {}, "losses: .*'a' has"),
        (plots.latent_scatter, (CODES[:, :1],), {}, r"codes: expected shape \(n, 2\).*got \(60, 1\)"),
        (plots.latent_scatter, (CODES[:0],), {}, "codes: expected shape"),
        (plots.latent_scatter, (NAN[:, :2],), {}, r"codes: expected finite numbers, given nan at \(0, 0\)"),
        (plots.latent_scatter, (CODES.astype(str),), {}, "codes: expected real numbers"),
        (plots.latent_scatter, ([[1.0, 2.0], [1.0]],), {}, "codes: expected an array of numbers"),
        (plots.latent_scatter, (CODES, LABELS[1:]), {}, r"labels: expected shape \(60,\)"),
        (
            plots.latent_scatter,
            (CODES, CODES[:, 0]),
            {},
            "labels: expected at most 20 different ones, got 60",
        ),
        (plots.latent_scatter, (CODES, np.full(60, np.nan)), {}, "labels: .* given NaN"),
        (plots.anomalies, (CODES,), {}, r"scores: expected shape \(n,\)"),
        (plots.anomalies, (SCORES, LABELS), {}, "outliers: expected bool"),
        (plots.anomalies, (SCORES, [True]), {}, "outliers: expected bool"),
        (plots.anomalies, (SCORES,), {"threshold": np.inf}, "threshold: expected finite"),
        (plots.anomalies, (SCORES,), {"threshold": [1, 2]}, "threshold: expected a number"),
        (plots.image_rows, ({},), {}, "rows: expected at least one row"),
        (plots.image_rows, ({"a": IMAGES, "b": IMAGES[1:]},), {}, "b: expected shape .* as a"),
        (plots.image_rows, ({"a": IMAGES},), {"scale": "b"}, "scale: expected one of a, got 'b'"),
        (plots.reconstructions, (IMAGES, IMAGES[:2]), {}, "reconstructed: expected shape"),
        (plots.reconstructions, (IMAGES[:0], IMAGES[:0]), {}, "originals: expected shape"),
        (plots.reconstructions, (np.zeros((2, 20)), np.zeros((2, 20))), {}, "give image_shape"),
        (plots.reconstructions, (NAN, NAN), {}, "originals: expected finite numbers"),
        (plots.noise_removal, (IMAGES, IMAGES[1:]), {}, "denoised: expected shape"),
        (plots.noise_removal, (IMAGES, IMAGES, IMAGES[1:]), {}, "clean: expected shape"),
        (plots.training_strip, (IMAGES[:0],), {}, "images: expected shape"),
        (plots.training_strip, (IMAGES, IMAGES[0].T), {}, r"original: expected shape \(4, 5\)"),
        (plots.training_strip, (IMAGES,), {"epochs": [1]}, "epochs: expected 3, one for each image, got 1"),
        (plots.training_strip, (IMAGES,), {"most": 0}, "most: expected at least 1"),
        (plots.training_animation, (IMAGES,), {"interval": 0}, "interval: expected a positive number"),
        (plots.training_animation, (IMAGES, IMAGES), {}, "original: expected shape"),
        (plots.speedup, ({},), {}, "seconds: expected at least one time"),
        (plots.speedup, ({"numpy": 1.0},), {}, "no baseline 'scalar'"),
        (plots.speedup, ({"scalar": 1.0, "numpy": 0.0},), {}, "positive number for 'numpy'"),
        (plots.speedup, ({"scalar": 1.0, "numpy": float("nan")},), {}, "positive number for 'numpy'"),
        (plots.roofline, ([],), MACHINE, "points: expected at least one"),
        (plots.roofline, ([("adam", 1.0)],), MACHINE, r"points: expected \(name, FLOP/byte, GFLOP/s\)"),
        (plots.roofline, ([("adam", 0.0, 1.0)],), MACHINE, "points: intensity of 'adam': .* positive"),
        (plots.roofline, ([("adam", 1.0, "x")],), MACHINE, "points: rate of 'adam': .* positive"),
        (plots.roofline, (POINTS,), {"peak": -1, "bandwidth": 1}, "peak: expected a positive number, got -1"),
        (plots.roofline, (POINTS,), {"peak": 1, "bandwidth": {"L1": 0}}, "bandwidth of 'L1': .* positive"),
        (plots.roofline, (POINTS,), {"peak": 1, "bandwidth": {}}, "bandwidth: expected at least one"),
        (plots.network, ([fastae.Dense(2)],), {}, "net: expected a Network, given list"),
    ],
)
def test_refuses(draw, arguments, named, message, axes):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        draw(*arguments, ax=axes, **named)
    assert "\n" not in str(error.value)
    assert not axes.has_data()  # nothing was drawn before


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


def test_leaves_pyplot_and_the_backend_alone(tmp_path):
    code = (
        "import sys, fastae.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.learning_curve([1.0]); plots.speedup({'scalar': 1.0})\n"
        "plots.reconstructions([[[1.0]]], [[[1.0]]]); plots.latent_scatter([[1, 2]], ['a'])\n"
        "plots.training_animation([[[1.0]]]).save('training.gif', writer='pillow')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_names_the_extra_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install \"fastae\[plots\]\""):
        plots.learning_curve([1.0])
