"""Class-incremental learning: a memory of distilled data, of as many bytes as real images.

    python -m experiments.continual [--steps 2] [--seeds 0]
    python -m experiments.continual --dataset digits
    D3JAX_DATA_DIR=... python -m experiments.continual --dataset tiny_imagenet_100_32

Classes arrive step by step, in an order that the seed draws. The images of a step's classes are
seen in that step alone; what is kept of them is a memory: D3's Gaussians with a decoder, distilled
pixels, random or herded images, all in a byte a number and within the same bytes. After each step
fresh networks are trained on all memory so far and tested on all classes so far. That is the
protocol of DM's and FRePo's experiments on CIFAR-100 (`np.random.seed(0..4)`, each step condensed
by itself); theirs counts images, not bytes. All distilled memories are matched alike, on experts of
the step's classes: on moved digits as D3 is by default, on others by its MMD alone (distribution
matching, as in DM). On Tiny-ImageNet students take 500 steps of up to 256 items, whatever a memory
holds; on others equally many epochs.

`d3` has a decoder for each step. `d3 replayed` has one: in each step the memory is distilled anew,
in the bytes of all steps so far, of the new images and of as many draws from the old memory as its
classes had images (generative replay, Shin et al., NeurIPS 2017).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

import d3jax
from d3jax import D3Options, Protocol, networks, synthetic
from d3jax.data import Dataset, Normalization, padded, subtasks
from d3jax.data.augment import default_strategy
from d3jax.evaluate import baselines, students
from d3jax.experts import Options as Experts
from d3jax.methods.registry import METHODS
from d3jax.run.resolve import resolved_experts
from d3jax.synthetic import budget, joined
from d3jax.synthetic.options import Parametrization
from d3jax.types import Method, Network, PyTree, Real, Synthetic
from experiments import rows, uses

REPLAYED = "d3 replayed"
KINDS = ("d3", REPLAYED, "pixels", "random", "herding")
BY_STEP = ("d3", "pixels")  # each step's classes are distilled by themselves


class Setting(NamedTuple):
    """How one data set is treated."""

    steps: tuple[int, ...]  # into how many the classes are cut
    width: int  # of the networks
    outer_steps: int
    d3: D3Options
    expert: Experts
    students: Protocol
    images: int = 10  # real images of a class; each memory has as many bytes for it
    rate: float = 0.01  # of students: that of the published protocol


SETTINGS = {
    "moved_digits": Setting(
        (2,), 16, 500, D3Options(), Experts(count=2, epochs=10),
        Protocol(students=2), images=8, rate=0.03,
    ),
    "digits": Setting(
        (2, 5), 16, 150, D3Options(trajectory=False), Experts(count=2, epochs=5),
        Protocol(students=2, epochs=200),
    ),
    "tiny_imagenet_100_32": Setting(
        (5, 10), 32, 150, D3Options(trajectory=False, mmd_samples=15), Experts(count=1, epochs=5),
        Protocol(students=1, steps=500), images=4, rate=0.03,
    ),
}  # fmt: skip


class Distiller(NamedTuple):
    """One compiled program for all memories of equally many classes."""

    network: Network
    method: Method
    bytes: int  # of a memory


def class_order(number: int, seed: int) -> list[int]:
    """The classes in the order in which they arrive: NumPy's `np.random.seed(seed)` permutation."""
    return [int(k) for k in np.random.RandomState(seed).permutation(number)]


def distiller(kind: str, part: Dataset, norm: Normalization, own: Setting) -> Distiller:
    """How the memory of a step's classes is learned, in no more bytes than its real images take."""
    shape = {"image_shape": part.image_shape, "num_classes": part.num_classes}
    size = own.images * part.num_classes * int(np.prod(part.image_shape))
    stored = synthetic.create(
        {"kind": "pixels", "num_items": own.images * part.num_classes, **shape}
    )
    if kind == "d3":
        options = Parametrization(kind="gaussian", budget_bytes=size, rounding="int8").resolved(
            part, kind="gaussian", items=None, least=1, storage="float16"
        )
        described = options.specification(part, norm)
        stored, size = synthetic.create(described), budget.stored_size(described, "int8")[1]
    chosen = dataclasses.replace(
        own.d3,
        inner_batch_size=min(stored.num_items, max(20, 2 * part.num_classes)),
        mmd_augmentation=default_strategy(part.name, part.class_names),
    )
    network = networks.create("convnet", width=own.width, **shape)
    method = d3jax.d3(network, stored, chosen, own.outer_steps)
    init, step, result = (jax.jit(function) for function in method[:3])
    return Distiller(network, method._replace(init=init, step=step, result=result), size)


def distilled(how: Distiller, real: Real, norm: Normalization, steps: int, key: Array) -> PyTree:
    """A memory after so many outer steps; D3 is learned in a byte a number, pixels are rounded."""
    for_start, for_steps, for_end = jax.random.split(key, 3)
    state = how.method.init(for_start, real)
    for _ in range(steps):
        state, _ = how.method.step(for_steps, state, real)
    theta = how.method.result(state, for_end)
    if "images" not in theta["data"]:
        return theta
    return {"data": {"images": norm.apply(norm.invert(np.asarray(theta["data"]["images"])))}}


def recalled(
    seen: Dataset, stored: Synthetic, theta: PyTree, norm: Normalization, key: Array
) -> Dataset:
    """The classes seen so far; training images of the first of them, the old ones, are draws."""
    old = np.flatnonzero(seen.train_labels < stored.num_classes)
    for_items, for_draws = jax.random.split(key)
    each = stored.num_items // stored.num_classes
    which = np.asarray(jax.random.randint(for_items, old.shape, 0, each))
    items = seen.train_labels[old].astype(np.int32) * each + which
    images = np.array(seen.train_images)
    images[old] = norm.invert(np.asarray(stored.sample(theta, for_draws, items).images))
    return seen._replace(train_images=images)


def learned(
    dataset: Dataset, number: int, own: Setting, seeds: Sequence[int]
) -> Iterator[tuple[int, str, int, int, float]]:
    """(seed, memory, classes seen, its bytes, test accuracy) after each of so many steps."""
    norm, each = Normalization.of(dataset.train_images), dataset.num_classes // number
    longest = int(np.bincount(dataset.train_labels).max())
    firsts = [subtasks.of(dataset, range((step + 1) * each)) for step in range(number)]
    how = {kind: distiller(kind, firsts[0], norm, own) for kind in BY_STEP}
    again = [how["d3"], *(distiller("d3", first, norm, own) for first in firsts[1:])]
    kinds = default_strategy(dataset.name, dataset.class_names)
    parts = [range(step * each, (step + 1) * each) for step in range(number)]
    expert = resolved_experts(own.expert, dataset, parts, METHODS["d3"].expert_learning_rate)
    protocol = dataclasses.replace(own.students, augmentation=kinds)

    def real_of(part: Dataset, seed: int, network: Network) -> Real:
        """With its experts; of one shape for all steps of as many classes."""
        real = padded(part.on_host(norm), part.num_classes * longest, longest)
        real = jax.tree.map(jnp.asarray, real._replace(number=np.int32(len(part.train_labels))))
        return real._replace(trajectories=d3jax.train_experts(network, real, expert, seed=seed))

    for seed in seeds:
        order = class_order(dataset.num_classes, seed)
        memories: dict[str, list[PyTree]] = {kind: [] for kind in KINDS if kind != REPLAYED}
        memory: PyTree = None  # of `REPLAYED`
        for step in range(number):
            of_step = jax.random.fold_in(jax.random.key(seed), step)
            for_memory, for_students, for_draws = jax.random.split(of_step, 3)
            part = subtasks.of(dataset, order[step * each : (step + 1) * each])
            seen = subtasks.of(dataset, order[: (step + 1) * each])
            real = real_of(part, seed, how["d3"].network)
            found: dict[str, tuple[Network, Synthetic, PyTree, int]] = {}
            for kind, kept in memories.items():
                own_way = how.get(kind, how["pixels"])
                if kind in how:
                    kept.append(distilled(own_way, real, norm, own.outer_steps, for_memory))
                else:
                    images = baselines.create(kind, part, norm, own.images, seed)
                    kept.append({"data": {"images": images}})
                data = own_way.method.synthetic
                network, stored = of_all(data, step + 1, dataset.image_shape, own.width)
                found[kind] = network, stored, joined.combine(kept), own_way.bytes * len(kept)
            if step == 0:
                memory = memories["d3"][0]
            else:
                before = again[step - 1].method.synthetic
                mixed = recalled(seen, before, memory, norm, for_draws)
                real = real_of(mixed, seed, again[step].network)
                memory = distilled(again[step], real, norm, own.outer_steps, for_memory)
            network, method, size = again[step]
            found[REPLAYED] = network, method.synthetic, memory, size
            test = seen.held_out(norm)
            for kind in KINDS:
                network, stored, theta, size = found[kind]
                reached = students.evaluate(
                    network, stored, theta, test, protocol, own.rate, for_students
                )
                yield seed, kind, seen.num_classes, size, float(reached.per_student.mean())


@functools.cache  # so that what is compiled serves all memories of one kind, and all seeds
def of_all(
    part: Synthetic, number: int, image_shape: tuple[int, int, int], width: int
) -> tuple[Network, Synthetic]:
    """A network of the classes of so many steps, and their memories as one."""
    each = part.num_classes
    shape = {"image_shape": image_shape, "num_classes": number * each}
    classes = [list(range(n * each, (n + 1) * each)) for n in range(number)]
    network = networks.create("convnet", width=width, **shape)
    return network, joined.create([part] * number, classes, **shape)


def picture(found: list[rows.Row]) -> Figure:
    """Accuracy as classes arrive: a panel for each number of steps, a line for each memory."""
    cuts = sorted({row["steps"] for row in found})
    figure = Figure(figsize=(4.5 * len(cuts) + 1.3, 3.6), layout="constrained")
    for axes, steps in zip(figure.subplots(1, len(cuts), sharey=True, squeeze=False)[0], cuts):
        for kind in KINDS:
            own = [row for row in found if (row["steps"], row["memory"]) == (steps, kind)]
            uses.line(axes, "classes", own, kind, "--" if kind in ("random", "herding") else "-")
        axes.set(title=f"{steps} steps", xlabel="classes seen")
    found_lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*found_lines, loc="outside right upper", frameon=False)
    return figure


def main(dataset: Dataset, cuts: Sequence[int], seeds: Sequence[int], own: Setting) -> None:
    """Runs all seeds, and keeps table and figure."""
    reached: dict[tuple[int, str, int, int], list[float]] = {}
    for steps in cuts:
        for seed, kind, classes, size, accuracy in learned(dataset, steps, own, seeds):
            reached.setdefault((steps, kind, classes, size), []).append(accuracy)
            print(
                f"{steps} steps, seed {seed}, {classes} classes: {kind} {accuracy:.3f}", flush=True
            )
    names = ("steps", "memory", "classes", "bytes")
    found: list[rows.Row] = [
        {**dict(zip(names, what)), "accuracy": uses.spread(values)}
        for what, values in reached.items()
    ]
    cells = []
    for steps in cuts:
        for kind in KINDS:
            after = [row for row in found if (row["steps"], row["memory"]) == (steps, kind)]
            per_step = zip(*(row["accuracy"]["per_seed"] for row in after))
            mean = uses.spread([sum(values) / len(after) for values in per_step])
            both = [uses.percent(accuracy) for accuracy in (after[-1]["accuracy"], mean)]
            cells.append([str(steps), kind, f"{after[-1]['bytes']:,}", *both])
    header = ["steps", "memory", "bytes of all", "after the last step, %", "mean of all steps, %"]
    remark = f"{dataset.name}; {own.students.students} students each."
    uses.keep(f"continual_{dataset.name}", found, header, cells, picture(found), seeds, remark)


if __name__ == "__main__":
    parser = uses.parser(__doc__, list(SETTINGS), "0")
    parser.add_argument("--steps", type=uses.numbers, help="into how many the classes are cut")
    said = parser.parse_args()
    dataset = d3jax.load_data(said.dataset)
    cuts = said.steps or SETTINGS[said.dataset].steps
    for steps in cuts:
        if steps < 1 or dataset.num_classes % steps or dataset.num_classes // steps < 2:
            parser.error(
                f"{dataset.num_classes} classes cannot be cut into {steps} steps of two or more "
                f"each; give --steps {','.join(map(str, SETTINGS[said.dataset].steps))}"
            )
    main(dataset, cuts, said.seeds, SETTINGS[said.dataset])
