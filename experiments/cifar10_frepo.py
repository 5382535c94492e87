"""FRePo beside real images, trajectory matching and D3 at 1 and 10 images per class: CIFAR-10.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_frepo [ROW ...] [--seeds 0,1,2]

10 000 images of the copy decoded from JPEG files, whitened (ZCA) in all rows; ConvNet depth 3,
width 32, without norm for FRePo's networks and students, whose labels are learned and met by
squared error. `pool 1` has one network, renewed after 101 steps, `fresh` a new one in every step.
The baselines are real images with one-hot labels, by cross entropy, and with solved ones, by
squared error, beside each method's own. MTT has pixels with learned labels, D3 as many floats, and
both 4 experts, of 10 and 20 epochs; their outer steps take about as long as FRePo's, 0.034 CPU
seconds each at 1 image per class. All rows and seeds are some 5 CPU hours.

The paper has 46.8 and 65.5 at width 128, 500 000 steps and all images, the best look on test images.

table: cifar10_frepo (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses
from typing import Any

from d3jax.evaluate import Protocol
from d3jax.methods.frepo import FRePoOptions
from d3jax.methods.mtt import MTTOptions
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner
from experiments.cifar10_budgets import EXPERTS

DATA = Data(dataset="cifar10", train_limit=10_000, validation=2000, zca=True)
BASELINES = ("random", "random_solved", "kmeans")
FREPO = command("frepo")(
    data=DATA,
    architecture=Architecture(width=32),
    frepo=FRePoOptions(real_batch=256, data_learning_rate=3e-3),
    student=Protocol(epochs=500),
    outer_steps=5000,
    baselines=BASELINES,
)
MTT = command("mtt")(
    data=DATA,
    architecture=FREPO.architecture,
    mtt=MTTOptions(max_start_epoch=8, inner_batch_size=20),
    outer_steps=1000,
    baselines=("random_solved",),
)
D3 = command("d3")(
    data=DATA,
    architecture=FREPO.architecture,
    expert=EXPERTS,
    outer_steps=500,
    baselines=(),
)


def rows() -> dict[str, Any]:
    """Every configuration by its label."""
    replace, found = dataclasses.replace, {}
    for images in (1, 10):
        sizes = Parametrization(images_per_class=images)
        for name, pool, steps in (("pool 10", 10, 100), ("pool 1", 1, 100), ("fresh", 1, 0)):
            found[f"frepo, {name}, {images}"] = replace(
                FREPO,
                parametrization=sizes,
                frepo=replace(FREPO.frepo, pool=pool, network_steps=steps),
                baselines=BASELINES if name == "pool 10" else (),
            )
        learned = replace(sizes, labels="learned")
        found[f"mtt, {images}"] = replace(MTT, parametrization=learned)
        found[f"d3, {images}"] = replace(D3, parametrization=Parametrization(budget=images))
    return found


if __name__ == "__main__":
    ROWS = rows()
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    own = {row: ROWS[row] for row in chosen}
    runner.run("cifar10_frepo", own, seeds=seeds, labels=list(ROWS))
