"""One-shot federated learning: each client sends distilled data once, a server trains on all of it.

    python -m experiments.federated [--seeds 0]
    D3JAX_DATA_DIR=... python -m experiments.federated --dataset mnist

Ten clients hold the training images, by Dirichlet(0.1) (each class's images are dealt in shares of
their own) or with classes of their own. A client distils each class of which it has images enough
into a few, by distribution matching (DM, arXiv 2110.04181, with the MMD of D3) in the features of
networks with random weights, rounds them to bytes, and sends them. The server trains fresh networks
on what all have sent. Beside it stand as many real images, drawn at random, and FedAvg (McMahan et
al., arXiv 1602.05629): in every round each client receives the network, takes some steps on its own
images, and sends it back.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import d3jax
from d3jax import Batch, Protocol, losses, networks
from d3jax.data import Dataset, Normalization, host_arrays, padded
from d3jax.data.augment import default_strategy
from d3jax.distill.objectives import feature_mmd
from d3jax.evaluate import classify, students
from d3jax.networks import initial_parameters, parameter_count
from d3jax.synthetic import pixels
from d3jax.types import Method, Network, PyTree, Real
from experiments import rows, uses

CLIENTS, CONCENTRATION, ROUNDS = 10, 0.1, (1, 10, 100)
SPLITS = ("dirichlet", "disjoint")
RATE = 0.01  # of the server's students


class Setting(NamedTuple):
    """How one data set is treated."""

    width: int  # of all networks
    images: tuple[int, ...] = (1, 10)  # that a client sends of a class
    outer_steps: int = 100
    networks: int = 20  # random ones, in whose features images are matched
    local_steps: int = 10  # of FedAvg, in each round, on batches of 32 at rate 0.1
    students: int = 3
    steps: int = 300  # of each student


SETTINGS = {
    "digits": Setting(width=16),
    "mnist": Setting(width=64, images=(1, 10, 50), outer_steps=500, steps=1000),
}


def clients_of(
    labels: np.ndarray, split: str, seed: int, clients: int = CLIENTS
) -> list[np.ndarray]:
    """Positions of each client's images, ascending; every image is one client's.

    `dirichlet`: each class is cut in shares of Dirichlet(0.1), drawn again until no client has
    fewer than 10 images; `disjoint`: classes in random order, divided as evenly as can be.
    """
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    if split == "disjoint":
        dealt = np.array_split(rng.permutation(classes), clients)
        return [np.flatnonzero(np.isin(labels, own)) for own in dealt]
    while True:
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for k in range(classes):
            members = rng.permutation(np.flatnonzero(labels == k))
            shares = np.cumsum(rng.dirichlet(np.full(clients, CONCENTRATION)))[:-1]
            for part, own in zip(parts, np.split(members, (shares * len(members)).astype(int))):
                part.append(own)
        found = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, found)) >= 10:
            return found


def sent_by_fedavg(rounds: int, parameters: int, clients: int = CLIENTS) -> int:
    """Bytes to and from all clients: float32 parameters, both ways, in every round."""
    return rounds * clients * 2 * 4 * parameters


def sent_once(images: int, image_shape: tuple[int, int, int]) -> int:
    """Bytes of so many images, a byte a pixel, and their labels, a byte each."""
    return images * (int(np.prod(image_shape)) + 1)


@cache
def matching(
    network: Network, image_shape: tuple[int, int, int], number: int, steps: int
) -> Method:
    """Distribution matching of `number` images of one class, compiled.

    The MMD is a sum over classes, and pixels share nothing: so classes can be distilled one by one.
    """
    stored = pixels.create(image_shape=image_shape, num_classes=1, num_items=number)
    objective = feature_mmd(
        network, number, 1, samples=max(number, 20), bandwidth="median", updates=("data",)
    )
    adam = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    method = d3jax.compose(stored, (objective,), {"data": adam})
    return method._replace(init=jax.jit(method.init), step=jax.jit(method.step))


def upload(
    dataset: Dataset, clients: list[np.ndarray], number: int, distil: bool,
    network: Network, norm: Normalization, own: Setting, key: Array,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What all clients send: `number` images of each class of which a client has as many, distilled
    or random real ones; f32[N, H, W, C], normalized, whole numbers as pixels, and labels i32[N]."""
    method = matching(network, dataset.image_shape, number, own.outer_steps)
    longest = int(np.bincount(dataset.train_labels).max())
    for_networks, for_images = jax.random.split(key)
    random = jax.vmap(lambda k: initial_parameters(network, k))(
        jax.random.split(for_networks, own.networks)
    )[:, None]
    images, labels = [], []
    for turn, positions in enumerate(clients):
        for k in np.unique(dataset.train_labels[positions]):
            mine = positions[dataset.train_labels[positions] == k]
            if len(mine) < number:
                continue
            real = host_arrays(dataset.train_images[mine], np.zeros(len(mine), int), 1, norm)
            real = jax.tree.map(jnp.asarray, padded(real, longest, longest))  # one shape for all
            real = real._replace(trajectories=random)
            of_class = jax.random.fold_in(jax.random.fold_in(for_images, turn), k)
            for_start, for_steps = jax.random.split(of_class)
            state = method.init(for_start, real)  # random real images
            for _ in range(own.outer_steps if distil else 0):
                state, _ = method.step(for_steps, state, real)
            found = np.asarray(state.theta["data"]["images"])
            images.append(norm.apply(norm.invert(found)))
            labels.append(np.full(number, k, np.int32))
    return np.concatenate(images), np.concatenate(labels)


def fedavg(
    network: Network, real: Real, clients: list[np.ndarray], rounds: tuple[int, ...],
    local_steps: int, key: Array, batch: int = 32, rate: float = 0.1,
) -> list[PyTree]:  # fmt: skip
    """The server's network after each of `rounds`, ascending.

    A round: each client takes `local_steps` of SGD on its images, drawn with replacement (the paper
    counts epochs), and the server averages their networks by how many images each has.
    """
    counts = np.array([len(own) for own in clients])
    index = jnp.asarray([np.resize(own, counts.max()) for own in clients])
    weights = jnp.asarray(counts / counts.sum(), jnp.float32)
    classes = real.class_counts.shape[0]
    rates = jnp.full(local_steps, rate)

    def loss(params: PyTree, batch: Batch) -> Array:
        return losses.cross_entropy(network.apply(params, batch.images), batch.targets)

    def local(params: PyTree, own: tuple[Array, Array, Array]) -> PyTree:
        positions, count, key = own
        drawn = positions[jax.random.randint(key, (local_steps, batch), 0, count)]
        targets = jax.nn.one_hot(real.labels[drawn], classes)
        return d3jax.unroll(loss, params, Batch(real.gather(drawn), targets), rates)

    @jax.jit
    def one_round(params: PyTree, key: Array) -> PyTree:
        each = (index, jnp.asarray(counts), jax.random.split(key, len(clients)))
        found = jax.lax.map(lambda own: local(params, own), each)
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), found)

    for_start, for_rounds = jax.random.split(key)
    params, kept = network.init(for_start), []
    for number in range(1, rounds[-1] + 1):
        params = one_round(params, jax.random.fold_in(for_rounds, number))
        if number in rounds:
            kept.append(params)
    return kept


def compared(
    dataset: Dataset, split: str, seed: int, network: Network, own: Setting
) -> Iterator[tuple[str, int, float]]:
    """(what is sent, bytes, test accuracy) of one seed."""
    norm = Normalization.of(dataset.train_images)
    test, clients = dataset.held_out(norm), clients_of(dataset.train_labels, split, seed)
    kinds = default_strategy(dataset.name, dataset.class_names)
    protocol = Protocol(students=own.students, steps=own.steps, augmentation=kinds)
    for_upload, for_students, for_rounds = jax.random.split(jax.random.key(seed), 3)
    for number in own.images:
        for name, distil in (("distilled", True), ("random", False)):
            sent = upload(dataset, clients, number, distil, network, norm, own, for_upload)
            stored, theta = uses.stored(*sent, dataset.num_classes)
            reached = students.evaluate(network, stored, theta, test, protocol, RATE, for_students)
            size = sent_once(stored.num_items, dataset.image_shape)
            yield f"{name}, {number} a class", size, float(reached.per_student.mean())
    trained = fedavg(network, dataset.real(norm), clients, ROUNDS, own.local_steps, for_rounds)
    for number, params in zip(ROUNDS, trained):
        right = classify.accuracy(network, ravel_pytree(params)[0][None], test)
        size = sent_by_fedavg(number, parameter_count(params))
        yield f"FedAvg, {number} round{'s' if number > 1 else ''}", size, float(right[0])


def picture(found: list[rows.Row]) -> Figure:
    """Accuracy against bytes sent, a panel for each split."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, split in zip(figure.subplots(1, 2, sharey=True), SPLITS):
        for name in ("distilled", "random", "FedAvg"):
            own = [r for r in found if r["split"] == split and r["label"].startswith(f"{name},")]
            uses.line(axes, "bytes", own, name, "-" if name == "distilled" else "--")
        axes.set(title=split, xscale="log", xlabel="bytes sent")
    figure.axes[0].legend()
    return figure


def main(dataset: Dataset, seeds: tuple[int, ...], own: Setting) -> None:
    """Runs all seeds, and keeps table and figure."""
    network = networks.create(
        "convnet", image_shape=dataset.image_shape, num_classes=dataset.num_classes, width=own.width
    )
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for split in SPLITS:
        for seed in seeds:
            for label, size, accuracy in compared(dataset, split, seed, network, own):
                found.setdefault((split, label), []).append((size, accuracy))
                print(f"{split}, seed {seed}: {label}, {size:,} bytes: {accuracy:.3f}", flush=True)
    kept = [
        {"split": split, "label": label, "bytes": round(np.mean([size for size, _ in values])),
         "accuracy": uses.spread([accuracy for _, accuracy in values])}
        for (split, label), values in found.items()
    ]  # fmt: skip
    cells = [
        [row["split"], row["label"], f"{row['bytes']:,}", uses.percent(row["accuracy"])]
        for row in kept
    ]
    remark = f"{dataset.name}, {CLIENTS} clients; bytes: mean of seeds, of FedAvg both ways."
    header = ["split", "what is sent", "bytes", "test accuracy %"]
    uses.keep(f"federated_{dataset.name}", kept, header, cells, picture(kept), seeds, remark)


if __name__ == "__main__":
    said = uses.parser(__doc__, list(SETTINGS), "0").parse_args()
    main(d3jax.load_data(said.dataset), said.seeds, SETTINGS[said.dataset])
