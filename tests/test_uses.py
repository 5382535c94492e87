"""The examples of docs/examples.md: their numbers by hand, and small runs of each."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d3jax
from d3jax import networks
from d3jax.data import Normalization, host_arrays
from d3jax.losses import cross_entropy
from experiments import choosing, continual, federated, rows, uses


@pytest.fixture(scope="module")
def digits():
    return d3jax.load_data("digits", train_limit=300, test_limit=50)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """(name) -> the result of that name, where the test has written it, with a figure."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(uses, "PICTURES", tmp_path)

    def read(name):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(len(row) == len(found["header"]) for row in found["cells"])
        assert {"seeds", "hardware", "date", "commits", "note"} <= set(found)
        return found

    return read


def test_classes_arrive_as_numpys_permutations_say():
    assert continual.class_order(10, 0) == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert sorted(continual.class_order(10, 1)) == list(range(10))


@pytest.mark.parametrize("split", federated.SPLITS)
def test_every_image_is_one_clients(split):
    labels = np.repeat(np.arange(10), 100)
    clients = federated.clients_of(labels, split, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(1000))
    again = federated.clients_of(labels, split, seed=3)
    other = federated.clients_of(labels, split, seed=4)
    assert all(map(np.array_equal, clients, again))
    assert not all(map(np.array_equal, clients, other))
    if split == "disjoint":
        assert [len(np.unique(labels[own])) for own in clients] == [1] * 10


def test_shares_are_those_of_a_dirichlet():
    """Squares of n shares of Dirichlet(a) have the mean sum (a + 1) / (n a + 1), here 0.55."""
    labels = np.repeat(np.arange(10), 1000)
    squares = []
    for seed in range(20):
        clients = federated.clients_of(labels, "dirichlet", seed)
        counts = np.stack([np.bincount(labels[own], minlength=10) for own in clients])
        squares.append(((counts / 1000) ** 2).sum(0).mean())
    assert np.mean(squares) == pytest.approx(0.55, abs=0.04)


def test_bytes_that_are_sent():
    assert federated.sent_by_fedavg(10, 1000) == 10 * 10 * 2 * 4000
    assert federated.sent_once(100, (8, 8, 1)) == 6500


def test_a_round_of_fedavg_is_a_weighted_mean_of_the_clients_steps():
    """One client has one image, the other two that are alike: whatever they draw is known."""
    network = networks.create("mlp", image_shape=(8, 8, 1), num_classes=2, width=4)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)[[0, 1, 1]]
    labels = np.array([0, 1, 1], np.int32)
    real = host_arrays(images, labels, 2, Normalization.of(images))
    real = jax.tree.map(jnp.asarray, real)
    key = jax.random.key(0)
    clients = [np.array([0]), np.array([1, 2])]
    start = network.init(jax.random.split(key)[0])
    found = federated.fedavg(network, real, clients, (1,), 1, key, batch=4, rate=0.5)[0]

    def loss(params, image):
        logits = network.apply(params, real.gather(jnp.array([image])))
        return cross_entropy(logits, jax.nn.one_hot(labels[[image]], 2))

    gradients = [jax.grad(loss)(start, image) for image in (0, 1)]
    expected = jax.tree.map(
        lambda p, a, b: p - 0.5 * (a / 3 + 2 * b / 3), start, gradients[0], gradients[1]
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)


def test_spearmans_correlation_and_what_a_choice_costs():
    """Ranks differ by 1 four times: 1 - 6 * 4 / (5 * 24) = 0.8."""
    few, whole = [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.3, 0.6, 0.4]
    assert choosing.ranking(few, whole) == (pytest.approx(0.8), pytest.approx(0.2))
    assert choosing.ranking([0.5] * 5, whole) == (0.0, pytest.approx(0.4))


@pytest.mark.long
def test_a_memory_grows_by_equal_bytes(digits, kept):
    own = continual.Setting(
        (2,), 4, 2, d3jax.D3Options(trajectory=False, mmd_samples=2),
        d3jax.experts.Options(count=1, epochs=1), d3jax.Protocol(students=1, epochs=2),
    )  # fmt: skip
    continual.main(digits, (2,), (0,), own)
    found = kept("continual_digits")["rows"]
    sizes = {(row["memory"], row["classes"]): row["bytes"] for row in found}
    for kind in ("pixels", "random", "herding"):  # ten images of 64 bytes for each class
        assert [sizes[kind, classes] for classes in (5, 10)] == [3200, 6400]
    assert 0.8 * 3200 < sizes["d3", 5] <= 3200
    assert sizes["d3", 10] == 2 * sizes["d3", 5]
    assert sizes["d3 replayed", 5] == sizes["d3", 5]
    assert 0.8 * 6400 < sizes["d3 replayed", 10] <= 6400
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in found)


def test_a_memory_is_recalled_in_draws_of_its_classes(digits):
    """Images of class k are drawn all in the shade 10 k; new classes keep theirs."""
    norm = Normalization.of(digits.train_images)
    shades = np.repeat(10 * np.arange(3, dtype=np.uint8), 2)
    images = norm.apply(np.broadcast_to(shades[:, None, None, None], (6, 8, 8, 1)))
    shape = {"image_shape": (8, 8, 1), "num_classes": 3}
    stored = d3jax.synthetic.create({"kind": "pixels", "num_items": 6, **shape})
    theta = {"data": {"images": jnp.asarray(images)}}
    found = continual.recalled(digits, stored, theta, norm, jax.random.key(0))
    old = digits.train_labels < 3
    expected = 10 * digits.train_labels[old][:, None, None, None]
    np.testing.assert_array_equal(
        found.train_images[old], np.broadcast_to(expected, (old.sum(), 8, 8, 1))
    )
    np.testing.assert_array_equal(found.train_images[~old], digits.train_images[~old])


@pytest.mark.long
def test_clients_send_once(digits, kept, monkeypatch):
    monkeypatch.setattr(federated, "ROUNDS", (1, 2))
    own = federated.Setting(
        4, images=(1,), outer_steps=2, networks=2, local_steps=2, students=1, steps=2
    )
    federated.main(digits, (0,), own)
    found = {(row["split"], row["label"]): row["bytes"] for row in kept("federated_digits")["rows"]}
    assert found["disjoint", "distilled, 1 a class"] == 10 * 65
    assert found["disjoint", "random, 1 a class"] == 10 * 65
    assert found["dirichlet", "distilled, 1 a class"] > 10 * 65
    assert found["disjoint", "FedAvg, 2 rounds"] == 2 * found["disjoint", "FedAvg, 1 round"]


def small(name):
    own = choosing.SETTINGS[name]
    data = {"validation": 50, "train_limit": 300, "test_limit": 50}
    return own._replace(data=data, outer_steps=2, epochs=1, few=2), d3jax.load_data(name, **data)


@pytest.mark.long
def test_candidates_are_ranked_on_few_images(kept, monkeypatch):
    """All but the distilling, in whose place there are real images."""
    own, dataset = small("digits")
    norm = Normalization.of(dataset.train_images)
    images, labels = norm.apply(dataset.train_images), dataset.train_labels
    few = choosing.Lesson(*uses.stored(images[:20], labels[:20], 10), 2)
    every = choosing.Lesson(*uses.stored(images, labels, 10), 1)
    found = {"all": every, "distilled": few, "random": few}
    monkeypatch.setattr(choosing, "lessons", lambda *given: (found, 1.5))
    shape = {"image_shape": (8, 8, 1), "num_classes": 10, "depth": 1}
    names = {2: "16 x 2, instance, average", 3: "another"}
    nets = {name: networks.create("convnet", width=k, **shape) for k, name in names.items()}
    monkeypatch.setattr(choosing, "architectures", lambda number, dataset: nets)
    choosing.main("digits", 2, (0,), own)
    rows = kept("choosing_digits")["rows"]
    assert [(row["chosen"], row["by"]) for row in rows] == [
        (kind, by) for kind in ("networks", "learning rates") for by in ("distilled", "random")
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert all(-1 <= row["rank_correlation"]["mean"] <= 1 and row["seconds"] > 0 for row in rows)
    assert len(rows[2]["accuracy"][0]) == len(choosing.RATES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("moved_digits", (16, 16, 1))])
def test_what_candidates_are_trained_on(name, shape):
    own, dataset = small(name)
    norm = Normalization.of(dataset.train_images)
    found, spent = choosing.lessons(dataset, norm, 0, own)
    assert spent > 0
    assert found["all"].theta["data"]["images"].shape == (300, *shape)
    assert found["random"].theta["data"]["images"].shape == (10 * own.images, *shape)
    batch = found["distilled"].data.sample(found["distilled"].theta, jax.random.key(0))
    assert batch.images.shape[1:] == shape
    np.testing.assert_array_equal(batch.targets.sum(0), len(batch.images) / 10)
    assert len(choosing.architectures(48, dataset)) == 48


def test_steps_that_do_not_fit_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        uses.parser("Doc.", ["digits"], "0").parse_args(["--seeds", "a"])
    assert "whole numbers with commas between" in capsys.readouterr().err
