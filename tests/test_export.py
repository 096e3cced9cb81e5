"""Exports: what ONNX Runtime and a C compiler make of them is what fastae computes."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastae
from fastae import cli, export
from fastae.export import PARTS, c99, nodes
from fastae.layers import (
    ACTIVATION_NAMES,
    LAYERS,
    Activation,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    Dropout,
    Flatten,
    GaussianNoise,
    Layer,
    MaskingNoise,
    MaxPool2D,
    Parallel,
    Reshape,
    Subsample,
    Upsample2D,
)
from fastae.models import MODELS
from fastae.network import Network
from fastae.trainer import Trainer

#: Relative to the largest number of the output.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
MORE = ("-Wconversion", "-Wdouble-promotion", "-Wmissing-prototypes", "-Wshadow", "-Wundef")


# -- who judges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_run():
    """Run an ONNX model: gives its outputs by name.

    ONNX Runtime has no convolution and no mean of windows in float64; there onnx's own reference runs.
    """
    if os.environ.get("CI"):
        import onnx
        import onnxruntime
    else:
        onnx = pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def run(model, rows):
        model = onnx.load_from_string(model) if isinstance(model, bytes) else model
        operators = {node.op_type for node in model.graph.node}
        if rows.dtype == np.float64 and operators & {"Conv", "ConvTranspose", "AveragePool"}:
            from onnx.reference import ReferenceEvaluator

            names = [output.name for output in model.graph.output]
            found = ReferenceEvaluator(model).run(names, {model.graph.input[0].name: rows})
            return dict(zip(names, map(np.asarray, found), strict=True))
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {given.name: rows}), strict=True))

    return run


@pytest.fixture(scope="module", params=["gcc", "clang"])
def compiler(request):
    found = shutil.which(request.param)
    if found is None:
        if os.environ.get("CI" if request.param == "gcc" else "CI_CLANG"):
            pytest.fail(f"CI has {request.param}")
        pytest.skip(f"no {request.param}")
    return found


@pytest.fixture
def c_run(compiler, tmp_path):
    """Compile a C file strictly and run its function on each row: outputs, and the value it returned."""

    def run(source, name, rows, width):
        real = np.ctypeslib.as_ctypes_type(rows.dtype)
        pointer = ctypes.POINTER(real)
        path, library = tmp_path / f"{name}.c", tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}.so"
        path.write_text(source)
        command = [compiler, *STRICT, *MORE, "-O1", "-shared", "-fPIC", str(path), "-o", str(library), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        function = getattr(ctypes.CDLL(str(library)), name)
        function.restype = real if name.endswith("_score") else ctypes.c_int
        function.argtypes = [pointer] if name.endswith("_score") else [pointer, pointer]
        block = np.full((len(rows), width + 16), np.nan, rows.dtype)  # outputs are poisoned, and guarded
        before = rows.copy()
        returned = []
        for row, out in zip(rows, block, strict=True):
            arguments = [row.ctypes.data_as(pointer)]
            if len(function.argtypes) == 2:
                arguments.append(out[8:].ctypes.data_as(pointer))
            returned.append(function(*arguments))
        assert np.isnan(block[:, :8]).all(), "written before the output"
        assert np.isnan(block[:, 8 + width :]).all(), "written behind the output"
        assert rows.tobytes() == before.tobytes(), "the input was changed"
        return block[:, 8 : 8 + width], np.array(returned)

    return run


def trainer_of(network, dtype="float32", seed=0):
    """A trainer whose every parameter counts: also biases, running means and variances."""
    trainer = Trainer(network, dtype=dtype, seed=seed, backend="numpy", batch_size=16)
    rng = np.random.default_rng(seed)
    weights = trainer.weights
    for p in network.parameters:
        if p.name.endswith(("gamma", "running_var")):
            weights[p.name] = rng.uniform(0.5, 2.0, p.shape)
        elif p.name.endswith(("bias", "beta", "running_mean")) and (p.trainable or p.statistic):
            weights[p.name] = rng.normal(0, 0.3, p.shape)
    trainer.set_weights(weights)
    return trainer


def rows_for(trainer, part="reconstruct", count=5, seed=1):
    shape = trainer.net.code_shape if part == "decode" else trainer.net.input_shape
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(trainer.dtype)


def expected(trainer, part, rows):
    """What fastae gives: outputs, or scores by the kernel."""
    if part in ("score", "detect"):
        y = trainer.reconstruct(rows)
        return fastae.ops.row_mse(y.reshape(len(y), -1), rows.reshape(len(rows), -1), backend="numpy")
    return getattr(trainer, part)(rows)


def assert_close(found, wanted, dtype, message=""):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert np.isfinite(wanted).all()
    scale = np.abs(wanted).max()
    assert scale > 1e-3, "an output that is next to nothing shows nothing"
    error = np.abs(found.astype(np.float64) - wanted).max()
    assert error <= TOLERANCE[np.dtype(dtype).name] * scale, f"{message}: {error:g} of {scale:g}"


def compare(trainer, part, onnx_run=None, c_run=None):
    """Compare a part of a trainer with its exports."""
    dtype, rows = trainer.dtype, rows_for(trainer, part)
    wanted = expected(trainer, part, rows)
    threshold = float(np.median(wanted)) if part == "detect" else None
    width = 1 if part == "detect" else wanted[0].size
    if onnx_run is not None:
        outputs = onnx_run(export.onnx_model(trainer, part, threshold=threshold), rows)
        name = {"encode": "code", "decode": "reconstruction", "reconstruct": "reconstruction"}
        assert_close(outputs.pop(name.get(part, "score")), wanted, dtype, f"onnx {part}")
        if part == "detect":
            scores = onnx_run(export.onnx_model(trainer, "score"), rows)["score"]
            np.testing.assert_array_equal(outputs.pop("outlier"), scores > threshold)
        assert not outputs
    if c_run is not None:
        source = export.c_source(trainer, part, prefix="net", threshold=threshold)
        found, returned = c_run(source, f"net_{part}", rows, width)
        if part == "score":
            assert np.isnan(found).all()  # it had no output to write to
            found = returned.astype(dtype)
        elif part == "detect":
            found = found[:, 0]
            np.testing.assert_array_equal(returned, found > threshold)
            assert set(returned) == {0, 1}
        assert_close(found.reshape(wanted.shape), wanted, dtype, f"C {part}")


# -- the systems, the layers, the activations ----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_systems_in_onnx(name, dtype, onnx_run):
    trainer = trainer_of(MODELS[name](), dtype)
    for part in PARTS:
        compare(trainer, part, onnx_run=onnx_run)


@pytest.mark.parametrize("part", ["encode", "decode", "reconstruct"])
@pytest.mark.parametrize("name", MODELS)
def test_systems_in_c(name, part, c_run):
    compare(trainer_of(MODELS[name]()), part, c_run=c_run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autoencnet_in_c_has_both_dtypes(dtype, c_run):
    for part in PARTS:
        compare(trainer_of(MODELS["autoencnet"](), dtype), part, c_run=c_run)


def zoo(activation):
    """A network with every class of layer, and the activation in every layer that has one."""
    return Network(
        encoder=[
            GaussianNoise(0.3),
            MaskingNoise(0.4),
            Dense(12, activation),
            Parallel(
                [],
                [Dropout(0.5)],
                [Dense(12, activation, use_bias=False, name="a-b"), Activation(activation)],
                [Parallel([Dense(12)], [BatchNorm(activation=activation)], []), Dense(12, activation)],
            ),
            BatchNorm(activation=activation, epsilon=0.1),
            Subsample(5),
        ],
        decoder=[
            Activation(activation),
            Dense(3, activation, kernel_initializer="identity", trainable=False, name="fixed"),
            Dense(11, activation),
        ],
        input_shape=11,
        name="zoo",
    )


def image_zoo(activation, groups=2):
    """A network with every class of layer of images, no two numbers of a pair alike."""
    return Network(
        encoder=[
            Conv2D(6, (3, 2), (1, 2), (1, 0, 2, 1), (2, 1), activation=activation),
            Parallel(
                [BatchNorm(activation=activation)],
                [Conv2D(6, 3, padding="same", groups=3, use_bias=False)],
                [Conv2D(6, (1, 3), padding="same", groups=2), Activation(activation)],
            ),
            MaxPool2D((2, 3), (1, 2), (1, 1, 0, 1)),
            AvgPool2D(2, (2, 1), (1, 0)),
            AvgPool2D((1, 3), 1, (0, 1), count_include_pad=False),
            Flatten(),
            Dense(24),
        ],
        decoder=[
            Reshape((4, 2, 3)),
            Upsample2D((2, 1)),
            ConvTranspose2D(
                6, (3, 2), (1, 2), (1, 0, 0, 1), (1, 2), groups, activation, output_padding=(0, 1)
            ),
            ConvTranspose2D(2, (2, 3), (2, 1), "same", use_bias=False, activation=activation),
            Conv2D(2, (3, 1), padding=(1, 0)),
            Flatten(),
            Dense(108),
            Reshape((2, 9, 6)),
        ],
        input_shape=(2, 9, 6),
        name="image zoo",
    )


def walk(layers):
    for layer in layers:
        yield layer
        for branch in getattr(layer, "branches", ()):
            yield from walk(branch)


def test_zoos_have_every_class_of_layer():
    nets = zoo("linear"), image_zoo("linear")
    found = {type(layer) for net in nets for layer in walk(net.encoder + net.decoder)}
    assert found == set(LAYERS.values())


@pytest.mark.parametrize("emit", [nodes.emit, c99.emit], ids=["onnx", "c"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_class_of_layer_has_an_export(kind, emit):
    assert emit.dispatch(LAYERS[kind]) is not emit.dispatch(Layer)


def test_every_activation_has_an_export():
    assert {"linear", *nodes.OPERATORS} == set(ACTIVATION_NAMES)
    assert {"linear", "softmax", *c99.ACTIVATIONS} == set(ACTIVATION_NAMES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_layers_and_activations_in_onnx(activation, dtype, onnx_run):
    for part in PARTS:
        compare(trainer_of(zoo(activation), dtype), part, onnx_run=onnx_run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_layers_and_activations_in_c(activation, dtype, c_run):
    for part in PARTS:
        compare(trainer_of(zoo(activation), dtype), part, c_run=c_run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [name for name in ACTIVATION_NAMES if name != "softmax"])
def test_layers_of_images_in_onnx(activation, dtype, onnx_run):
    groups = 2 if dtype == "float32" else 1  # onnx's reference takes groups wrongly where it transposes
    for part in PARTS:
        compare(trainer_of(image_zoo(activation, groups), dtype), part, onnx_run=onnx_run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [name for name in ACTIVATION_NAMES if name != "softmax"])
def test_layers_of_images_in_c(activation, dtype, c_run):
    for part in PARTS:
        compare(trainer_of(image_zoo(activation), dtype), part, c_run=c_run)


PADDINGS = st.one_of(st.sampled_from(["same", "valid"]), st.tuples(*[st.integers(0, 1)] * 4))
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([Conv2D, ConvTranspose2D, MaxPool2D, AvgPool2D]),
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    stride=PAIRS,
    padding=PADDINGS,
    dilation=PAIRS,
    groups=st.sampled_from([1, 2]),
)
def test_geometry(kind, size, kernel, stride, padding, dilation, groups, onnx_run, c_run):
    shape = (4, *size)
    layer = (
        kind(6, kernel, stride, padding, dilation, groups, activation="tanh")
        if kind in (Conv2D, ConvTranspose2D)
        else kind(kernel, stride, padding)
    )
    try:
        net = Network([layer], [Flatten()], shape)
    except ValueError:
        assume(False)
    compare(trainer_of(net), "encode", onnx_run, c_run)


CHAINS = st.recursive(
    st.sampled_from([Dense(4), Dense(4, "tanh"), BatchNorm(), Activation("relu"), Dropout(0.5)]),
    lambda layers: st.lists(st.lists(layers, max_size=3), min_size=2, max_size=3).map(lambda b: Parallel(*b)),
    max_leaves=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(encoder=st.lists(CHAINS, min_size=1, max_size=3), decoder=st.lists(CHAINS, min_size=1, max_size=2))
def test_branches_share_no_memory_that_is_in_use(encoder, decoder, onnx_run, c_run):
    # relu may make a narrow code all zeros; a branch beside it does not
    net = Network([Parallel([], encoder)], [Parallel([], decoder)], 4)
    compare(trainer_of(net), "reconstruct", onnx_run, c_run)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_numbers_in_c(activation, dtype, c_run):
    trainer = Trainer(Network([Activation(activation)], [Dropout(0.1)], 1), dtype=dtype, backend="numpy")
    x = np.array(
        [0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 20, -20, 90, -90, 1e5, -1e5, np.inf, -np.inf, np.nan]
    )
    rows = x.astype(dtype)[:, None]
    if activation == "softmax":
        rows = rows[:-3]  # of a row of one infinite number there is none
    found, _ = c_run(export.c_source(trainer, prefix="net"), "net_reconstruct", rows, 1)
    np.testing.assert_allclose(found, trainer.reconstruct(rows), rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_numbers_in_onnx(activation, dtype, onnx_run):
    trainer = Trainer(Network([Activation(activation)], [Dropout(0.1)], 1), dtype=dtype, backend="numpy")
    rows = np.array([0.0, 1e-4, -1e-4, 20, -20, 90, -90, 1e5, -1e5]).astype(dtype)[:, None]
    (found,) = onnx_run(export.onnx_model(trainer), rows).values()
    np.testing.assert_allclose(found, trainer.reconstruct(rows), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_network_that_computes_nothing(onnx_run, c_run):
    trainer = Trainer(Network([Dropout(0.1)], [GaussianNoise(0.1)], 3), backend="numpy")
    rows = rows_for(trainer)
    for part in ("encode", "decode", "reconstruct"):
        (found,) = onnx_run(export.onnx_model(trainer, part), rows).values()
        np.testing.assert_array_equal(found, rows)
        found, _ = c_run(export.c_source(trainer, part), f"fastae_{part}", rows, 3)
        np.testing.assert_array_equal(found, rows)
    (found,) = onnx_run(export.onnx_model(trainer, "score"), rows).values()
    np.testing.assert_array_equal(found, np.zeros(5))
    _, returned = c_run(export.c_source(trainer, "score"), "fastae_score", rows, 1)
    np.testing.assert_array_equal(returned, np.zeros(5))


def test_trained_weights_are_exported(onnx_run, c_run):
    """After training, with the running statistics that it left, on rows it never saw."""
    X = fastae.datasets.rows(fastae.datasets.digits_canvas())
    net = Network([Dense(24), BatchNorm(activation="relu"), Dense(6)], [Dense(225, "sigmoid")], 225)
    trainer = Trainer(net, optimizer=fastae.Adam(3e-3), seed=0, backend="numpy")
    before = trainer.reconstruct(X[1600:])
    trainer.fit(X[:1600], epochs=3)
    wanted = trainer.reconstruct(X[1600:])
    assert np.abs(wanted - before).max() > 0.1
    (found,) = onnx_run(export.onnx_model(trainer), X[1600:]).values()
    assert_close(found, wanted, "float32")
    found, _ = c_run(export.c_source(trainer), "fastae_reconstruct", X[1600:], 225)
    assert_close(found, wanted, "float32")


# -- the files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnx_model_is_as_promised(dtype, onnx_run, tmp_path):
    import onnx

    trainer = trainer_of(zoo("elu"), dtype)
    export.to_onnx(trainer, tmp_path / "zoo.onnx", "detect", threshold=0.5)
    model = onnx.load(tmp_path / "zoo.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 18)])
    (x,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["batch", 11]
    assert {o.name: len(o.type.tensor_type.shape.dim) for o in model.graph.output} == {
        "score": 1,
        "outlier": 1,
    }
    held = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    epsilons = {f"{p.name}.running_var": getattr(p.layer, "epsilon", None) for p in trainer.net.layers}
    for name, value in trainer.weights.items():
        if name == "fixed.weight":  # a identity: the product is left out
            assert name not in held
        elif name.endswith("running_var") and dtype == "float64":  # with what epsilon lost in float32
            added = held.pop(name.replace(".", "/")) - value
            epsilon = epsilons[name]
            np.testing.assert_allclose(added, epsilon - float(np.float32(epsilon)), rtol=0, atol=1e-15)
        elif name != "fixed.bias":
            np.testing.assert_array_equal(held.pop(name), value, strict=True)
    assert all("/" in name for name in held)
    for count in (1, 3, 17):
        rows = rows_for(trainer, count=count)
        outputs = onnx_run((tmp_path / "zoo.onnx").read_bytes(), rows)
        assert_close(outputs["score"], expected(trainer, "score", rows), dtype)
    rows[0] = np.nan
    assert onnx_run(model, rows)["outlier"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_in_c_are_exact(dtype):
    trainer = trainer_of(Network([Dense(3)], [Dense(4)], 4), dtype)
    weights = trainer.weights
    weights["dense_1.bias"][:] = np.array([0.0, -0.0, np.finfo(dtype).smallest_subnormal], dtype)
    weights["dense_2.bias"][:2] = np.finfo(dtype).max, np.finfo(dtype).tiny
    trainer.set_weights(weights)
    arrays = re.findall(r"\] = \{(.*?)\};", export.c_source(trainer), re.DOTALL)
    assert len(arrays) == len(weights)
    for text, value in zip(arrays, weights.values(), strict=True):
        numbers = np.array([float.fromhex(n.strip().rstrip("f")) for n in text.split(",")])
        assert numbers.astype(dtype).tobytes() == value.tobytes()
        np.testing.assert_array_equal(numbers.astype(dtype), numbers)  # rounding changed nothing


def test_c_file_has_one_function_and_needs_nothing(compiler, tmp_path):
    """Not even memset: what is undefined in the object is what its head names, from <math.h>."""
    for activation, names in (
        ("sigmoid", {"expf"}),
        ("elu", {"expm1f"}),
        ("tanh", {"tanhf"}),
        ("relu", set()),
    ):
        source = export.c_source(trainer_of(zoo(activation)), "detect", prefix="net", threshold=1)
        (tmp_path / "net.c").write_text(source)
        command = [compiler, *STRICT, "-O0", "-fno-stack-protector", "-c", "net.c", "-o", "net.o"]
        subprocess.run(command, cwd=tmp_path, check=True)
        listing = subprocess.run(["nm", "net.o"], cwd=tmp_path, check=True, capture_output=True, text=True)
        symbols = [line.split()[-2:] for line in listing.stdout.splitlines()]
        assert {name for kind, name in symbols if kind == "T"} == {"net_detect"}
        assert {name for kind, name in symbols if kind == "U"} == names
        assert not [name for kind, name in symbols if kind in "bBdD"], "no state"
        stated = re.search(r"From <math.h>: (.*)\.\n", source)
        assert (set(stated[1].split(", ")) if stated else set()) == names
        assert ("#include <math.h>" in source) == bool(names)
        assert all(re.match(r"net_\w+$|\.", name) for kind, name in symbols if kind in "Ttr")


def test_a_hostile_name_stays_in_its_comment(c_run):
    name = "*/ int x; /* ??/ \\ \N{SNOWMAN} #include"
    trainer = trainer_of(Network([Dense(2)], [Dense(3)], 3, name=name))
    found, _ = c_run(export.c_source(trainer), "fastae_reconstruct", rows_for(trainer), 3)
    assert_close(found, trainer.reconstruct(rows_for(trainer)), "float32")


def test_two_files_go_into_one_program(compiler, tmp_path):
    trainer = trainer_of(zoo("softplus"), "float64")
    parts = ("encode", "decode", "score")
    for part in parts:
        export.to_c(trainer, tmp_path / f"{part}.c", part)
    (row,) = rows = rows_for(trainer, count=1)
    numbers = ", ".join(float(v).hex() for v in row)
    (tmp_path / "main.c").write_text(
        "#include <stdio.h>\n"
        "void fastae_encode(const double *x, double *y);\n"
        "void fastae_decode(const double *x, double *y);\n"
        "double fastae_score(const double *x);\n"
        f"int main(void) {{ const double x[] = {{{numbers}}}; double z[3], y[11];\n"
        "fastae_encode(x, z); fastae_decode(z, y);\n"
        'printf("%.17g %.17g\\n", y[10], fastae_score(x)); return 0; }\n'
    )
    files = [f"{part}.c" for part in (*parts, "main")]
    subprocess.run([compiler, *STRICT, *files, "-o", "main", "-lm"], cwd=tmp_path, check=True)
    out = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    wanted = [trainer.reconstruct(rows)[0, 10], expected(trainer, "score", rows)[0]]
    np.testing.assert_allclose([float(number) for number in out.split()], wanted, rtol=1e-12)


def test_nan_is_an_outlier_in_c(c_run):
    trainer = trainer_of(zoo("tanh"))
    rows = rows_for(trainer)
    rows[2, 0] = np.nan
    source = export.c_source(trainer, "detect", threshold=1e6)
    scores, flags = c_run(source, "fastae_detect", rows, 1)
    assert np.isnan(scores[:, 0]).tolist() == flags.tolist() == [False, False, True, False, False]


def test_fitted_estimators_bring_trainer_and_threshold():
    trainer = trainer_of(zoo("relu"))
    detector = SimpleNamespace(trainer_=trainer, offset_=-0.75)
    wanted = export.c_source(trainer, "detect", threshold=0.75)
    assert export.c_source(detector, "detect") == wanted
    assert export.c_source(detector, "detect", threshold=2) != wanted
    assert export.c_source(detector, "encode") == export.c_source(trainer, "encode")


# -- what is refused -----------------------------------------------------------------------------------

WRITERS = pytest.mark.parametrize("write", [export.to_onnx, export.to_c], ids=["onnx", "c"])


@WRITERS
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"part": "encoder"}, ValueError, "part: expected one of encode, .*, given 'encoder'"),
        ({"part": None}, ValueError, "part: expected one of"),
        ({"part": "detect"}, ValueError, "threshold: part 'detect' needs"),
        ({"part": "detect", "threshold": -1}, ValueError, "threshold must be finite and >= 0; got -1"),
        ({"part": "detect", "threshold": float("nan")}, ValueError, "threshold must be finite"),
        ({"part": "encode", "threshold": 1}, ValueError, "threshold: expected with part 'detect' alone"),
        ({"force": 1}, TypeError, "force: expected True or False, given 1"),
        ({"model": "x"}, TypeError, "model: expected a Trainer or a fitted estimator, given str"),
        ({"model": SimpleNamespace()}, TypeError, "model: expected a Trainer or a fitted estimator"),
        ({"path": 3}, TypeError, "path: expected a str or a path, given int"),
        ({"path": b"x"}, TypeError, "path: expected a str or a path, given bytes"),
    ],
)
def test_refuses(write, arguments, error, message, tmp_path, onnx_run):
    given = {"model": trainer_of(zoo("relu")), "path": tmp_path / "file"} | arguments
    with pytest.raises(error, match=message):
        write(given.pop("model"), given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["", "1a", "_a", "a-b", "a b", "a\n", "é", "a" * 41, None, 3])
def test_refuses_a_prefix(prefix, tmp_path):
    with pytest.raises(ValueError, match="prefix: expected a letter and then at most 39"):
        export.to_c(trainer_of(zoo("relu")), tmp_path / "file.c", prefix=prefix)
    assert not list(tmp_path.iterdir())


@WRITERS
def test_refuses_to_score_what_has_another_size(write, tmp_path, onnx_run):
    trainer = Trainer(Network([Dense(2)], [Dense(3)], 4), backend="numpy")
    with pytest.raises(ValueError, match=r"this network makes \(3,\) of \(4,\)"):
        write(trainer, tmp_path / "file", "score")
    write(trainer, tmp_path / "file", "reconstruct")


@WRITERS
def test_names_a_layer_that_nobody_taught(write, tmp_path, onnx_run, monkeypatch):
    @dataclass(frozen=True)
    class Twice(Layer):
        kind: ClassVar[str] = "twice"

        def output_shape(self, shape):
            return shape

    monkeypatch.setitem(LAYERS, "twice", Twice)
    trainer = Trainer(Network([Twice()], [Dense(3)], 3))
    with pytest.raises(NotImplementedError, match="no export of layers of type twice"):
        write(trainer, tmp_path / "file")
    assert not list(tmp_path.iterdir())


@WRITERS
def test_replaces_only_when_told(write, tmp_path, onnx_run):
    trainer, path = trainer_of(zoo("relu")), tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write(trainer, path)
    assert path.read_text() == "mine"
    write(trainer, path, force=True)
    assert path.stat().st_size > 1000
    with pytest.raises(IsADirectoryError):
        write(trainer, tmp_path, force=True)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write(trainer, tmp_path / "none" / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        export.to_c(trainer_of(zoo("relu")), tmp_path / "pipe", force=True)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_in_the_meantime_is_kept(tmp_path, monkeypatch, links):
    path = tmp_path / "file.c"

    def build(*arguments):
        path.write_text("mine")
        return "ours"

    if not links:

        def link(*arguments):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(c99, "build_source", build)
    with pytest.raises(FileExistsError):
        export.to_c(trainer_of(zoo("relu")), path)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file.c"]
    path.unlink()
    monkeypatch.setattr(c99, "build_source", lambda *arguments: "ours")
    export.to_c(trainer_of(zoo("relu")), path)
    assert path.read_text() == "ours"
    assert [p.name for p in tmp_path.iterdir()] == ["file.c"]


def test_names_the_extra_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install \"fastae\[onnx\]\""):
        export.to_onnx(trainer_of(zoo("relu")), tmp_path / "file")
    assert not list(tmp_path.iterdir())


# -- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    if not os.environ.get("CI"):
        pytest.importorskip("safetensors")
    trainer = trainer_of(zoo("sigmoid"))
    trainer.save(tmp_path / "zoo.safetensors")
    return trainer, tmp_path / "zoo.safetensors"


@pytest.fixture
def run(capsys):
    def run(*arguments):
        try:
            status = cli.main(["export", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("part", PARTS)
def test_command(part, run, saved, tmp_path, onnx_run):
    trainer, path = saved
    more = ("--threshold", "0.25") if part == "detect" else ()
    threshold = 0.25 if part == "detect" else None
    c, onnx = tmp_path / "zoo.c", tmp_path / "zoo.onnx"
    status, out, err = run(path, "--to", "c", "--part", part, "--out", c, "--prefix", "zoo", *more)
    assert (status, out, err) == (0, f"{c}: {part}, {c.stat().st_size:,} bytes\n", "")
    assert c.read_text() == export.c_source(trainer, part, prefix="zoo", threshold=threshold)
    assert run(path, "--to", "onnx", "--part", part, "--out", onnx, *more)[0] == 0
    rows = rows_for(trainer, part)
    outputs = onnx_run(onnx.read_bytes(), rows)
    assert_close(next(iter(outputs.values())), expected(trainer, part, rows), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "{out} exists; give another --out, or --force to replace it"),
        (("--part", "detect", "--force"), "threshold: part 'detect' needs the score"),
        (("--part", "detect", "--threshold", "-1", "--force"), "threshold must be finite and >= 0; got -1.0"),
        (("--threshold", "1", "--force"), "threshold: expected with part 'detect' alone"),
        (("--prefix", "a-b", "--force"), "prefix: expected a letter"),
        (("--to", "onnx", "--prefix", "a", "--force"), "--prefix: expected with --to c alone"),
    ],
)
def test_command_refuses(arguments, message, run, saved, tmp_path):
    there = tmp_path / "there"
    there.write_text("mine")
    status, out, err = run(saved[1], "--to", "c", "--out", there, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("fastae: error: " + message.format(out=there))
    assert there.read_text() == "mine"


@pytest.mark.parametrize("content", [None, b"", b"no model", b"{}" * 100])
def test_command_refuses_other_files(content, run, tmp_path):
    model = tmp_path / "model.safetensors"
    if content is not None:
        model.write_bytes(content)
    status, out, err = run(model, "--to", "c", "--out", tmp_path / "out.c")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert str(model) in err
    assert not (tmp_path / "out.c").exists()


def test_command_wants_format_and_file(run, tmp_path):
    assert run("model")[0] == 2
    assert run("model", "--to", "tflite", "--out", "x")[0] == 2


def test_parts_of_the_command_are_all(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "{" + ",".join(PARTS) + "}" in out
    assert "examples:" in out
