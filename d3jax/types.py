"""The contracts that the rooms of d3jax meet: NamedTuples of arrays and of pure functions.

Shapes: B items in a batch, H x W x C an image, K classes, F features, N real images,
E experts, T inner steps, P network parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says what would be right.

    The command line prints the sentence alone and exits with code 2.
    """


def check_known(what: str, value: Any, known: Iterable[str]) -> None:
    """Raises InputError where `value` is none of `known`; `what` names it in the message."""
    if value not in (names := tuple(known)):
        raise InputError(f"unknown {what} {value!r}; known: {', '.join(names)}")


def check_at_least_one(options: Any, *names: str) -> None:
    """Raises InputError where one of these attributes is a number below 1; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")


class Outputs(NamedTuple):
    """What a network says of a batch."""

    logits: Array  # f[B, K]
    features: Array  # f[B, F], the input of the classifier
    # (mean, variance) per batch norm, of what this batch gives it, whether or not frozen ones were
    # used; an empty tuple without batch norm
    statistics: PyTree


class Network(NamedTuple):
    """A Flax module seen as pure functions."""

    init: Callable[[Array], PyTree]  # key -> params
    forward: Callable[..., Outputs]  # (params, images f[B, H, W, C], *, statistics=None)

    def apply(self, params: PyTree, images: Array) -> Array:
        """Logits f[B, K] of normalized `images` f[B, H, W, C]."""
        return self.forward(params, images).logits


class Batch(NamedTuple):
    """What a student trains on."""

    images: Array  # f[B, H, W, C], normalized
    targets: Array  # f[B, K]; what a row means is fixed by the label kind


class Synthetic(NamedTuple):
    """How distilled data is parametrized; knows nothing of objectives.

    Item i belongs to class `i * num_classes // num_items`; both numbers are static.
    """

    init: Callable[[Array, "Real"], dict[str, PyTree]]  # (key, real) -> theta
    # (theta, key, indices=None) -> Batch; key None: the deterministic decode; indices i32[B]: which
    # stored items, default all of them in order (d3jax's own take seeds and lists too)
    sample: Callable[..., Batch]
    # (theta, key) -> theta, completed so that a decode depends on nothing else in its batch
    freeze: Callable[[dict[str, PyTree], Array], dict[str, PyTree]]
    num_items: int
    num_classes: int
    groups: tuple[str, ...] = ("data",)  # the groups of theta that can be learned
    items_per_row: int = 1  # consecutive items that one row of the group `data` makes
    # (theta, real) -> theta within what pixels can be, where it holds pixels
    clip: Callable[[dict[str, PyTree], "Real"], dict[str, PyTree]] = lambda theta, real: theta
    label_kind: str = "hard"  # what a row of targets means (`synthetic.labels.KINDS`)


class Objective(NamedTuple):
    """A loss of distilled data against the real world; knows nothing of pixels or latents."""

    name: str
    init: Callable[[Array, "Real"], PyTree]  # (key, real) -> aux
    # (theta, sample, aux, step, key, real) -> (loss f[], (aux, metrics dict of f[])); step i32[] is
    # the outer step's number, from 0
    loss: Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
    updates: tuple[str, ...]  # the groups of theta that it moves


class State(NamedTuple):
    """All that an outer step reads and writes."""

    theta: dict[str, PyTree]
    # one optax state per moved group of theta, or a dict of one per objective (`compose`)
    optimizer: dict[str, PyTree]
    aux: tuple[PyTree, ...]  # one per objective
    step: Array  # i32[]


class Method(NamedTuple):
    """A distillation method: what `distill.loop` runs, and what a user can jit, vmap and shard."""

    init: Callable[[Array, "Real"], State]
    step: Callable[[Array, State, "Real"], tuple[State, dict[str, Array]]]  # (key, state, real)
    result: Callable[[State, Array], dict[str, PyTree]]  # (state, key) -> frozen theta
    synthetic: Synthetic
    objectives: tuple[Objective, ...]


class Trajectories(Protocol):
    """Expert parameters f[E, epochs + 1, P]: an array, or one that is read as it is needed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, epochs + 1, P)."""
        ...

    def __getitem__(self, index: Any, /) -> Array:
        """Parameters f[P] at (expert, epoch)."""
        ...


class Real(NamedTuple):
    """What a step needs of the real world: on the device, sampled by key inside the step."""

    images: Array  # u8[N, H, W, C] raw, or f[N, H, W, C] already normalized (ZCA)
    labels: Array  # i32[N]
    class_index: Array  # i32[K, longest]: positions of each class's images, padded with its first
    class_counts: Array  # i32[K]
    mean: Array  # f[C], of pixels in [0, 1]
    sd: Array  # f[C]
    trajectories: Trajectories | None = None  # f[E, epochs + 1, P], expert parameters
    # i32[]: how many of the images there are, the rest being padding; None: they are not a
    # subtask's, and all are real. What a subtask draws does not depend on how much it is padded.
    number: Array | None = None

    def snapshots(self, last_epoch: int = 0) -> Trajectories:
        """The experts' `trajectories`, which go to `last_epoch` at least.

        Raises:
          InputError: there are none, or they end before.
        """
        if self.trajectories is None:
            raise InputError(
                "this reads experts' weights: give real._replace(trajectories="
                "d3jax.train_experts(network, real))"
            )
        if self.trajectories.shape[1] <= last_epoch:
            raise InputError(
                f"this reads experts' epochs up to {last_epoch}, the experts have "
                f"{self.trajectories.shape[1] - 1}: train them for more"
            )
        return self.trajectories

    def gather(self, index: Array) -> Array:
        """Normalized images f[..., H, W, C] at positions `index` i32[...]."""
        return _normalized(self.images[index], self.mean, self.sd)

    def sample(self, key: Array, number: int) -> Array:
        """`number` positions i32[number], drawn uniformly with replacement; none is padding."""
        count = self.labels.shape[0] if self.number is None else self.number
        return jax.random.randint(key, (number,), 0, count, jnp.int32)

    def sample_classes(self, key: Array, number: int) -> Array:
        """`number` positions i32[K, number] of every class, drawn uniformly with replacement."""
        counts = self.class_counts[:, None]
        draws = jax.random.randint(key, (counts.shape[0], number), 0, counts, counts.dtype)
        return jnp.take_along_axis(self.class_index, draws, axis=1)

    def sample_different(self, key: Array, number: int) -> Array:
        """As `sample_classes`, but of a class no image twice until all of it are taken.

        Each order of a class's images is as likely as any other; past their number, another order
        begins. The draws depend on `key`, `number` and `class_counts` alone.
        """
        counts = self.class_counts[:, None]
        place = jnp.arange(number, dtype=counts.dtype)
        taken = place % counts  # i32[K, number], since the class was last used up
        # The shuffle of Fisher and Yates: each draw takes the image at a random place among those
        # that are not taken, and the first of these moves there. Which image is at a place then is
        # found backwards, move by move, without a list of all of the class.
        drawn = jax.random.randint(key, taken.shape, taken, counts, counts.dtype)

        def before(turn: Array, at: Array) -> Array:
            """From where the images at places `at` were moved there by the draw before `turn`."""
            move = number - 1 - turn.astype(counts.dtype)
            earlier = (place - taken <= move) & (move < place)
            return jnp.where(earlier & (at == drawn[:, move, None]), taken[:, move, None], at)

        chosen = jax.lax.fori_loop(0, number, before, drawn)
        return jnp.take_along_axis(self.class_index, chosen, axis=1)


class HeldOut(NamedTuple):
    """Images that nothing is trained on: they judge, or choose; nothing is drawn of them."""

    images: Array  # u8[N, H, W, C] raw, or f[N, H, W, C] already normalized (ZCA)
    labels: Array  # i32[N]
    mean: Array  # f[C], of pixels in [0, 1]
    sd: Array  # f[C]

    def gather(self, index: Array) -> Array:
        """Normalized images f[..., H, W, C] at positions `index` i32[...]."""
        return _normalized(self.images[index], self.mean, self.sd)


def _normalized(images: Array, mean: Array, sd: Array) -> Array:
    """Raw images normalized; others are as they are."""
    if images.dtype != jnp.uint8:
        return images
    dtype = mean.dtype
    return (images.astype(dtype) / jnp.asarray(255, dtype) - mean) / sd
