"""Declarations: layers, networks, initial weights, losses, optimisers, recipes."""

import dataclasses
import json
import math

import numpy as np
import pytest

from fastae import initializers, layers, losses, models, optimizers
from fastae.kernels.table import KERNELS
from fastae.layers import Activation, Dense, Parallel, Subsample
from fastae.network import Network, Recipe
from fastae.optimizers import SGD


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
    for net in (small(), models.autoencnet(), models.autoencnet(9, 2), small(name="s")):
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
        assert optimizers.from_dict(optimizers.to_dict(optimizer)) == optimizer
        flat = {a.name for a in KERNELS[cls.kernel].arguments}
        assert flat == {"g", "w", *cls.states, *optimizer.constants}
        if cls.dense_kernel is not None:
            dense = {a.name for a in KERNELS[cls.dense_kernel].arguments if getattr(a, "role", "") != "work"}
            states = {f"{s}_{part}" for s in cls.states for part in "wb"}
            assert dense == {"x", "da", "w", "b", *states, *optimizer.constants}
