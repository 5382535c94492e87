"""d3jax.experts: training against a slow loop, and the store."""

import dataclasses
import importlib
import json
import shutil
from collections import namedtuple
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from d3jax import data, experts, networks
from d3jax.experts import Options, configuration
from d3jax.experts.epoch import _shuffled, epoch_function
from d3jax.experts.options import Descent
from d3jax.experts.store import Snapshots, fingerprint, store_path
from d3jax.host.progress import Busy, Diverged, Interrupted, Reporter, locked
from d3jax.keys import Stage, stage_key
from d3jax.types import InputError, Network, Outputs

TRAINING = importlib.import_module("d3jax.experts.train")  # the room shows its function

OPTIONS = Options(count=3, epochs=3, learning_rate=0.1, batch_size=16, augmentation=(), at_once=2)
NETWORK = networks.create("mlp", image_shape=(8, 8, 1), num_classes=10, width=4)
SEED = 11


@pytest.fixture(scope="module")
def real():
    dataset = data.load("digits", train_limit=60)  # 3 steps of 16 an epoch, 12 images left out
    normalization = data.Normalization.of(dataset.train_images)
    return dataset.real(normalization)


def recipe(options=OPTIONS, **changes):
    arguments = {"network": {"network": "mlp"}, "data": {"images": "abc"}, "seed": SEED}
    return configuration(options, **{**arguments, **changes})


def trained(real, store, options=OPTIONS):
    return experts.train(NETWORK, options, real, store, recipe(options), Reporter())


@pytest.fixture(scope="module")
def store(real, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    trained(real, store)
    return store


@pytest.fixture(scope="module")
def snapshots(store):
    return Snapshots(store_path(store, recipe())).read_all()


def test_the_folder_follows_from_all_that_counts(tmp_path):
    replace = dataclasses.replace
    paths = [
        store_path(tmp_path, config)
        for config in (
            recipe(),
            recipe(seed=12),
            recipe(data={"images": "abd"}),
            recipe(network={"network": "lenet"}),
            recipe(replace(OPTIONS, epochs=4)),
            recipe(replace(OPTIONS, learning_rate=0.2)),
            recipe(replace(OPTIONS, augmentation=("flip",))),
            recipe(replace(OPTIONS, dtype="bfloat16")),
        )
    ]
    assert len(set(paths)) == len(paths)
    assert store_path(tmp_path, recipe()) == paths[0]
    assert {path.parent for path in paths} == {tmp_path}


def test_configurations_of_before_there_were_teachers_keep_their_folders(tmp_path):
    """Hashes of the code of 2026-11-27, before momentum and the like; each of these counts."""
    network = {"network": "mlp", "compute": None}
    config = recipe(Options(), network=network)
    assert store_path(tmp_path, config).name == "ef5d2f27a3373082"
    assert store_path(tmp_path, recipe(network=network)).name == "70620d706c3a69e9"
    changes: list[dict] = [{"momentum": 0.9}, {"weight_decay": 0.1}, {"schedule": "cosine"}]
    changes += [{"schedule": "cosine", "warmup_epochs": 1}, {"all_augmentations": True}]
    others = [recipe(Options(**change), network=network) for change in changes]
    assert len({store_path(tmp_path, other) for other in (config, *others)}) == 6


def test_fingerprint_sees_contents_shape_and_dtype():
    zeros = np.zeros((4, 2), np.uint8)
    changed = zeros.copy()
    changed[3, 1] = 1
    prints = [fingerprint(array) for array in (
        zeros, changed, zeros.reshape(2, 4), zeros.astype(np.int8),
    )]  # fmt: skip
    assert len(set(prints)) == 4
    assert fingerprint(zeros[:, ::-1]) == prints[0]


def expert_key(expert):
    return jax.random.fold_in(stage_key(SEED, Stage.EXPERTS), expert)


def test_snapshot_0_is_the_start(snapshots):
    for expert in range(3):
        start = NETWORK.init(jax.random.fold_in(expert_key(expert), 0))
        np.testing.assert_allclose(snapshots[expert, 0], ravel_pytree(start)[0], atol=1e-7)


def test_epochs_equal_a_slow_loop(real, snapshots):
    assert snapshots.shape == (3, 4, 64 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10)
    pixels = np.asarray(real.images, np.float32) / 255
    images = (pixels - np.asarray(real.mean)) / np.asarray(real.sd)
    labels = np.asarray(real.labels)

    def loss(params, images, labels):
        logits = NETWORK.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    for expert in range(3):
        params = NETWORK.init(jax.random.fold_in(expert_key(expert), 0))
        for epoch in (1, 2):
            key = jax.random.fold_in(jax.random.fold_in(expert_key(expert), epoch), 0)
            order = np.asarray(jax.random.permutation(key, 60))
            for step in range(3):
                batch = order[16 * step : 16 * (step + 1)]
                moves = gradient(params, jnp.asarray(images[batch]), jnp.asarray(labels[batch]))
                params = jax.tree.map(lambda p, g: p - 0.1 * g, params, moves)
            np.testing.assert_allclose(
                snapshots[expert, epoch], ravel_pytree(params)[0], rtol=1e-5, atol=1e-6
            )


TAUGHT = dataclasses.replace(
    OPTIONS, count=1, momentum=0.9, weight_decay=0.01, schedule="cosine", warmup_epochs=1
)


def test_momentum_decay_and_schedule_equal_a_slow_loop_also_after_an_interruption(
    real, tmp_path, monkeypatch
):
    with interrupted_after(monkeypatch, 3), pytest.raises(Interrupted):
        trained(real, tmp_path, TAUGHT)
    path = trained(real, tmp_path, TAUGHT)
    found = Snapshots(path).read_all()[0]
    assert not list(path.glob("velocity*"))
    images = (np.asarray(real.images, np.float32) / 255 - np.asarray(real.mean)) / real.sd

    def loss(params, images, labels):
        logits = NETWORK.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient = jax.jit(jax.grad(loss))
    params = NETWORK.init(jax.random.fold_in(expert_key(0), 0))
    velocity = jax.tree.map(jnp.zeros_like, params)
    # A hundredth, then the cosine of two epochs: 1 and (1 + cos(pi / 2)) / 2.
    for epoch, rate in enumerate((0.001, 0.1, 0.05), 1):
        key = jax.random.fold_in(jax.random.fold_in(expert_key(0), epoch), 0)
        order = np.asarray(jax.random.permutation(key, 60))
        for batch in order[:48].reshape(3, 16):
            moves = gradient(params, images[batch], real.labels[batch])
            velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 0.01 * p, velocity, moves, params)
            params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, velocity)
        expected = ravel_pytree(params)[0]
        np.testing.assert_allclose(found[epoch], expected, rtol=1e-4, atol=1e-5)


def test_all_augmentations_are_applied_in_each_step(real):
    """One image, softmax regression from zero: the first step's weights are the image."""

    def forward(params, images, *, statistics=None):
        del statistics
        flat = images.reshape(len(images), -1)
        return Outputs(flat @ params, flat, ())

    linear = Network(lambda key: jnp.zeros((64, 10)), forward)
    one = real._replace(images=real.images[:1], labels=real.labels[:1])
    image = (np.asarray(one.images[0], np.float32) / 255 - np.asarray(real.mean)) / real.sd
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    views = np.stack([padded[1 + i : 9 + i, 1 + j : 9 + j] for i, j in shifts])
    views = np.stack([views, views[:, :, ::-1]]).reshape(18, 64)
    epoch = epoch_function(linear, ("crop", "flip"), 1, 1.0, Descent(all_augmentations=True))
    keys = jax.random.split(jax.random.key(0), 128)
    weights = np.asarray(jax.jit(epoch)(jnp.zeros((128, 640)), keys, one)[0])
    seen = weights.reshape(128, 64, 10)[..., int(one.labels[0])] / 0.9
    distances = np.abs(seen[:, None] - views).max(-1)
    np.testing.assert_allclose(distances.min(1), 0, atol=1e-5)
    assert len(set(distances.argmin(1).tolist())) == 18  # every shift, mirrored and not


def test_padding_changes_nothing(real):
    """A subtask's images, padded by any number, and an order that leaves no padding in a batch."""
    steps = experts.data_defaults(OPTIONS, 60)
    epoch = jax.jit(epoch_function(NETWORK, ("color",), *steps))
    keys = jax.random.split(jax.random.key(0), 2)
    start = jax.vmap(lambda k: ravel_pytree(NETWORK.init(k))[0])(keys)
    results = []
    for padding in (0, 40):
        garbage = jnp.full((padding, *real.images.shape[1:]), 255, jnp.uint8)
        padded = real._replace(
            images=jnp.concatenate([real.images, garbage]),
            labels=jnp.concatenate([real.labels, jnp.zeros(padding, jnp.int32)]),
            number=jnp.asarray(60, jnp.int32),
        )
        results.append(epoch(jnp.copy(start), keys, padded))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert np.isfinite(np.asarray(results[0][1])).all()
    order = np.asarray(_shuffled(keys[0], 100, jnp.asarray(60, jnp.int32)))
    np.testing.assert_array_equal(np.sort(order[:60]), np.arange(60))
    assert 10 < np.abs(order[:60] - np.arange(60)).mean() < 30  # 20 is expected of a random order


def test_one_snapshot_is_read_alone(store, snapshots):
    path = store_path(store, recipe())
    trajectories = Snapshots(path)
    assert trajectories.shape == snapshots.shape
    np.testing.assert_array_equal(trajectories.read(2, 1), snapshots[2, 1])
    np.testing.assert_array_equal(
        trajectories.read_all(slice(1, 3), slice(0, 2)), snapshots[1:3, 0:2]
    )
    # One file a snapshot: what is read is one of them.
    files = [f for f in (path / "snapshots").iterdir() if f.name != ".zarray"]
    assert len(files) == 3 * 4


def test_a_store_that_lacks_a_snapshot_is_not_read_as_zeros(store, snapshots, tmp_path):
    shutil.copytree(store_path(store, recipe()), tmp_path / "copy")
    (tmp_path / "copy" / "snapshots" / "1.2.0").unlink()
    with pytest.raises(InputError, match="holds 11 of 12 snapshots"):
        Snapshots(tmp_path / "copy")


def test_snapshots_are_streamed_from_disk_inside_a_compiled_loop(store, snapshots):
    streamed = Snapshots(store_path(store, recipe())).streamed()
    assert streamed.shape == snapshots.shape

    @jax.jit
    def both(streamed, weights):
        def loss(weights, expert, epoch):
            return weights @ streamed[expert, epoch]

        def step(number):
            return jax.grad(loss)(weights, number, 1), loss(weights, number, -1)

        return jax.lax.map(step, jnp.arange(3, dtype=jnp.int32))

    weights = jnp.arange(snapshots.shape[2], dtype=jnp.float32)
    gradients, values = both(streamed, weights)
    np.testing.assert_array_equal(gradients, snapshots[:, 1])
    np.testing.assert_allclose(values, snapshots[:, 3] @ np.asarray(weights), rtol=1e-5)


def test_found_again_without_training(real, store, monkeypatch, capsys):
    def forbidden(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(TRAINING, "epoch_function", forbidden)
    path = trained(real, store)
    assert path == store_path(store, recipe())
    assert f"found in {path}" in capsys.readouterr().out
    assert min(experts.training_time(path).values()) > 0


@contextmanager
def interrupted_after(monkeypatch, looks):
    """As if a signal came before the `looks`-th snapshot was written."""

    class Asked:
        seen = 0

        @property
        def requested(self):
            Asked.seen += 1
            return Asked.seen >= looks

    @contextmanager
    def interruption(ends):
        yield Asked()

    with monkeypatch.context() as patched:
        patched.setattr(TRAINING, "interruption", interruption)
        yield


@pytest.mark.parametrize("looks", [1, 3, 4, 6, 8])
def test_resumed_equals_uninterrupted(real, snapshots, looks, tmp_path, monkeypatch):
    with interrupted_after(monkeypatch, looks), pytest.raises(Interrupted):
        trained(real, tmp_path)
    path = store_path(tmp_path, recipe())
    assert not (path / "complete.json").exists()
    assert json.loads((path / "progress.json").read_text())["done"] == looks
    trained(real, tmp_path)
    np.testing.assert_array_equal(Snapshots(path).read_all(), snapshots)


def test_bfloat16_store(real, snapshots, tmp_path, monkeypatch):
    options = dataclasses.replace(OPTIONS, dtype="bfloat16")
    with interrupted_after(monkeypatch, 6), pytest.raises(Interrupted):
        trained(real, tmp_path, options)
    half = Snapshots(trained(real, tmp_path, options)).read_all()
    assert half.dtype == jnp.bfloat16
    assert experts.stored_bytes(NETWORK, options) == half.nbytes
    assert experts.stored_bytes(NETWORK, OPTIONS) == 2 * half.nbytes
    # Rounded where stored, not where trained, also after an interruption.
    np.testing.assert_array_equal(half, snapshots.astype(jnp.bfloat16))


def test_too_little_disk_is_said_before(real, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = experts.stored_bytes(NETWORK, OPTIONS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, needed - 1))
    monkeypatch.setattr(TRAINING, "epoch_function", None)
    with pytest.raises(InputError, match=r"need [\d.]+ kB in .* only [\d.]+ kB are free"):
        trained(real, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_written_needs_no_more_room(store, snapshots):
    assert (
        0.5 * snapshots.nbytes
        < experts.written_bytes(store_path(store, recipe()))
        < 1.1 * snapshots.nbytes
    )


def test_a_store_at_work_is_left_alone(real, tmp_path, monkeypatch):
    path = store_path(tmp_path, recipe())
    path.mkdir(parents=True)
    with locked(path, "training"), pytest.raises(Busy, match="another process"):
        trained(real, tmp_path)
    assert not (path / "snapshots").exists()


def test_experts_that_diverge(real, tmp_path):
    options = dataclasses.replace(OPTIONS, learning_rate=1e30)
    with pytest.raises(Diverged, match=r"epoch [12]; lower"):
        trained(real, tmp_path, options)
    assert not (store_path(tmp_path, recipe(options)) / "complete.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"epochs": 0}, {"batch_size": -1}, {"at_once": 0}, {"dtype": "float16"},
     {"epochs": 2.5}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
     {"augmentation": ("fold",)}, {"momentum": 1.0}, {"weight_decay": -1.0},
     {"schedule": "steps"}, {"warmup_epochs": 1}, {"schedule": "cosine", "warmup_epochs": 3}],
    ids=repr,
)  # fmt: skip
def test_options_out_of_range(real, tmp_path, wrong):
    with pytest.raises(InputError):
        trained(real, tmp_path, dataclasses.replace(OPTIONS, **wrong))


def test_a_batch_is_at_most_all_images_which_is_said(real, tmp_path, capsys):
    options = dataclasses.replace(OPTIONS, count=1, epochs=1, batch_size=1000)
    few = real._replace(images=real.images[:20], labels=real.labels[:20])
    assert Snapshots(trained(few, tmp_path, options)).shape[:2] == (1, 2)
    assert "batches of all 20 images, not of 1000: there are no more" in capsys.readouterr().out
