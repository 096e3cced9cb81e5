"""Callbacks: when they stop, slow down, save; and that a fit which is resumed goes on with them alike."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import fastae
from fastae.callbacks import (
    Callback,
    Checkpoint,
    CosineDecay,
    EarlyStopping,
    LearningRateSchedule,
    Progress,
    ReduceOnPlateau,
    StepDecay,
)
from fastae.layers import Dense
from fastae.network import Network
from fastae.optimizers import SGD
from fastae.trainer import Trainer

X = np.random.default_rng(0).normal(size=(20, 5))


def make(**arguments):
    net = Network([Dense(3, "tanh", name="a")], [Dense(5, name="b")], 5)
    defaults = {"optimizer": SGD(0.1), "batch_size": 8, "backend": "numpy", "dtype": "float64", "seed": 4}
    return Trainer(net, **{**defaults, **arguments})


class Stub:
    """As much of a trainer as a callback touches; its weights tell the epoch."""

    def __init__(self, rate=0.1):
        self.optimizer = SGD(rate)
        self.learning_rate = rate
        self.epoch = 0

    @property
    def weights(self):
        return {"w": np.array([float(self.epoch)])}

    def set_weights(self, weights):
        self.epoch = int(weights["w"][0])


def feed(callback, losses, trainer=None, name="val_loss", begin=0):
    """Epochs with these losses; the epoch that ended it and the trainer."""
    trainer = trainer or Stub()
    callback.on_fit_begin(trainer, begin)
    for epoch, loss in enumerate(losses, begin + 1):
        trainer.epoch = epoch
        if callback.on_epoch_end(trainer, epoch, {"loss": 9.0, name: loss}):
            break
    if hasattr(callback, "on_fit_success"):
        callback.on_fit_success(trainer)
    return epoch, trainer


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(),
        StepDecay(2),
        CosineDecay(3),
        ReduceOnPlateau(),
        Progress(),
        LearningRateSchedule(),
        Checkpoint("x"),
    ],
)
def test_each_is_a_callback(callback):
    assert isinstance(callback, Callback)
    assert getattr(fastae, type(callback).__name__) is type(callback)


@pytest.mark.parametrize(
    ("make_bad", "error", "text"),
    [
        (lambda: EarlyStopping("accuracy"), ValueError, "monitor.*'accuracy'"),
        (lambda: EarlyStopping(patience=0), ValueError, "patience.*at least 1"),
        (lambda: EarlyStopping(patience=1.5), TypeError, "patience.*1.5"),
        (lambda: EarlyStopping(min_delta=-1), ValueError, "min_delta"),
        (lambda: EarlyStopping(min_delta=np.nan), ValueError, "min_delta"),
        (lambda: StepDecay(0), ValueError, "step"),
        (lambda: StepDecay(1, 0.0), ValueError, "gamma"),
        (lambda: StepDecay(1, np.inf), ValueError, "gamma"),
        (lambda: CosineDecay(0), ValueError, "epochs"),
        (lambda: CosineDecay(3, -1e-9), ValueError, "minimum"),
        (lambda: ReduceOnPlateau(1.0), ValueError, "factor"),
        (lambda: ReduceOnPlateau(0.0), ValueError, "factor"),
        (lambda: ReduceOnPlateau(minimum=-1), ValueError, "minimum"),
        (lambda: ReduceOnPlateau(patience=0), ValueError, "patience"),
        (lambda: Checkpoint("x", 0), ValueError, "every"),
        (lambda: Checkpoint(b"x"), TypeError, "path"),
        (lambda: Checkpoint(3), TypeError, "int"),
    ],
)
def test_bad_arguments(make_bad, error, text):
    with pytest.raises(error, match=text):
        make_bad()


@pytest.mark.parametrize(
    ("losses", "options", "ended", "best"),
    [
        ([5, 4, 3, 2, 1], {}, 5, 5),
        ([5, 4, 4, 4, 1], {}, 4, 2),
        ([5, 4, 6, 3.5, 4, 4, 1], {}, 6, 4),
        ([5, 4.5, 4.2, 4, 3.9], {"min_delta": 1}, 3, 1),
        ([5, np.nan, np.inf, 1], {}, 3, 1),
        ([np.nan, 5, 4], {}, 3, 3),
        ([5, 6, 7], {"restore_best": False}, 3, 3),
        ([5, 6, 7, 8], {"patience": 9}, 4, 1),
    ],
)
def test_early_stopping(losses, options, ended, best):
    callback = EarlyStopping(**{"patience": 2, **options})
    epoch, trainer = feed(callback, losses)
    assert (epoch, trainer.epoch) == (ended, best)
    epoch, trainer = feed(callback, losses)  # it begins anew
    assert (epoch, trainer.epoch) == (ended, best)


def test_early_stopping_may_look_at_the_training_loss():
    epoch, trainer = feed(EarlyStopping("loss", 1), [3, 2, 4, 1], name="loss")
    assert (epoch, trainer.epoch) == (3, 2)


def test_early_stopping_in_a_fit():
    other = (X, 0.4 * X)  # on the way to X and left behind
    seen = []

    class Watch:
        def on_epoch_end(self, trainer, epoch, logs):
            seen.append((logs["val_loss"], trainer.weights))

    trainer = make(optimizer=SGD(0.2))
    callbacks = [Watch(), EarlyStopping(patience=3)]
    history = trainer.fit(X, epochs=60, validation_data=other, callbacks=callbacks)
    assert 4 < len(history.loss) < 60
    best = int(np.argmin(history.val_loss))
    assert len(history.loss) == best + 4
    assert all(np.array_equal(trainer.weights[name], w) for name, w in seen[best][1].items())
    assert trainer.evaluate(*other) == min(history.val_loss)


def test_nothing_is_restored_after_an_error():
    class Fail:
        def on_epoch_end(self, trainer, epoch, logs):
            self.weights = trainer.weights
            if epoch == 4:
                raise LookupError

    fail, trainer = Fail(), make(optimizer=SGD(0.5))
    with pytest.raises(LookupError):
        trainer.fit(X, epochs=9, validation_data=(X, -X), callbacks=[fail, EarlyStopping()])
    assert all(np.array_equal(trainer.weights[name], w) for name, w in fail.weights.items())


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceOnPlateau])
@pytest.mark.parametrize("cut", range(1, 8))
def test_the_state_makes_a_resumed_fit_go_on_alike(kind, cut):
    losses = [5.0, 4.0, 4.5, 4.2, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9]
    ended, whole = feed(kind(patience=3), losses)
    first, second, trainer = kind(patience=3), kind(patience=3), Stub()
    first.on_fit_begin(trainer, 0)
    for epoch, loss in enumerate(losses[:cut], 1):
        trainer.epoch = epoch
        first.on_epoch_end(trainer, epoch, {"val_loss": loss})
    state = first.state_dict()
    weights = state.pop("weights", {})
    state = json.loads(json.dumps(state))
    second.load_state_dict(state | ({"weights": weights} if kind is EarlyStopping else {}))
    epoch, trainer = feed(second, losses[cut:], trainer, begin=cut)
    assert (epoch, trainer.epoch) == (ended, whole.epoch)
    assert trainer.learning_rate == whole.learning_rate


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceOnPlateau])
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"best": "a"},
        {"best": np.inf},
        {"best_epoch": None},
        {"waited": 1.5},
        {"waited": True},
    ],
)
def test_a_wrong_state_is_refused(kind, wrong):
    callback = kind(patience=3)
    state = {**callback.state_dict(), "best": 1.0, **wrong} if wrong else {}
    with pytest.raises(ValueError, match=f"state of {kind.__name__}"):
        callback.load_state_dict(state)
    assert callback.best is None


def test_wrong_weights_in_a_state_are_refused():
    callback = EarlyStopping()
    for weights in (None, [1.0], {"a": 1.0}):
        with pytest.raises(ValueError, match="weights"):
            callback.load_state_dict({**callback.state_dict(), "weights": weights})


def rates(callback, epochs, rate=0.1):
    """The learning rate of each epoch, and that after the last."""
    trainer = Stub(rate)
    callback.on_fit_begin(trainer, 0)
    found = [trainer.learning_rate]
    for epoch in range(1, epochs + 1):
        assert not callback.on_epoch_end(trainer, epoch, {"loss": 1.0})
        found.append(trainer.learning_rate)
    return found


def test_step_decay():
    np.testing.assert_allclose(rates(StepDecay(2, 0.5), 5), [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-15)
    assert rates(StepDecay(1, 1e-300), 3)[-1] == sys.float_info.min  # not 0


def test_cosine_decay():
    found = rates(CosineDecay(4, 0.02), 6)
    expected = [
        0.1,
        0.02 + 0.08 * (1 + 0.5**0.5) / 2,
        0.06,
        0.02 + 0.08 * (1 - 0.5**0.5) / 2,
        0.02,
        0.02,
        0.02,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert rates(CosineDecay(2), 3)[-1] == sys.float_info.min


def test_reduce_on_plateau():
    trainer, callback = Stub(), ReduceOnPlateau(0.5, 2, minimum=0.03)
    callback.on_fit_begin(trainer, 0)
    found = []
    for epoch, loss in enumerate([5, 4, 4, 4, 4, 4, 3, 3, 3, 3], 1):
        assert not callback.on_epoch_end(trainer, epoch, {"val_loss": loss})
        found.append(trainer.learning_rate)
    assert found == [0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03, 0.03, 0.03, 0.03]
    trainer.learning_rate = 0.01  # below the minimum already: it does not grow
    callback.waited = 9
    callback.on_epoch_end(trainer, 11, {"val_loss": 9.0})
    assert trainer.learning_rate == 0.01


def test_a_schedule_is_that_of_single_epochs(backend):
    scheduled, by_hand = make(backend=backend), make(backend=backend)
    scheduled.fit(X, epochs=4, callbacks=[StepDecay(1, 0.5)])
    for rate in (0.1, 0.05, 0.025, 0.0125):
        by_hand.learning_rate = rate
        by_hand.fit(X, epochs=1)
    assert all(np.array_equal(by_hand.weights[name], w) for name, w in scheduled.weights.items())
    assert scheduled.learning_rate == 0.1 / 16
    scheduled.fit(X, epochs=1, callbacks=[StepDecay(2)])  # a new fit begins with the rate of the optimiser
    assert scheduled.learning_rate == 0.1


def test_many_rates_take_no_memory_that_grows():
    """Executors remember routines, and each rate has its own."""
    trainer = make(backend="numpy")
    trainer.fit(X, epochs=200, callbacks=[StepDecay(1, 0.99)])
    assert len(trainer._current.executor._bound) <= 64


def test_a_schedule_of_ones_own():
    class Half(LearningRateSchedule):
        def rate(self, epoch, initial):
            return initial / 2

    assert rates(Half(), 1) == [0.05, 0.05]
    with pytest.raises(NotImplementedError):
        make().fit(X, epochs=1, callbacks=[LearningRateSchedule()])


def test_what_is_called_and_when():
    told = []

    class All:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, event):
            if not event.startswith("on_") or event == "on_progress":
                raise AttributeError(event)
            return lambda trainer, epoch=None, logs=None: told.append((self.name, event, epoch))

        def on_epoch_end(self, trainer, epoch, logs):
            told.append((self.name, "on_epoch_end", epoch))

    first, last = All("first"), All("last")
    last.comes_last = True
    make().fit(X, epochs=2, callbacks=[last, first])
    order = [(name, event, epoch) for name, event, epoch in told]
    assert order == [
        ("last", "on_fit_begin", 0),
        ("first", "on_fit_begin", 0),
        ("first", "on_epoch_end", 1),
        ("last", "on_epoch_end", 1),
        ("first", "on_epoch_end", 2),
        ("last", "on_epoch_end", 2),
        ("last", "on_fit_success", None),
        ("first", "on_fit_success", None),
        ("last", "on_fit_end", None),
        ("first", "on_fit_end", None),
    ]


def test_checkpoints_come_every_so_many_epochs(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Trainer, "save", lambda self, path: saved.append(len(self.history.loss)))
    trainer, checkpoint = make(), Checkpoint(tmp_path / "x", every=3)
    trainer.fit(X, epochs=7, callbacks=[checkpoint])
    assert saved == [3, 6, 7]  # and the last
    trainer.fit(X, epochs=7, callbacks=[checkpoint], resume=True)
    assert saved == [3, 6, 7]  # nothing was left to do
    trainer.fit(X, epochs=9, callbacks=[checkpoint], resume=True)
    assert saved == [3, 6, 7, 9]
    stop = EarlyStopping("loss", patience=1, min_delta=1e9)
    trainer.fit(X, epochs=9, callbacks=[stop, checkpoint])
    assert saved == [3, 6, 7, 9, 2]


def test_a_folder_that_is_not_there_is_seen_before_training(tmp_path):
    trainer = make()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trainer.fit(X, callbacks=[Checkpoint(tmp_path / "nowhere" / "x")])
    assert trainer.history.updates == 0


def test_plain_progress_lines_tell_the_losses(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    progress = Progress(1)
    progress.seconds_between_lines = 0
    progress.on_progress(1, 4)
    progress.on_epoch_end(SimpleNamespace(), 1, {"loss": 0.25, "val_loss": 0.5, "seconds": 1.0})
    progress.on_progress(4, 4)
    assert capsys.readouterr().err.splitlines() == ["4 of 4 updates, epoch 1: loss 0.25, val_loss 0.5"]
