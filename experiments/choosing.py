"""Choosing a network and a learning rate on distilled data instead of all images.

    python -m experiments.choosing [--networks 12] [--seeds 0]
    python -m experiments.choosing --dataset digits
    D3JAX_DATA_DIR=... python -m experiments.choosing --dataset cifar10 --networks 48

Candidates, ConvNets or learning rates, are trained on all training images and tested on the test
images; and on distilled data, or random real images of as many bytes, where images that nothing is
trained on judge them. Distilled are D3's Gaussians and decoder in a byte a number on moved digits,
whose students see fresh samples in each epoch, and pixels by D3's MMD alone on others. How well
such data ranks the candidates is Spearman's rank correlation of the two accuracies (DC, arXiv
2006.05929, and DM rank 720 networks so); what a choice by it costs is how far the chosen one is
below the best of all. Seconds are those of training all candidates, without compilation, which
takes as long in both.
"""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

import d3jax
from d3jax import Dataset, Protocol, networks
from d3jax.data import Normalization, held_out
from d3jax.data.augment import default_strategy
from d3jax.evaluate import baselines, classify, students
from d3jax.types import HeldOut, Network, PyTree, Synthetic
from experiments import rows, uses

RATES = np.geomspace(1e-3, 3, 12).astype(np.float32)
RATE = 0.03  # of networks that are compared
PIXELS = {"parametrization": "pixels", "images_per_class": 10, "trajectory": False, "width": 16}
# As many bytes as 4 images of each class, a byte a pixel.
GAUSSIANS = {"parametrization": "gaussian", "budget_bytes": 10 * 4 * 256, "rounding": "int8"}


class Setting(NamedTuple):
    """How one data set is treated."""

    data: dict[str, Any]  # which images, for `load_data`
    distilled: dict[str, Any]  # options of d3
    outer_steps: int
    images: int  # random ones of a class
    epochs: int  # on all training images
    few: int  # epochs on the others


SETTINGS = {
    "moved_digits": Setting({"train_limit": 3600, "validation": 600}, GAUSSIANS, 500, 4, 6, 100),
    "digits": Setting({"validation": 300}, PIXELS, 300, 10, 30, 120),
    "cifar10": Setting({"train_limit": 10_000, "validation": 2000}, PIXELS, 1000, 10, 20, 80),
}


class Lesson(NamedTuple):
    """What candidates are trained on, and how long."""

    data: Synthetic
    theta: PyTree
    epochs: int


def architectures(number: int, dataset: Dataset) -> dict[str, Network]:
    """So many small ConvNets, by name: the first 12 of 48 differ in width, depth and norm."""
    shape = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
    found = {}
    for pooling, norms in itertools.product(
        ("average", "max"), (("instance", "none"), ("group", "batch"))
    ):
        for norm, depth, width in itertools.product(norms, (1, 2), (8, 16, 32)):
            own: dict[str, Any] = {"width": width, "depth": depth, "norm": norm}
            name = f"{width} x {depth}, {norm}, {pooling}"
            found[name] = networks.create("convnet", **own, pooling=pooling, **shape)
    return dict(itertools.islice(found.items(), number))


def lessons(dataset: Dataset, norm: Normalization, seed: int, own: Setting) -> Any:
    """All training images; distilled data and random images; and the seconds of distilling."""
    made = d3jax.distill(
        "d3", dataset, seed=seed, outer_steps=own.outer_steps, baselines=(),
        choose_learning_rate=False, student=Protocol(students=1, epochs=1), **own.distilled,
    )  # fmt: skip
    number, every = dataset.num_classes, norm.apply(dataset.train_images)
    drawn = baselines.create("random", dataset, norm, own.images, seed)
    classes = np.arange(number).repeat(own.images)
    found = {
        "all": Lesson(*uses.stored(every, dataset.train_labels, number), own.epochs),
        "distilled": Lesson(made.artifact.synthetic, made.artifact.decodable(), own.few),
        "random": Lesson(*uses.stored(drawn, classes, number), own.few),
    }
    spent = made.report["seconds"]
    return found, spent["experts"] + spent["distill"]


def at_networks(
    candidates: dict[str, Network], lesson: Lesson, test: HeldOut, protocol: Protocol, seed: int
) -> tuple[list[float], float]:
    """The accuracy of each network's students, and the seconds that all took."""
    found, spent = [], 0.0
    for network in candidates.values():
        key = jax.random.key(seed)
        reached = students.evaluate(network, lesson.data, lesson.theta, test, protocol, RATE, key)
        found.append(float(reached.per_student.mean()))
        spent += reached.seconds * protocol.students
    return found, spent


def at_rates(
    network: Network, lesson: Lesson, test: HeldOut, protocol: Protocol, seed: int
) -> tuple[list[float], float]:
    """The accuracy of one student at each of `RATES`, trained side by side, and the seconds."""
    params, spent = students.train_students(
        network, lesson.data, lesson.theta, protocol, RATES, jax.random.key(seed),
        students=np.zeros(len(RATES), int),
    )  # fmt: skip
    return [float(a) for a in classify.accuracy(network, params, test)], spent


def ranking(few: list[float], whole: list[float]) -> tuple[float, float]:
    """Spearman's rank correlation, and how far the best on `few` is below the best of all.

    Where all candidates are alike nothing is ranked, and the correlation is 0.
    """
    alike = min(len(set(few)), len(set(whole))) < 2
    correlation = 0.0 if alike else float(np.corrcoef(rankdata(few), rankdata(whole))[0, 1])
    return correlation, max(whole) - whole[int(np.argmax(few))]


def main(name: str, number: int, seeds: tuple[int, ...], own: Setting) -> None:
    """Runs all seeds, and keeps table and figure."""
    loaded = {seed: d3jax.load_data(name, seed=seed, **own.data) for seed in seeds}
    candidates = architectures(number, loaded[seeds[0]])
    plain = candidates["16 x 2, instance, average"]
    reached: dict[tuple[str, str], list[tuple[list[float], float]]] = {}
    distilling = []
    for seed, dataset in loaded.items():
        norm = Normalization.of(dataset.train_images)
        taught, spent = lessons(dataset, norm, seed, own)
        distilling.append(spent)
        choosing = held_out(dataset.validation_images, dataset.validation_labels, norm)
        for what, lesson in taught.items():
            judge = dataset.held_out(norm) if what == "all" else choosing
            protocol = Protocol(
                students=2, epochs=lesson.epochs, batch_size=32,
                augmentation=default_strategy(dataset.name, dataset.class_names),
            )  # fmt: skip
            for kind, found in (
                ("networks", at_networks(candidates, lesson, judge, protocol, seed)),
                ("learning rates", at_rates(plain, lesson, judge, protocol, seed)),
            ):
                reached.setdefault((kind, what), []).append(found)
                print(f"seed {seed}, {what}: {kind}, {found[1]:.1f} s", flush=True)
    kept, cells = [], []
    for kind in ("networks", "learning rates"):
        whole = reached[kind, "all"]
        for what in ("distilled", "random"):
            few = reached[kind, what]
            found = [ranking(those, other) for (those, _), (other, _) in zip(few, whole)]
            correlation, loss = (uses.spread(values) for values in zip(*found))
            seconds = [uses.spread([s for _, s in each])["mean"] for each in (few, whole)]
            kept.append(
                {"chosen": kind, "by": what, "rank_correlation": correlation, "loss": loss,
                 "seconds": seconds[0], "seconds_of_all": seconds[1],
                 "candidates": list(candidates) if kind == "networks" else RATES.tolist(),
                 "accuracy": [a for a, _ in few], "accuracy_of_all": [a for a, _ in whole]}
            )  # fmt: skip
            spread = "" if correlation["sd"] is None else f" ± {correlation['sd']:.2f}"
            cells.append(
                [kind, what, f"{correlation['mean']:.2f}{spread}", uses.percent(loss),
                 *(f"{s:.1f}" for s in seconds)]
            )  # fmt: skip
    header = ["chosen", "by", "rank correlation", "below the best, points",
              "training s", "of all images, s"]  # fmt: skip
    seconds = uses.spread(distilling)["mean"]
    remark = f"{name}; {number} networks, {len(RATES)} rates; distilling took {seconds:.0f} s."
    uses.keep(f"choosing_{name}", kept, header, cells, picture(kept), seeds, remark)


def picture(kept: list[rows.Row]) -> Figure:
    """Each candidate's accuracy on the few against that on all images, means of the seeds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("networks", "learning rates")):
        for row in kept:
            if row["chosen"] == kind:
                few, whole = (100 * np.mean(row[n], 0) for n in ("accuracy", "accuracy_of_all"))
                mark = "o" if row["by"] == "distilled" else "x"
                axes.plot(few, whole, mark, label=f"{row['by']}, as many bytes")
        axes.set(
            title=kind,
            xlabel="accuracy on these, %",
            ylabel="accuracy on all images, %",
        )
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    parser = uses.parser(__doc__, list(SETTINGS), "0")
    parser.add_argument("--networks", type=int, choices=(12, 24, 48), default=12)
    said = parser.parse_args()
    main(said.dataset, said.networks, said.seeds, SETTINGS[said.dataset])
