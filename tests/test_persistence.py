"""Files: what comes back, what a kill leaves, and that a damaged or hostile file is an error, no more."""

import gc
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastae
from fastae import persistence
from fastae.callbacks import Checkpoint, CosineDecay, EarlyStopping, ReduceOnPlateau
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
from fastae.losses import Loss, huber
from fastae.models import autoencnet
from fastae.network import Network
from fastae.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from fastae.persistence import CheckpointError
from fastae.trainer import Trainer

safetensors = pytest.importorskip("safetensors.numpy")

WIDTH = 9
X = np.random.default_rng(0).random((40, WIDTH))


def norm_net():
    return Network(
        [Dense(6, "tanh", name="a"), BatchNorm(name="n"), Dropout(0.2), Dense(4, "elu", name="b")],
        [Dense(WIDTH, "sigmoid", name="c")],
        WIDTH,
        name="small",
    )


def make(net=None, **arguments):
    defaults = {"optimizer": Adam(0.01), "batch_size": 8, "backend": "numpy", "dtype": "float64", "seed": 4}
    return Trainer(net or norm_net(), **{**defaults, **arguments})


def callbacks():
    return [EarlyStopping(patience=50), CosineDecay(60), ReduceOnPlateau(patience=2, monitor="loss")]


def same_weights(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


def assert_same(first, second):
    """Everything that training goes on from is bit for bit the same."""
    one, two = first._state(), second._state()
    assert same_weights(one.snapshot.weights, two.snapshot.weights)
    assert same_weights(one.snapshot.moments, two.snapshot.moments)
    assert (one.snapshot.updates, one.snapshot.seed) == (two.snapshot.updates, two.snapshot.seed)
    assert one.generator == two.generator
    assert one.learning_rate == two.learning_rate
    assert (one.history.loss, one.history.val_loss) == (two.history.loss, two.history.val_loss)
    np.testing.assert_array_equal(one.history.batch_loss, two.history.batch_loss)


def refuses(reason, text, call, *arguments, **named):
    with pytest.raises(CheckpointError, match=text) as caught:
        call(*arguments, **named)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(caught.value.path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file with everything a file may have, in the middle of a fit."""
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    make(loss="bce", noise=GaussianNoise(0.1), optimizer=SGD(0.01, momentum=0.9)).fit(
        X, epochs=2, validation_split=0.2, callbacks=[*callbacks(), Checkpoint(path)]
    )
    return path


# What comes back ------------------------------------------------------------------------------------------

NETWORKS = [
    norm_net(),
    autoencnet(WIDTH, 4),
    Network(
        [
            Parallel([Dense(3, "relu")], [Subsample(3), BatchNorm(0.2, 1e-3)]),
            Activation("softplus"),
            Dropout(0.1),
        ],
        [Dense(WIDTH, kernel_initializer="he_normal", use_bias=False), Activation("leaky_relu")],
        (WIDTH,),
    ),
]


@pytest.mark.parametrize("net", NETWORKS, ids=lambda net: net.name or "parallel")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_was_saved_comes_back(backend, tmp_path, net, dtype):
    trainer = make(net, backend=backend, dtype=dtype, noise=MaskingNoise(0.2), n_threads=1)
    x = X.astype(dtype)
    trainer.learning_rate = 0.02
    trainer.fit(x, epochs=2, validation_split=0.2)
    trainer.save(tmp_path / "a")
    loaded = fastae.load(tmp_path / "a")
    assert_same(trainer, loaded)
    assert loaded.net == trainer.net
    assert loaded.net.recipe == trainer.net.recipe
    assert loaded.history.seconds == trainer.history.seconds
    for name in ("loss", "optimizer", "batch_size", "dtype", "noise", "backend", "n_threads", "seed_"):
        assert getattr(loaded, name) == getattr(trainer, name)
    np.testing.assert_array_equal(loaded.reconstruct(x), trainer.reconstruct(x))
    for one in (trainer, loaded):
        one.fit(x, epochs=2)
        one.partial_fit(x[:13])
    assert_same(trainer, loaded)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.01),
        SGD(0.01, momentum=0.9, nesterov=True, weight_decay=1e-4),
        Adam(0.01, betas=(0.8, 0.95), clip_norm=1.0),
        AdamW(0.01),
        RMSprop(0.01),
        Adagrad(0.01),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
@pytest.mark.parametrize("loss", ["mse", "sse", "mae", huber(0.3), "bce"], ids=str)
def test_every_optimizer_and_loss(tmp_path, optimizer, loss):
    trainer = make(optimizer=optimizer, loss=loss)
    trainer.fit(X, epochs=1)
    trainer.save(tmp_path / "a")
    loaded = fastae.load(tmp_path / "a")
    assert (loaded.optimizer, loaded.loss) == (optimizer, trainer.loss)
    trainer.fit(X, epochs=1)
    loaded.fit(X, epochs=1)
    assert_same(trainer, loaded)


class OwnSGD(SGD):
    pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"loss": Loss("mine", "mse", "mean")}, "loss: expected one of .*sse, mse.*; given Loss.*mine"),
        ({"loss": Loss("mse", "mae", "mean")}, "loss: expected .*given Loss.*mae"),
        ({"loss": Loss("mse", "mse", "mean", (0.0, 1.0))}, "loss: expected .*given Loss.*target_range"),
        ({"loss": Loss("huber", "huber", "mean", delta=-1.0)}, "loss: expected .*given Loss.*huber"),
        ({"optimizer": OwnSGD(0.01)}, "optimizer: expected one of .*sgd, adam.*; given OwnSGD"),
    ],
)
def test_what_no_file_can_name_is_refused_before_training(tmp_path, arguments, text):
    trainer = make(**arguments)
    with pytest.raises(ValueError, match=text):
        trainer.save(tmp_path / "a")
    with pytest.raises(ValueError, match=text):
        trainer.fit(X, epochs=1, callbacks=[Checkpoint(tmp_path / "a")])
    assert trainer.history.updates == 0
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_that_has_not_begun(tmp_path):
    trainer = make(backend=None)
    trainer.save(tmp_path / "a")
    loaded = fastae.load(str(tmp_path / "a"))
    assert loaded._current is None
    assert loaded.backend is None
    assert same_weights(loaded.weights, trainer.weights)
    trainer.fit(X, epochs=1)
    loaded.fit(X, epochs=1)
    assert_same(trainer, loaded)


def test_a_file_goes_to_another_backend(backend, tmp_path):
    trainer = make(backend="numpy")
    trainer.fit(X, epochs=1)
    trainer.save(tmp_path / "a")
    loaded = fastae.load(tmp_path / "a", backend=backend, n_threads=1)
    assert (loaded.backend, loaded.n_threads) == (backend, 1)
    trainer.fit(X, epochs=1)
    loaded.fit(X, epochs=1)
    for name, value in loaded.weights.items():
        np.testing.assert_allclose(value, trainer.weights[name], rtol=1e-8, atol=1e-10)


def test_other_programs_can_read_it(checkpoint):
    arrays = safetensors.load_file(checkpoint)
    loaded = fastae.load(checkpoint)
    assert all(np.array_equal(arrays[name], value) for name, value in loaded.weights.items())
    assert arrays["history/loss"].tolist() == loaded.history.loss
    assert arrays["optimizer/a.weight.velocity"].shape == (WIDTH, 6)


def test_random_numbers_go_on(tmp_path):
    """Order, noise and dropout of a loaded trainer are those that would have come next."""
    trainer = make(noise=GaussianNoise(0.5))
    trainer.fit(X, epochs=1)
    trainer.save(tmp_path / "a")
    loaded = fastae.load(tmp_path / "a")
    assert list(loaded._engine().header[:2]) == [5, 4]
    np.testing.assert_array_equal(loaded._orders.permutation(9), trainer._orders.permutation(9))


# Resuming -------------------------------------------------------------------------------------------------


def test_a_fit_goes_on_from_its_checkpoint(backend, tmp_path):
    path = tmp_path / "a"
    call = {"epochs": 6, "validation_split": 0.2, "sample_weight": np.linspace(0, 2, 40)}
    whole = make(backend=backend)
    whole.fit(X, callbacks=callbacks(), **call)
    make(backend=backend).fit(X, callbacks=[Checkpoint(path), *callbacks()], **{**call, "epochs": 3})
    for seed in (4, None):  # that of the file counts
        resumed = make(backend=backend, seed=seed)
        history = resumed.fit(X, callbacks=callbacks(), resume=path, **call)
        assert_same(resumed, whole)
        assert history is resumed.history
        assert resumed.seed_ == 4
    used = make(backend=backend)
    used.fit(X, epochs=2)
    used.learning_rate = 3.0
    used.fit(X, callbacks=callbacks(), resume=str(path), **call)
    assert_same(used, whole)
    loaded = fastae.load(path)
    loaded.fit(X, callbacks=callbacks(), resume=True, **call)
    assert_same(loaded, whole)


def test_early_stopping_is_not_run_twice(tmp_path):
    path = tmp_path / "a"
    call = {"epochs": 30, "validation_data": (X, 1 - X)}
    whole = make()
    whole.fit(X, callbacks=[Checkpoint(path), EarlyStopping(patience=2)], **call)
    epochs = len(whole.history.loss)
    assert epochs < 30
    over = make()
    over.fit(X, callbacks=[EarlyStopping(patience=2)], resume=path, **call)  # its last checkpoint
    assert len(over.history.loss) == epochs
    assert_same(over, whole)


@pytest.mark.parametrize("order", [1, -1])
def test_the_last_epoch_is_saved_before_the_best_weights_are_put_back(tmp_path, order):
    path = tmp_path / "a"
    call = {"epochs": 30, "validation_data": (X, 1 - X)}
    whole = make()
    whole.fit(X, callbacks=[Checkpoint(path, every=100), EarlyStopping(patience=2)][::order], **call)
    over = make()
    over.fit(X, callbacks=[EarlyStopping(patience=2)], resume=path, **call)
    assert len(over.history.loss) == len(whole.history.loss) < 30
    assert_same(over, whole)


def test_a_save_in_the_middle_of_an_epoch(tmp_path):
    path = tmp_path / "a"
    x = np.random.default_rng(1).random((40_000, WIDTH))  # an epoch is longer than the time between reports

    class Break:
        def on_progress(self, done, total):
            if 0 < done < total:
                raise KeyboardInterrupt

        def on_epoch_end(self, trainer, epoch, logs):
            pass

    whole, broken = make(), make()
    whole.fit(x, epochs=2, validation_split=0.1)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(x, epochs=2, validation_split=0.1, callbacks=[Break()])
    assert 0 < broken.history.updates < 4500
    broken.save(path)
    loaded = fastae.load(path)
    np.testing.assert_array_equal(loaded.history.batch_loss, broken.history.batch_loss)
    loaded.fit(x, epochs=2, validation_split=0.1, resume=True)
    assert_same(loaded, whole)
    # A new fit in place of that one does not begin with the old order again.
    losses = [t.fit(x, epochs=1, sampling="replacement").loss for t in (fastae.load(path), broken)]
    assert losses[0] == losses[1]


def test_every_epoch_can_be_gone_on_from(tmp_path):
    """Where a plateau has lowered the rate that a schedule set, too."""
    path, rates = tmp_path / "a", []

    class Keep:
        def on_epoch_end(self, trainer, epoch, logs):
            rates.append(trainer.learning_rate)
            if path.exists():  # of the epoch before: a checkpoint comes last
                shutil.copy(path, tmp_path / str(epoch - 1))

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    def run(trainer, last, **more):
        x = np.random.default_rng(5).random((43, WIDTH))
        trainer.fit(
            x, epochs=30, validation_split=0.1, callbacks=[*callbacks(), last, Checkpoint(path)], **more
        )
        return trainer

    whole = run(make(), Keep())
    cosine = [CosineDecay(60).rate(epoch, 0.01) for epoch in range(1, 31)]
    assert any(rate < wanted for rate, wanted in zip(rates, cosine, strict=True))  # a plateau was there
    for epoch in range(1, 30):
        assert_same(run(make(), Keep(), resume=tmp_path / str(epoch)), whole)


def test_a_callback_of_ones_own_has_its_state(tmp_path):
    class Own:
        def __init__(self):
            self.seen = np.zeros(3)

        def on_epoch_end(self, trainer, epoch, logs):
            self.seen = self.seen + epoch

        def state_dict(self):
            return {
                "seen": self.seen,
                "more": {"x": [1, "a", None]},
                "parts": {"a": self.seen[:1]},
                "none": {},
            }

        def load_state_dict(self, state):
            self.state = state
            self.seen = state["seen"]

    first, second = Own(), Own()
    trainer = make()
    trainer.fit(X, epochs=2, callbacks=[first, Checkpoint(tmp_path / "a", every=2)])
    trainer.fit(X, epochs=3, callbacks=[first], resume=True)
    make().fit(X, epochs=3, callbacks=[second], resume=tmp_path / "a")
    assert second.seen.tolist() == first.seen.tolist() == [6, 6, 6]
    assert second.state["more"] == {"x": [1, "a", None]}
    assert second.state["parts"]["a"].tolist() == [3]
    assert second.state["none"] == {}
    Own.state_dict = lambda self: {"seen": np.arange(3)}
    with pytest.raises(TypeError, match="Own: seen: expected arrays of float32 or float64"):
        make().fit(X, epochs=1, callbacks=[first, Checkpoint(tmp_path / "a")])


def test_a_callback_that_refuses_its_state_leaves_the_trainer(tmp_path):
    path = tmp_path / "a"
    make().fit(X, epochs=2, callbacks=[EarlyStopping("loss"), Checkpoint(path)])

    class Refuse(EarlyStopping):
        def load_state_dict(self, state):
            raise ValueError("refused")

    Refuse.__name__ = "EarlyStopping"
    trainer = make(seed=9)
    before = trainer._state()
    with pytest.raises(ValueError, match="refused"):
        trainer.fit(X, epochs=3, callbacks=[Refuse("loss")], resume=path)
    assert same_weights(trainer.weights, before.snapshot.weights)
    assert trainer.seed_ == 9
    assert trainer.history.updates == 0


OTHERS = {
    "network": ({"net": autoencnet(WIDTH, 4)}, "another network.*9-6-6-6-4-9"),
    "activation": ({"net": Network([Dense(6)], [Dense(WIDTH)], WIDTH)}, "another network"),
    "loss": ({"loss": "mae"}, "loss is mse, and the trainer's is mae"),
    "delta": ({"loss": huber(0.5)}, "loss"),
    "optimizer": ({"optimizer": Adam(0.02)}, r"optimizer is Adam\(.*0.01.*0.02"),
    "kind": ({"optimizer": SGD(0.01)}, "optimizer"),
    "batch": ({"batch_size": 9}, "batch_size is 8, and the trainer's is 9"),
    "dtype": ({"dtype": "float32"}, "dtype is float64"),
    "noise": ({"noise": GaussianNoise(0.1)}, "noise is None"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_training(tmp_path, case):
    arguments, text = OTHERS[case]
    make().fit(X, epochs=1, callbacks=[Checkpoint(tmp_path / "a")])
    trainer = make(**arguments)
    x = X.astype(trainer.dtype)
    before = trainer._state()
    refuses("mismatch", text, trainer.fit, x, epochs=2, resume=tmp_path / "a")
    assert same_weights(trainer.weights, before.snapshot.weights)
    assert trainer.history.updates == 0
    assert trainer._position is None


def test_what_cannot_be_resumed(tmp_path):
    trainer = make()
    trainer.save(tmp_path / "a")
    refuses("mismatch", "no fit to go on with", make().fit, X, resume=tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        make().fit(X, resume=tmp_path / "b")
    make().fit(X, epochs=1, callbacks=[Checkpoint(tmp_path / "a")])
    with pytest.raises(ValueError, match="rows 40, not 39"):
        make().fit(X[:39], resume=tmp_path / "a")
    with pytest.raises(ValueError, match=r"callbacks: expected none.*given EarlyStopping"):
        make().fit(X, callbacks=[EarlyStopping("loss")], resume=tmp_path / "a")
    with pytest.raises(TypeError):
        make().fit(X, resume=3.5)


# A real kill ----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy as np
sys.path.insert(0, {folder!r})
from test_persistence import make, killed_fit
import fastae
killed_fit(make({arguments}), {path!r})
"""


def killed_fit(trainer, path):
    """What a user would write: training that goes on where it was when it was killed."""
    path = Path(path)
    x = np.random.default_rng(5).random((403, WIDTH))
    trainer.fit(
        x,
        epochs=60,
        validation_split=0.1,
        sample_weight=np.linspace(0.5, 1.5, 403),
        callbacks=[Checkpoint(path), *callbacks()],
        resume=path.exists() and path,
    )
    return trainer


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("backend", ["numpy", "numba", "cython"], indirect=True)
def test_training_that_is_killed_and_resumed_gives_the_same_bits(backend, tmp_path):
    arguments = {"backend": backend, "loss": "bce", "noise": GaussianNoise(0.1)}
    whole = killed_fit(make(**arguments), tmp_path / "whole")
    path = tmp_path / "killed"
    script = SCRIPT.format(
        folder=str(Path(__file__).parent),
        path=str(path),
        arguments=f"backend={backend!r}, loss='bce', noise=fastae.GaussianNoise(0.1)",
    )
    chance = random.Random(backend)
    kills, epochs = 0, []
    while kills < 3:
        seen = path.stat().st_mtime_ns if path.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(Path(fastae.__file__).parents[1])},
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and (path.stat().st_mtime_ns if path.exists() else 0) == seen:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02))  # some epochs, or a part of one
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was over before
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        epochs.append(len(fastae.load(path).history.loss))
    assert kills
    assert epochs[0] < 60
    assert_same(killed_fit(make(**arguments), path), whole)
    assert_same(fastae.load(path), fastae.load(tmp_path / "whole"))


# Writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "a"
    trainer = make()
    trainer.save(path)
    before = path.read_bytes()
    trainer.fit(X, epochs=1)

    def fail(*arguments):
        raise OSError("disk full") if where != "replace" else KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(persistence, "open", fail, raising=False)
        else:
            patch.setattr(os, where, fail)
        with pytest.raises((OSError, KeyboardInterrupt)):
            trainer.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]
    trainer.save(path)
    assert_same(fastae.load(path), trainer)


def test_data_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))
        )
    make().save(tmp_path / "a")
    assert calls == ["fsync", "replace", *(["fsync"] if os.name == "posix" else [])]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    make().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "there") == ["file"]
    fastae.load(tmp_path / "link")


def test_a_file_has_the_rights_of_others(tmp_path):
    (tmp_path / "b").write_bytes(b"")
    make().save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_without_the_library(tmp_path, monkeypatch, checkpoint):
    trainer = make()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (trainer.save, fastae.load, Checkpoint):
        with pytest.raises(ImportError, match=r'pip install "fastae\[files\]"'):
            call(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_wrong_paths(tmp_path):
    with pytest.raises(TypeError):
        make().save(3)
    with pytest.raises(TypeError, match="path"):
        make().save(b"a")
    with pytest.raises(FileNotFoundError):
        make().save(tmp_path / "nowhere" / "a")
    with pytest.raises(FileNotFoundError):
        fastae.load(tmp_path / "a")
    with pytest.raises(OSError, match=r"directory|denied"):
        fastae.load(tmp_path)


def test_the_error_can_be_sent_to_another_process(tmp_path):
    error = CheckpointError("a", "mismatch", "why")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.reason) == ("a is of another training: why", "a", "mismatch")
    assert isinstance(error, ValueError)


# Damage ---------------------------------------------------------------------------------------------------


def test_every_truncated_file_is_refused(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    path = tmp_path / "a"
    for size in {*range(0, len(content), 13), *range(20), len(content) - 1}:
        path.write_bytes(content[:size])
        refuses("truncated", "is truncated", fastae.load, path)


def test_every_byte_that_is_altered_is_seen(checkpoint, tmp_path):
    content = bytearray(checkpoint.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "a"
    path.write_bytes(content)
    chance = random.Random(0)
    reasons = {}
    with open(path, "r+b", buffering=0) as file:
        for i, byte in enumerate(content):
            if i > length and i % 3:  # every third of the numbers: a sum treats them alike
                continue
            file.seek(i)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
            with pytest.raises(CheckpointError) as caught:
                persistence.read(path)
            reasons.setdefault(caught.value.reason, []).append(i)
            file.seek(i)
            file.write(bytes([byte]))
    persistence.read(path)  # all is as it was
    assert reasons.keys() <= {"altered", "truncated"}
    assert len(reasons["altered"]) > 0.9 * length
    assert max(reasons.get("truncated", [0])) < length


@pytest.mark.parametrize("more", [b"\0", b"{}", bytes(4096)])
def test_bytes_after_the_end(checkpoint, tmp_path, more):
    (tmp_path / "a").write_bytes(checkpoint.read_bytes() + more)
    refuses("altered", "altered", fastae.load, tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [bytes(8), bytes(100), b"PK\3\4" * 40, b"\x93NUMPY" + bytes(90), bytes(range(256)) * 40],
    ids=["zero", "zeros", "zip", "npy", "bytes"],
)
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    refuses("invalid", "not a checkpoint", fastae.load, tmp_path / "a")


def test_a_file_of_another_program(tmp_path):
    safetensors.save_file({"a": np.zeros(3)}, tmp_path / "a")
    refuses("invalid", "not a checkpoint", fastae.load, tmp_path / "a")
    safetensors.save_file({"a": np.zeros(3)}, tmp_path / "a", {"format": "pt"})
    refuses("invalid", "another program", fastae.load, tmp_path / "a")


# Malice: the checksum is right ----------------------------------------------------------------------------


def parts(content):
    """Header and arrays of a file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assembled(header, body, **declared):
    """A file of them with a right checksum; fields of the declaration changed."""
    if not isinstance(header, bytes):
        header = json.loads(json.dumps(header))
        if declared:
            whole = json.loads(header["__metadata__"]["fastae"])
            header["__metadata__"]["fastae"] = json.dumps({**whole, **declared})
        if "sha256" in (header["__metadata__"] or {}):
            header["__metadata__"]["sha256"] = "0" * 64
        header = json.dumps(header, separators=(",", ":")).encode()
    content = len(header).to_bytes(8, "little") + header + body
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


@pytest.fixture
def forged(checkpoint, tmp_path):
    """Writes a file like the checkpoint with something changed; its path."""

    def forge(change=None, body=None, **declared):
        header, arrays = parts(checkpoint.read_bytes())
        header = (change and change(header)) or header
        (tmp_path / "forged").write_bytes(assembled(header, arrays if body is None else body, **declared))
        return tmp_path / "forged"

    return forge


def declaration(checkpoint):
    return json.loads(parts(checkpoint.read_bytes())[0]["__metadata__"]["fastae"])


def test_a_forged_file_is_otherwise_right(forged, checkpoint):
    assert_same(fastae.load(forged()), fastae.load(checkpoint))


def test_a_newer_version(forged):
    refuses("version", "version.*: 2, and this fastae knows 1; update it", fastae.load, forged(version=2))
    refuses("version", "newer", fastae.load, forged(version=2**60, network="what it will be"))
    for version in (0, -1, "1", 1.0, None, True):
        refuses("invalid", "version", fastae.load, forged(version=version))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a.bias"].update(dtype="I64"),
        lambda header: header["a.bias"].update(more=1),
        lambda header: header["__metadata__"].update(more="x"),
    ],
)
def test_a_newer_version_may_hold_other_things(forged, change):
    refuses("version", "newer", fastae.load, forged(change, version=2))
    refuses("invalid", "not a checkpoint", fastae.load, forged(change))
    content = bytearray(forged(change, version=2).read_bytes())
    content[-1] ^= 1
    path = forged()
    path.write_bytes(content)
    refuses("altered", "not what was written", fastae.load, path)


def nested(depth):
    layer = {"type": "dense", "units": 3}
    for _ in range(depth):
        layer = {"type": "parallel", "branches": [[layer], []], "name": None}
    return layer


HUGE = 2**62

DECLARED = {
    "dtype": [{"dtype": v} for v in ("float16", "object", None, ["float32"], "float32", {})],
    "batch_size": [{"batch_size": v} for v in (0, -1, HUGE, 10**30, 1.5, None, "8", True)],
    "backend": [{"backend": v} for v in ("fortran", 3, ["numpy"], "os", "../x")],
    "n_threads": [{"n_threads": v} for v in (0, 10**9, "2", 1.0)],
    "loss": [
        {"loss": v} for v in (None, "mse", {"type": "os.system"}, {"type": "mse", "x": 1}, {"type": []})
    ],
    "optimizer": [
        {"optimizer": v}
        for v in (None, {"type": "sgd", "learning_rate": -1}, {"type": "__import__"}, {"type": "sgd", "a": 1})
    ],
    "another optimizer": [{"optimizer": {"type": "adam"}}],  # arrays of another
    "noise": [
        {"noise": v} for v in (3, {"type": "dense", "units": 3}, {"type": "gaussian_noise", "stddev": -1})
    ],
    "learning_rate": [{"learning_rate": v} for v in (0, -1.0, None, "0.1", True)],
    "seed": [{"seed": v} for v in (-1, 2**63, 1.5, None)],
    "updates": [{"updates": v} for v in (-1, 2**63, 1.5, None)],
    "generator": [
        {"generator": v}
        for v in (
            None,
            {},
            {"state": 2**128, "inc": 1, "has_uint32": 0, "uinteger": 0},
            {"state": 1, "inc": -1, "has_uint32": 0, "uinteger": 0},
            {"state": 1, "inc": 1, "has_uint32": 2, "uinteger": 0},
            {"state": 1, "inc": 1, "has_uint32": 0, "uinteger": 0, "bit_generator": "os"},
        )
    ],
    "network": [{"network": v} for v in (None, [], {}, "quark_mlp")],
    "unknown": [{"more": 1}],
    "fit": [{"fit": v} for v in (3, {}, [])],
}


@pytest.mark.parametrize("case", DECLARED)
def test_hostile_declarations(forged, case):
    for fields in DECLARED[case]:
        refuses("invalid", "not a checkpoint", fastae.load, forged(**fields))


def test_hostile_networks(forged, checkpoint):
    network = declaration(checkpoint)["network"]
    dense = {"type": "dense", "units": 4}
    tracemalloc.start()
    try:
        for change in (
            {"input_shape": [HUGE]},
            {"input_shape": [7**400]},
            {"input_shape": []},
            {"input_shape": [-9]},
            {"encoder": []},
            {"encoder": [{"type": "dense", "units": HUGE}]},
            {"encoder": [{"type": "dense", "units": 10**9}, *network["encoder"][1:]]},
            {"encoder": [{"type": "os.system", "name": "true"}]},
            {"encoder": [{"type": "fastae.layers.Dense", "units": 4}]},
            {"encoder": [{**dense, "activation": "__import__('os')"}]},
            {"encoder": [{**dense, "name": "../../a"}]},
            {"encoder": [{**dense, "__class__": "x"}]},
            {"encoder": [nested(31)]},
            {"encoder": [nested(40)]},
            {"encoder": [nested(300)]},
            {"encoder": [{"type": "parallel", "branches": [[]] * 20000}]},
            {"encoder": [{"type": "dropout", "rate": 1.0}, *network["encoder"]]},
            {"encoder": [*network["encoder"], dense]},
        ):
            refuses("invalid", "not a checkpoint", fastae.load, forged(network={**network, **change}))
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def test_hostile_places(forged, checkpoint):
    fit = declaration(checkpoint)["fit"]
    for change in (
        {"epoch": 3},
        {"epoch": HUGE},
        {"epoch": -1},
        {"batch": 1},
        {"batch": 5},
        {"batch": 4, "generator": fit["generator"]},
        {"steps": 0},
        {"steps": HUGE},
        {"rows": 0},
        {"sampling": "random"},
        {"sampling": ["shuffle"]},
        {"stopped": 1},
        {"validation_rows": 0},
        {"callbacks": None},
        {"callbacks": [3]},
        {"callbacks": [{"type": "EarlyStopping", "values": {}, "arrays": {}}]},
        {"callbacks": [*fit["callbacks"], {"type": "A", "values": {}, "arrays": {"x": ["y"] * 2}}]},
        {"callbacks": [*fit["callbacks"], {"type": "A", "values": {}, "arrays": {"x": None}}]},
        {"callbacks": [*fit["callbacks"], {"type": "A", "values": {"x": 1}, "arrays": {"x": None}}]},
        {"callbacks": [*fit["callbacks"], {"type": 3, "values": {}, "arrays": {}}]},
        {"more": 1},
    ):
        refuses("invalid", "not a checkpoint", fastae.load, forged(fit={**fit, **change}))


def test_states_of_callbacks_are_no_code(forged, checkpoint):
    """A class is compared by its name and never looked up; a wrong state is an error of `fit`."""
    fit = declaration(checkpoint)["fit"]
    fit["callbacks"][1] = {"type": "os.system", "values": {"command": "true"}, "arrays": {}}
    trainer = fastae.load(forged(fit=fit))
    with pytest.raises(ValueError, match=r"expected EarlyStopping, os\.system"):
        trainer.fit(X, validation_split=0.2, callbacks=callbacks(), resume=True)
    fit = declaration(checkpoint)["fit"]
    fit["callbacks"][0]["values"]["waited"] = "x"
    trainer = fastae.load(forged(fit=fit))
    with pytest.raises(ValueError, match="state of EarlyStopping"):
        trainer.fit(X, validation_split=0.2, callbacks=callbacks(), resume=True)


def changed(name, **entry):
    def change(header):
        header[name] = {**header[name], **entry}

    return change


def moved(by):
    def change(header):
        first = min((e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"])
        first["data_offsets"] = [place + by for place in first["data_offsets"]]

    return change


HEADERS = {
    "dtype": changed("a.bias", dtype="F16"),
    "no dtype": changed("a.bias", dtype=None),
    "dtype of objects": changed("a.bias", dtype=["F64"]),
    "another real": changed("a.bias", dtype="F32", shape=[12]),
    "shape": changed("a.weight", shape=[6, 9]),
    "huge shape": changed("a.bias", shape=[HUGE, HUGE]),
    "negative shape": changed("a.bias", shape=[-6]),
    "shape of text": changed("a.bias", shape=["6"]),
    "shape of reals": changed("a.bias", shape=[6.0]),
    "many dims": changed("a.bias", shape=[6] + [1] * 99),
    "no list": changed("a.bias", shape=6),
    "huge place": changed("a.bias", data_offsets=[0, HUGE]),
    "negative place": changed("a.bias", data_offsets=[-48, 0]),
    "one end": changed("a.bias", data_offsets=[0]),
    "more fields": changed("a.bias", more=1),
    "overlap": moved(8),
    "before the first": moved(-8),
    "no entry": lambda header: header.update({"a.bias": 3}),
    "missing": lambda header: header.pop("a.bias") and None,
    "renamed": lambda header: header.update({"os.system": header.pop("a.bias")}),
    "no metadata": lambda header: header.update({"__metadata__": None}),
    "metadata of numbers": lambda header: header["__metadata__"].update({"fastae": 3}),
    "more metadata": lambda header: header["__metadata__"].update({"more": "x"}),
    "no checksum": lambda header: header["__metadata__"].pop("sha256") and None,
    "no declaration": lambda header: header["__metadata__"].update({"fastae": ""}),
    "deep declaration": lambda header: header["__metadata__"].update({"fastae": "[" * 10**5}),
    "NaN": lambda header: header["__metadata__"].update({"fastae": "NaN"}),
    "long number": lambda header: header["__metadata__"].update({"fastae": "1" * 10**5}),
    "list": lambda header: header["__metadata__"].update({"fastae": "[]"}),
    "twice": lambda header: header["__metadata__"].update({"fastae": '{"version":1,"version":1}'}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers(forged, case):
    path = forged(HEADERS[case])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            fastae.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.reason in ("invalid", "altered", "truncated")
    assert peak < 50e6


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"__metadata__":{"fastae":"{}","sha256":"' + b"0" * 64 + b'"},"a":1,"a":2}',
        b'{"__metadata__":{},"__metadata__":{"fastae":"{}","sha256":"' + b"0" * 64 + b'"}}',
        b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'","fastae":"{}"}}',
        b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'","fastae":"\\ud800"}}',
        b'\xff{"__metadata__":{}}',
        "{}".encode("utf-16"),
    ],
)
def test_strange_headers(tmp_path, header):
    path = tmp_path / "a"
    path.write_bytes(assembled(header, b""))
    with pytest.raises(CheckpointError) as caught:
        fastae.load(path)
    assert caught.value.reason in ("invalid", "altered")


def test_lengths_that_are_no_lengths(checkpoint, tmp_path):
    content = checkpoint.read_bytes()
    path = tmp_path / "a"
    for length in (0, 1, 2**24 + 1, 2**31, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(CheckpointError):
            fastae.load(path)


def test_a_file_that_says_it_is_huge_takes_no_memory(checkpoint, tmp_path):
    """A hole of 100 GB after a header that asks for it."""
    header, _ = parts(checkpoint.read_bytes())
    first = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = max(entry["data_offsets"][1] for entry in first.values())
    header["huge"] = {"dtype": "F64", "shape": [10**7], "data_offsets": [end, end + 8 * 10**7]}
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end + 8 * 10**7)
    tracemalloc.start()
    try:
        refuses("altered", "altered", fastae.load, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_cannot_be(forged, checkpoint, value):
    header, body = parts(checkpoint.read_bytes())
    body = bytearray(body)
    at = header["a.weight"]["data_offsets"][0]
    body[at : at + 8] = np.float64(value).tobytes()
    refuses("invalid", "a.weight must be finite", fastae.load, forged(body=bytes(body)))
    at = header["n.running_var"]["data_offsets"][0]
    body = bytearray(parts(checkpoint.read_bytes())[1])
    body[at : at + 8] = np.float64(-1).tobytes()
    refuses("invalid", "n.running_var", fastae.load, forged(body=bytes(body)))


def test_a_broken_identity(tmp_path):
    make(autoencnet(WIDTH, 4)).save(tmp_path / "a")
    header, body = parts((tmp_path / "a").read_bytes())
    body = bytearray(body)
    at = header["rec.weight"]["data_offsets"][0]
    body[at : at + 8] = np.float64(2).tobytes()
    (tmp_path / "a").write_bytes(assembled(header, bytes(body)))
    refuses("invalid", "rec.weight.*identity", fastae.load, tmp_path / "a")


def test_nothing_is_half_loaded(forged):
    trainer = make(loss="bce", noise=GaussianNoise(0.1), optimizer=SGD(0.01, momentum=0.9), seed=1)
    trainer.fit(X, epochs=1, validation_split=0.2)
    before = trainer._state()
    path = forged(seed=-1)
    refuses(
        "invalid",
        "seed",
        trainer.fit,
        X,
        validation_split=0.2,
        callbacks=callbacks(),
        resume=path,
    )
    after = trainer._state()
    assert same_weights(before.snapshot.weights, after.snapshot.weights)
    assert same_weights(before.snapshot.moments, after.snapshot.moments)
    assert (before.generator, before.history, before.position) == (
        after.generator,
        after.history,
        after.position,
    )


def test_saving_imports_the_library_alone():
    code = """
    import sys
    import fastae
    fastae.Trainer, fastae.load, fastae.EarlyStopping, fastae.CheckpointError
    print(*sys.modules)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "safetensors" not in run.stdout.split()
