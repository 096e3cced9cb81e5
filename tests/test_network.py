"""Declarations: layers, networks, initial weights, losses, optimisers, recipes."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fastae import initializers, layers, losses, models, optimizers
from fastae.kernels.table import KERNELS
from fastae.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    GaussianNoise,
    MaskingNoise,
    Parallel,
    Subsample,
)
from fastae.network import Network, Recipe
from fastae.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop


def small(**more):
    return Network([Dense(3, "relu", name="code")], [Dense(5, name="out")], (5,), **more)


def test_autoencnet_is_the_published_network():
    net = models.autoencnet()
    assert (net.input_shape, net.code_shape, net.output_shape) == ((225,), (75,), (225,))
    shapes = {p.name: p.shape for p in net.parameters}
    assert shapes == {
        "in.weight": (225, 75),
        "in.bias": (75,),
        "rec.weight": (75, 75),
        "rec.bias": (75,),
        "link.weight": (75, 75),
        "out.weight": (75, 225),
        "out.bias": (225,),
    }
    assert {p.name for p in net.parameters if not p.trainable} == {"rec.weight", "rec.bias"}
    assert net.n_parameters == 45375
    assert net.n_trainable == 45375 - 5700
    recipe = net.recipe
    assert (recipe.loss, recipe.optimizer, recipe.batch_size) == ("sse", SGD(1e-4), 20)
    assert (recipe.dtype, recipe.sampling, recipe.updates) == ("float64", "replacement", 1000)


def widths(net):
    return [p.layer.units for p in net.layers if isinstance(p.layer, Dense)]


def activations(net):
    return [p.layer.activation for p in net.layers if isinstance(p.layer, Dense)]


def test_quark_mlp_is_the_published_network():
    net = models.quark_mlp()
    assert net.n_parameters == net.n_trainable == 16584
    assert (widths(net), activations(net)) == ([10, 10, 784], ["sigmoid", "relu", "sigmoid"])
    assert (net.input_shape, net.code_shape, net.output_shape) == ((784,), (10,), (784,))
    recipe = net.recipe
    assert (recipe.loss, recipe.optimizer, recipe.batch_size, recipe.epochs) == ("mse", Adam(1e-3), 32, 10)
    assert recipe.published == {
        "parameters": 16584,
        "validation_loss_epoch_1": 0.0675,
        "validation_loss": 0.0566,
        "minutes": 23,
    }
    assert recipe.reference["validation_loss"] == 0.0460
    lines = net.summary().splitlines()
    assert lines[2].split() == ["layer", "input", "output", "activation", "bias", "parameters"]
    assert lines[5].split() == ["hidden", "784", "10", "sigmoid", "yes", "7850"]
    assert lines[-1] == "16584 parameters, 16584 trainable"


def test_batchnorm_mlp_is_the_published_network():
    net = models.batchnorm_mlp()
    assert (net.input_shape, net.code_shape, net.output_shape) == ((784,), (128,), (784,))
    assert widths(net) == [512, 256, 128, 256, 512, 784]
    assert activations(net) == ["linear"] * 6
    norms = [p.layer for p in net.layers if isinstance(p.layer, BatchNorm)]
    assert norms == [BatchNorm(0.1, 1e-5, "relu")] * 6
    assert [p.layer.kind for p in net.layers] == ["dense", "batchnorm"] * 6
    recipe = net.recipe
    assert (recipe.loss, recipe.optimizer, recipe.batch_size, recipe.epochs) == ("mse", Adam(1e-3), 128, 20)
    assert recipe.reference == {"training_loss": 0.0057, "validation_loss": 0.0049}
    assert widths(models.batchnorm_mlp(12, 3)) == [12, 6, 3, 6, 12, 12]
    with pytest.raises(ValueError, match="num_hidden must be an integer >= 1; got 0"):
        models.batchnorm_mlp(num_hidden=0)
    with pytest.raises(ValueError, match="image_dim must be an integer >= 1; got -1"):
        models.batchnorm_mlp(-1)


def test_deep_mlp_is_the_published_network():
    net = models.deep_mlp()
    assert widths(net) == [256, 128, 64, 32, 16, 8, 4, 8, 16, 32, 64, 128, 256, 784]
    assert activations(net) == ["relu"] * 13 + ["sigmoid"]
    assert (net.input_shape, net.code_shape, net.output_shape) == ((784,), (4,), (784,))
    recipe = net.recipe
    assert (recipe.loss, recipe.optimizer, recipe.batch_size, recipe.epochs) == ("bce", Adam(), 32, 20)


def test_deep_mlp_linear_code_is_the_published_network():
    net = models.deep_mlp_linear_code()
    assert widths(net) == [256, 128, 32, 16, 10, 16, 32, 64, 128, 256, 784]
    assert activations(net) == ["relu"] * 4 + ["linear"] + ["relu"] * 5 + ["sigmoid"]
    assert (net.input_shape, net.code_shape, net.output_shape) == ((784,), (10,), (784,))
    recipe = net.recipe
    assert recipe.optimizer == Adam(1e-3, weight_decay=1e-5)
    assert (recipe.loss, recipe.batch_size, recipe.epochs) == ("mse", 64, 10)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_starts_as_in_the_framework_of_its_document(name):
    net = models.MODELS[name]()
    assert net.name == name
    assert net.recipe is not None
    torch = name in ("batchnorm_mlp", "deep_mlp_linear_code")
    for layer in (p.layer for p in net.layers if isinstance(p.layer, Dense) and p.layer.trainable):
        start = (layer.kernel_initializer, layer.bias_initializer)
        assert start == (("uniform_fan_in",) * 2 if torch else ("glorot_uniform", "zeros"))


def test_batch_normalisation_has_statistics_that_no_gradient_trains():
    net = Network([Dense(3, name="a"), BatchNorm(name="n")], [Dense(4)], 4)
    specs = {p.name: p for p in net.parameters if p.name.startswith("n.")}
    assert [*specs] == ["n.gamma", "n.beta", "n.running_mean", "n.running_var"]
    assert [p.trainable for p in specs.values()] == [True, True, False, False]
    assert [p.statistic for p in specs.values()] == [False, False, True, True]
    weights = net.initial_weights(0)
    for name, value in zip(specs, (1, 0, 0, 1), strict=True):
        assert weights[name].tolist() == [value] * 3
    assert net.n_parameters - net.n_trainable == 6
    assert "n (6 not trainable)  3      3       linear" in net.summary()
    assert net.summary().endswith(f"{net.n_parameters} parameters, {net.n_trainable} trainable")


def test_autoencnet_of_other_sizes():
    net = models.autoencnet(16, 4)
    assert {p.name: p.shape for p in net.parameters}["link.weight"] == (6, 4)


def test_initial_weights_follow_the_declaration():
    weights = models.autoencnet().initial_weights(3)
    limit = math.sqrt(6 / (225 + 75))
    assert 0.95 * limit < abs(weights["in.weight"]).max() <= limit
    assert np.array_equal(weights["rec.weight"], np.eye(75))
    assert not weights["in.bias"].any()
    assert not weights["rec.bias"].any()


def test_initial_weights_are_the_same_for_a_seed_and_rounded_from_float64():
    net = models.autoencnet()
    a, b, c = net.initial_weights(7), net.initial_weights(7), net.initial_weights(8)
    single = net.initial_weights(7, "float32")
    for name in a:
        assert a[name].dtype == np.float64
        assert np.array_equal(a[name], b[name])
        assert single[name].dtype == np.float32
        assert np.array_equal(a[name].astype(np.float32), single[name])
    assert not np.array_equal(a["in.weight"], c["in.weight"])
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        net.initial_weights(0, "float16")


@pytest.mark.parametrize(
    ("name", "low", "high", "deviation"),
    [
        ("zeros", 0, 0, 0),
        ("ones", 1, 1, 0),
        ("glorot_uniform", -math.sqrt(6 / 500), math.sqrt(6 / 500), math.sqrt(2 / 500)),
        ("glorot_normal", -math.inf, math.inf, math.sqrt(2 / 500)),
        ("he_uniform", -math.sqrt(6 / 300), math.sqrt(6 / 300), math.sqrt(2 / 300)),
        ("he_normal", -math.inf, math.inf, math.sqrt(2 / 300)),
        ("uniform_fan_in", -math.sqrt(1 / 300), math.sqrt(1 / 300), math.sqrt(1 / 900)),
    ],
)
def test_initializer_has_its_range_and_deviation(name, low, high, deviation):
    w = initializers.initialize(name, np.random.default_rng(0), (300, 200), 300, 200)
    assert w.shape == (300, 200)
    assert w.min() >= low
    assert w.max() <= high
    assert w.std() == pytest.approx(deviation, rel=0.02)


def test_a_bias_is_drawn_for_the_inputs_of_its_layer():
    net = Network([Dense(50, bias_initializer="uniform_fan_in")], [Dense(9)], 100)
    bias = net.initial_weights(0)["dense_1.bias"]
    assert 0.05 < abs(bias).max() <= 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(0), "units must be an integer >= 1; got 0"),
        (lambda: Dense(True), "units must be an integer >= 1; got True"),
        (lambda: Dense(2.5), "units must be an integer >= 1; got 2.5"),
        (lambda: Dense(3, "step"), "activation must be one of linear, relu, .*; got 'step'"),
        (lambda: Dense(3, []), "activation must be one of"),
        (lambda: Dense(3, use_bias=1), "use_bias must be True or False; got 1"),
        (lambda: Dense(3, trainable=None), "trainable must be True or False"),
        (lambda: Dense(3, kernel_initializer="x"), "kernel_initializer must be one of zeros, .*; got 'x'"),
        (lambda: Dense(3, bias_initializer="identity"), "bias_initializer must be one of"),
        (lambda: Dense(3, name="a.b"), "name must be None, or a letter"),
        (lambda: Dense(3, name=""), "name must be None, or a letter"),
        (lambda: Dense(3, name="in\n"), "name must be None, or a letter"),
        (lambda: Activation("softplus2"), "activation must be one of"),
        (lambda: Dense(3, "Softmax"), "activation must be one of linear, .*, softmax; got 'Softmax'"),
        (lambda: BatchNorm(1.5), r"momentum must be finite and in \[0, 1\]; got 1.5"),
        (lambda: BatchNorm(-0.1), r"momentum must be finite and in \[0, 1\]; got -0.1"),
        (lambda: BatchNorm("0.1"), "momentum must be a number; got '0.1'"),
        (lambda: BatchNorm(epsilon=0), "epsilon must be finite and > 0; got 0"),
        (lambda: BatchNorm(epsilon=math.inf), "epsilon must be finite and > 0; got inf"),
        (lambda: BatchNorm(activation="softmin"), "activation must be one of"),
        (lambda: BatchNorm(name="a.b"), "name must be None, or a letter"),
        (lambda: Dropout(1), r"rate must be finite and in \[0, 1\); got 1"),
        (lambda: Dropout(-0.5), r"rate must be finite and in \[0, 1\); got -0.5"),
        (lambda: Dropout(math.nan), r"rate must be finite and in \[0, 1\); got nan"),
        (lambda: Dropout(None), "rate must be a number; got None"),
        (lambda: MaskingNoise(1.0), r"rate must be finite and in \[0, 1\); got 1.0"),
        (lambda: GaussianNoise(-1), "stddev must be finite and >= 0; got -1"),
        (lambda: GaussianNoise(math.inf), "stddev must be finite and >= 0; got inf"),
        (
            lambda: Network([BatchNorm(name="n")], [Dense(4)], (2, 2)),
            r"layer 'n': input of BatchNorm must have one dimension",
        ),
        (
            lambda: Network([Activation("softmax", name="s")], [Dense(4)], (2, 2)),
            r"layer 's': input of a softmax must have one dimension",
        ),
        (lambda: Subsample(0), "stride must be an integer >= 1; got 0"),
        (lambda: Parallel([Dense(2)]), "branches must be two or more"),
        (lambda: Parallel([Dense(2)], "ab"), r"branches\[1\] must be a sequence of layers"),
        (lambda: Parallel([Dense(2)], [Dense]), r"branches\[1\]\[0\] must be a layer"),
        (lambda: Network([], [Dense(2)], 2), "encoder must have one or more layers"),
        (lambda: Network([Dense(2)], [], 2), "decoder must have one or more layers"),
        (lambda: Network(Dense(2), [Dense(2)], 2), "encoder must be a sequence of layers"),
        (lambda: Network([Dense(2)], [3], 2), r"decoder\[0\] must be a layer .*; got 3"),
        (lambda: Network([Dense(2)], [Dense(2)], ()), "input_shape must be an integer >= 1"),
        (lambda: Network([Dense(2)], [Dense(2)], (4, 0)), "input_shape must be an integer >= 1; got 0"),
        (lambda: Network([Dense(2)], [Dense(2)], True), "input_shape must be an integer >= 1; got True"),
        (lambda: Network([Dense(2)], [Dense(2)], "12"), "input_shape must be an integer >= 1"),
        (lambda: Network([Dense(2)], [Dense(2)], 2, name=3), "name must be None or a printable text"),
        (lambda: Network([Dense(2)], [Dense(2)], 2, recipe={}), "recipe must be None or a Recipe"),
        (
            lambda: Network([Dense(2, name="a")], [Parallel([Dense(2, name="a")], [])], 2),
            "names of layers must differ; 'a' is given twice",
        ),
        (
            lambda: Network([Parallel([Dense(2)], [Dense(3)], name="fork")], [Dense(2)], 2),
            r"layer 'fork' sums its branches, .* one output shape; got \(2,\), \(3,\)",
        ),
        (
            lambda: Network([Activation("relu")], [Dense(2, name="late")], (4, 4)),
            r"layer 'late': input of Dense must have one dimension, .* got shape \(4, 4\)",
        ),
        (lambda: SGD(0), "learning_rate must be finite and > 0; got 0"),
        (lambda: SGD(-1.0), "learning_rate must be finite and > 0"),
        (lambda: SGD(math.nan), "learning_rate must be finite and > 0"),
        (lambda: SGD(math.inf), "learning_rate must be finite and > 0"),
        (lambda: SGD("fast"), "learning_rate must be a number; got 'fast'"),
        (lambda: SGD(True), "learning_rate must be a number; got True"),
        (lambda: SGD(momentum=1), r"momentum must be finite and in \[0, 1\); got 1"),
        (lambda: SGD(nesterov=True), "nesterov needs a momentum > 0; got momentum 0"),
        (lambda: SGD(momentum=0.9, nesterov=1), "nesterov must be True or False; got 1"),
        (lambda: SGD(weight_decay=-1e-3), "weight_decay must be finite and >= 0; got -0.001"),
        (lambda: SGD(clip_norm=0), "clip_norm must be finite and > 0; got 0"),
        (lambda: Adam(-1e-3), "learning_rate must be finite and > 0; got -0.001"),
        (lambda: Adam(betas=(0.9, 1)), r"betas\[1\] must be finite and in \[0, 1\); got 1"),
        (lambda: Adam(betas=(-0.1, 0.9)), r"betas\[0\] must be finite and in \[0, 1\); got -0.1"),
        (lambda: Adam(betas=0.9), r"betas must be two numbers in \[0, 1\); got 0.9"),
        (lambda: Adam(betas=(0.9,)), r"betas must be two numbers in \[0, 1\); got \(0.9,\)"),
        (lambda: Adam(epsilon=0), "epsilon must be finite and > 0; got 0"),
        (lambda: AdamW(weight_decay=math.inf), "weight_decay must be finite and >= 0; got inf"),
        (lambda: RMSprop(alpha=1.0), r"alpha must be finite and in \[0, 1\); got 1.0"),
        (lambda: Adagrad(weight_decay=-1), "weight_decay must be finite and >= 0; got -1"),
        (lambda: Adagrad(clip_norm=math.nan), "clip_norm must be finite and > 0; got nan"),
        (lambda: losses.huber(0), "delta must be finite and > 0; got 0"),
        (lambda: losses.from_dict("mse"), "loss must be a dict whose type is one of sse"),
        (lambda: losses.from_dict({"type": "l2"}), "loss must be a dict whose type is one of sse"),
        (lambda: losses.from_dict({"type": "mse", "delta": 1}), "loss mse has no field delta"),
        (lambda: Recipe("sse", SGD(), 1, 1, published=3), "published must be a dict of figures; got 3"),
        (
            lambda: Recipe("sse", SGD(), 1, 1, reference={"loss": None}),
            "reference must have numbers or texts under names; got 'loss': None",
        ),
        (lambda: losses.resolve("huberish"), "loss must be one of sse, mse.*; got 'huberish'"),
        (lambda: losses.resolve(None), "loss must be one of"),
        (lambda: optimizers.resolve("sdg"), "optimizer must be an optimiser or one of sgd.*; got 'sdg'"),
        (lambda: optimizers.resolve(SGD), "optimizer must be an optimiser or one of"),
        (lambda: Recipe("sse", SGD(), 0, 1), "batch_size must be an integer >= 1; got 0"),
        (lambda: Recipe("sse", SGD(), 1, 1, dtype="float16"), "dtype must be float32 or float64"),
        (lambda: Recipe("sse", SGD(), 1, 1, sampling="often"), "sampling must be one of"),
        (lambda: Recipe("sse", "sgd", 1, 1), "optimizer of a recipe must be an optimiser"),
    ],
)
def test_invalid_declarations_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_cannot_be_nested_without_end():
    layer = Dense(2)
    for _ in range(40):
        layer = Parallel([layer], [])
    with pytest.raises(ValueError, match="nested deeper"):
        Network([layer], [Dense(2)], 2)
    with pytest.raises(ValueError, match="nested deeper"):
        layers.from_dict(layers.to_dict(layer))


def test_declarations_do_not_change():
    for thing, name in (
        (Dense(2), "units"),
        (Parallel([], []), "name"),
        (small(), "name"),
        (SGD(), "learning_rate"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)


def test_layers_without_name_get_one_that_is_free():
    net = Network([Dense(2), Dense(3, name="dense_2"), Activation("tanh")], [Dense(4)], 4)
    assert [p.name for p in net.layers] == ["dense_1", "dense_2", "activation_1", "dense_3"]


def test_one_declaration_may_stand_twice():
    layer = Dense(4)
    net = Network([layer], [layer], 4)
    assert [p.name for p in net.parameters] == [
        "dense_1.weight",
        "dense_1.bias",
        "dense_2.weight",
        "dense_2.bias",
    ]


def test_shapes_are_inferred():
    net = Network([Subsample(3), Dense(2)], [Parallel([Dense(10)], [Dense(10), Activation("relu")])], 10)
    assert [p.output_shape for p in net.placed_encoder] == [(4,), (2,)]
    assert net.output_shape == (10,)
    assert Network([Activation("relu")], [Activation("tanh")], (2, 3)).output_shape == (2, 3)


def test_a_network_comes_back_from_its_dict():
    every = [Dropout(0.5), GaussianNoise(0.1), MaskingNoise(0.2), Activation("softmax"), BatchNorm(0.2, 1e-3)]
    for net in (
        small(),
        small(name="s"),
        small(recipe=Recipe("huber", AdamW(clip_norm=1), 2, 3, published={"what": "a picture"})),
        Network(every, [Dense(4, "elu")], 4),
        models.autoencnet(9, 2),
        *(model() for model in models.MODELS.values()),
    ):
        data = net.to_dict()
        again = Network.from_dict(json.loads(json.dumps(data)))
        assert again == net
        assert hash(again) == hash(net)
        assert again.to_dict() == data
    assert models.autoencnet() != models.autoencnet(hidden=70)
    assert small() != small(name="other")


def damage(path, value):
    data = json.loads(json.dumps(models.autoencnet().to_dict()))
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a network must be a dict"),
        (damage(["more"], 1), "wrong: more"),
        (damage(["encoder"], KeyError), "wrong: encoder"),
        (damage(["encoder"], "abc"), "encoder must be a list"),
        (damage(["decoder", 0], 7), "a layer must be a dict"),
        (
            damage(["decoder", 0, "type"], "os.system"),
            "must be one of dense, .*; got 'os.system'",
        ),
        (damage(["decoder", 0, "type"], ["dense"]), "type of a layer must be one of"),
        (damage(["decoder", 0, "type"], KeyError), "type of a layer must be one of"),
        (damage(["decoder", 0, "units"], KeyError), "layer of type dense: .*units"),
        (damage(["decoder", 0, "units"], "9"), "units must be an integer"),
        (damage(["decoder", 0, "unit"], 9), "layer of type dense has no field unit"),
        (damage(["encoder", 0, "branches"], 9), "branches of a parallel layer must be a list"),
        (damage(["encoder", 0, "branches"], KeyError), "branches of a parallel layer must be a list"),
        (damage(["encoder", 0, "branches"], [[]]), "branches must be two or more"),
        (damage(["input_shape"], [0]), "input_shape must be an integer >= 1"),
        (damage(["recipe"], []), "recipe must be None or a dict"),
        (damage(["recipe", "loss"], "x"), "loss must be one of"),
        (damage(["recipe", "epochs"], KeyError), "recipe: .*epochs"),
        (damage(["recipe", "optimizer"], "sgd"), "optimizer must be a dict"),
        (damage(["recipe", "optimizer", "type"], "x"), "optimizer must be a dict whose type is one of"),
        (damage(["recipe", "optimizer", "type"], ["sgd"]), "optimizer must be a dict whose type is one of"),
        (damage(["recipe", "optimizer", "rate"], 1), "optimizer sgd has no field rate"),
        (damage(["recipe", "optimizer", "learning_rate"], None), "learning_rate must be a number"),
    ],
)
def test_a_wrong_dict_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Network.from_dict(data)


def test_the_summary_has_every_layer_and_the_totals():
    text = models.autoencnet().summary()
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line and line[0] != "-"}
    assert rows["in"] == ["in", "225", "75", "relu", "yes", "16950"]
    assert rows["rec"] == ["rec", "(fixed)", "75", "75", "relu", "yes", "5700"]
    assert rows["link"] == ["link", "75", "75", "linear", "no", "5625"]
    assert rows["out"] == ["out", "75", "225", "relu", "yes", "17100"]
    assert text.splitlines()[0] == "autoencnet"
    assert text.splitlines()[-1] == "45375 parameters, 39675 trainable"
    assert "branch 2 (input as it is)" in Network([Parallel([Dense(3)], [])], [Dense(3)], 3).summary()


def test_losses_and_optimisers_have_their_kernels():
    for name, loss in losses.LOSSES.items():
        assert loss.name == name
        assert KERNELS[loss.kernel].loss
        assert loss.reduction in ("sum", "mean")
        assert losses.resolve(name) is loss
        assert losses.resolve(loss) is loss
    for name, cls in optimizers.OPTIMIZERS.items():
        optimizer = optimizers.resolve(name)
        assert type(optimizer) is cls
        assert optimizers.resolve(optimizer) is optimizer
    for optimizer in (
        *(cls() for cls in optimizers.OPTIMIZERS.values()),
        SGD(0.5, momentum=0.5, nesterov=True, weight_decay=0.5, clip_norm=2),
        Adam(betas=[0, 0.5]),
    ):
        data = json.loads(json.dumps(optimizers.to_dict(optimizer)))
        assert optimizers.from_dict(data) == optimizer
        flat = {a.name for a in KERNELS[optimizer.kernel].arguments} - {"step"}
        assert flat == {"g", "w", *optimizer.states, *optimizer.constants}
        if optimizer.dense_kernel is not None:
            row = KERNELS[optimizer.dense_kernel]
            dense = {a.name for a in row.arguments if getattr(a, "role", "") != "work"} - {"step"}
            states = {f"{s}_{part}" for s in optimizer.states for part in "wb"}
            assert dense == {"x", "da", "w", "b", *states, *optimizer.constants}


def test_optimisers_have_the_defaults_of_pytorch():
    assert (RMSprop().learning_rate, RMSprop().alpha, RMSprop().epsilon) == (1e-2, 0.99, 1e-8)
    assert (Adagrad().learning_rate, Adagrad().epsilon) == (1e-2, 1e-10)
    assert (Adam().learning_rate, Adam().betas, Adam().epsilon) == (1e-3, (0.9, 0.999), 1e-8)
    assert (Adam().weight_decay, AdamW().weight_decay) == (0, 1e-2)
    assert Adam().constants["decoupled"] == 0
    assert AdamW().constants["decoupled"] == 1
    assert str(Adam(clip_norm=1)) == "Adam(learning_rate=0.001, clip_norm=1.0)"
    assert str(SGD(momentum=0.5)) == "SGD(learning_rate=0.01, momentum=0.5)"


def test_losses_know_their_targets_and_constants():
    assert losses.resolve("l1") is losses.LOSSES["mae"]
    ranges = {name: loss.target_range for name, loss in losses.LOSSES.items() if loss.target_range}
    assert ranges == {"bce": (0, 1), "bce_with_logits": (0, 1)}
    assert losses.resolve("huber").constants == {"delta": 1}
    assert losses.huber(0.5).constants == {"delta": 0.5}
    assert losses.LOSSES["mse"].constants == {}
    for loss in (*losses.LOSSES.values(), losses.huber(0.25)):
        assert losses.from_dict(json.loads(json.dumps(losses.to_dict(loss)))) == loss
