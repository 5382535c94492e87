"""What statistics matching did to teacher and images: beside the accuracies of its arms.

    D3JAX_DATA_DIR=... python -m experiments.statistics_diagnoses [ROW ...] [--seeds 0,1,2]

Of runs that `cifar10_statistics.py` has finished, in the same folder:

    moved            how far the adjustment has moved the teacher's weights, of their own length, 1e-4
    cross entropy    of the batches that images start from, under the teacher as it is, and moved
    likeness         cosine of the teacher's features of two images of a class, mean of all pairs, as
                     they start and at the end
    at the end       cross entropy and statistics' distance of the last outer step

table: statistics_diagnoses (python -m experiments.tables)

| run | moved, 1e-4 | cross entropy at the start | the same, teacher moved | likeness at the start | likeness | cross entropy at the end | statistics at the end |
| --- | --- | --- | --- | --- | --- | --- | --- |
| dwa | 6.55 | 0.5 | 0.579 | 0.406 | 0.513 | 0.000941 | 6.19 |

Teachers and images of cifar10_statistics. 1 seed. 1 core of AMD EPYC; 2026-11-27; c369e5f.

end of table
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from matplotlib.figure import Figure

from d3jax import artifact, distill, losses
from d3jax.distill import objectives
from d3jax.distill.metrics import METRICS
from d3jax.host.progress import Reporter
from d3jax.keys import Stage
from d3jax.networks import unraveler
from d3jax.run import job as jobs
from d3jax.run.experts import trained
from d3jax.synthetic.labels import item_classes
from d3jax.types import Network, PyTree
from experiments import rows, runner, uses
from experiments.cifar10_statistics import ROWS

NAMES = {
    "moved": "moved, 1e-4",
    "before": "cross entropy at the start",
    "after": "the same, teacher moved",
    "likeness_start": "likeness at the start",
    "likeness": "likeness",
    "cross_entropy": "cross entropy at the end",
    "statistics": "statistics at the end",
}


def of_start(network: Network, aux: PyTree, teacher: Array, images: Array, classes: int) -> Any:
    """What the adjustment of `methods.dwa` has done, all batches averaged.

    Args:
      network: the teacher's architecture.
      aux: of the objective's state: `params` f[batches or 1, P], and `statistics`.
      teacher: its weights f[P] before.
      images: f[N, H, W, C] as they start, items sorted by class.
      classes: K.

    Returns:
      `moved`, the length of what was added over that of the teacher's weights, in 1e-4; the cross
      entropies `before` and `after`, without a view.
    """
    items = objectives.batch_items(len(images), classes)
    labels = jax.nn.one_hot(item_classes(len(images), classes, items), classes)
    params = jnp.broadcast_to(aux["params"], (len(items), teacher.size))

    def entropy(own: Array, rows: Array, targets: Array) -> Array:
        weights = unraveler(network)(own)
        found = network.forward(weights, images[rows], statistics=aux["statistics"])
        return losses.cross_entropy(found.logits, targets)

    length = jnp.linalg.norm(params - teacher, axis=1) / jnp.linalg.norm(teacher)
    before = jax.vmap(entropy, (None, 0, 0))(teacher, items, labels)
    after = jax.vmap(entropy)(params, items, labels)
    found = {"moved": 1e4 * length, "before": before, "after": after}
    return {name: float(jnp.mean(values)) for name, values in found.items()}


def likeness(features: Array, classes: int) -> float:
    """The mean cosine of two items' features f[N, F], N sorted by class, over a class's pairs."""
    each = len(features) // classes
    unit = features / jnp.linalg.norm(features, axis=1, keepdims=True)
    unit = unit.reshape(classes, each, -1)
    cosines = jnp.einsum("kif,kjf->kij", unit, unit)
    pairs = jnp.sum(cosines, (1, 2)) - jnp.trace(cosines, axis1=1, axis2=2)
    return float(jnp.mean(pairs / (each * (each - 1))))


def diagnosed(options: Any, reporter: Reporter) -> dict[str, float]:
    """Of one finished run: `NAMES`."""
    job = jobs.load(options)
    world, network, classes = job.world, job.world.network, job.world.dataset.num_classes
    trajectories, _ = trained(job, 0, None, [], reporter)
    real = world.real._replace(trajectories=trajectories)
    start = distill.start(job.method, world.key(options.seed, Stage.DISTILL), real)
    (aux,) = start.aux
    assert trajectories is not None
    teacher = jnp.asarray(trajectories)[0, -1]
    first = job.synthetic.sample(start.theta, None).images
    last = job.synthetic.sample(artifact.load(options.out).decodable(), None).images

    @jax.jit
    def features(images: Array) -> Array:
        weights = unraveler(network)(teacher)
        found = network.forward(weights, images, statistics=aux["statistics"]).features
        return found.reshape(len(images), -1)

    metrics = json.loads((options.out / METRICS).read_text().splitlines()[-1])
    return {
        **of_start(network, aux, teacher, first, classes),
        "likeness_start": likeness(features(first), classes),
        "likeness": likeness(features(last), classes),
        **{name: metrics[f"statistics/{name}"] for name in ("cross_entropy", "statistics")},
    }


def picture(found: list[rows.Row]) -> Figure:
    """How alike images of a class are, at the start and at the end."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("likeness_start", "likeness"):
        means = [row[name]["mean"] for row in found]
        axes.plot(means, range(len(found)), "o", label=NAMES[name])
    axes.set_yticks(range(len(found)), [row["label"] for row in found])
    axes.set_xlabel("cosine of the teacher's features within a class")
    axes.legend()
    return figure


def _cell(values: dict[str, Any]) -> str:
    """Mean and, of several seeds, their standard deviation."""
    sd = "" if values["sd"] is None else f" ± {values['sd']:.2g}"
    return f"{values['mean']:.3g}{sd}"


def main(chosen: list[str], seeds: tuple[int, ...]) -> None:
    """The table, in results/statistics_diagnoses.json."""
    reporter, found = Reporter(), []
    for row in chosen:
        values = []
        for seed in seeds:
            own = {"out": runner.folder("cifar10_statistics", row, seed), "seed": seed}
            options = dataclasses.replace(ROWS[row], experts=Path("runs/experts"), **own)
            values.append(diagnosed(options, reporter))
        found.append(
            {"label": row, **{name: uses.spread([v[name] for v in values]) for name in NAMES}}
        )
    cells = [[row["label"], *(_cell(row[name]) for name in NAMES)] for row in found]
    header = ["run", *NAMES.values()]
    remark = "Teachers and images of cifar10_statistics."
    uses.keep("statistics_diagnoses", found, header, cells, picture(found), seeds, remark)


if __name__ == "__main__":
    main(*runner.arguments(ROWS, (0, 1, 2)))
