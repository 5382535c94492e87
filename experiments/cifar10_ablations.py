"""What of D3 matters on CIFAR-10, and what was tried beside: budget 2, one change a row.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_ablations [ROW ...] [--seeds 0,1,2]

The setting of `cifar10_budgets.py`, row "d3, 2", but judged on 2000 training images, those that
follow the first 10 000, and not on test images: defaults are chosen by this table.

table: cifar10_ablations (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses
from typing import Any

from d3jax.data import Dataset, load
from d3jax.run.options import Data
from experiments import runner
from experiments.cifar10_budgets import ROWS as BUDGETS

IMAGES, JUDGING = 10_000, 2000


FULL = dataclasses.replace(
    BUDGETS["d3, 2"],
    data=Data(dataset="cifar10", train_limit=IMAGES + JUDGING),
    baselines=(),
)


def held_back() -> Dataset:
    """The first training images, and as test images those that follow."""
    loaded = load(FULL.data.dataset, train_limit=FULL.data.train_limit)
    return loaded._replace(
        train_images=loaded.train_images[:IMAGES],
        train_labels=loaded.train_labels[:IMAGES],
        test_images=loaded.train_images[IMAGES:],
        test_labels=loaded.train_labels[IMAGES:],
    )


def changed(**changes: Any) -> Any:
    """The full run but for these options, of whatever group has them."""
    run = FULL
    for name, value in changes.items():
        groups = ("d3", "parametrization", "expert", "student")
        group = next((g for g in groups if hasattr(getattr(run, g), name)), None)
        if group is None:
            run = dataclasses.replace(run, **{name: value})
        else:
            own = dataclasses.replace(getattr(run, group), **{name: value})
            run = dataclasses.replace(run, **{group: own})
    return run


ROWS = {
    "full": FULL,
    "no sampling": changed(variance="none"),
    "no MMD": changed(mmd=False),
    "no trajectory": changed(trajectory=False),
    "no trajectory, 2000 steps": changed(trajectory=False, outer_steps=2000),
    "no augmentation in the MMD": changed(mmd_augmentation=()),
    "separate states": changed(optimizer_states="separate"),
    "kernel ridge for trajectory": changed(
        trajectory=False, kernel_ridge=True, optimizer_states="separate"
    ),
    "bandwidth of the median": changed(mmd_bandwidth="median"),
    "start real": changed(start="real", start_steps=1000),
    "one variance a class": changed(variance="class"),
    "int8, twice the numbers": changed(rounding="int8", budget=4.0),
    "experts at 0.03": dataclasses.replace(
        FULL, expert=dataclasses.replace(FULL.expert, learning_rate=0.03)
    ),
    "experts at 0.01": dataclasses.replace(
        FULL, expert=dataclasses.replace(FULL.expert, learning_rate=0.01)
    ),
    "experts of 10 epochs": dataclasses.replace(
        FULL, expert=dataclasses.replace(FULL.expert, epochs=10)
    ),
    **{
        f"pixels, experts at {rate}": dataclasses.replace(
            BUDGETS["pixels, 2"],
            data=FULL.data,
            expert=dataclasses.replace(FULL.expert, learning_rate=rate),
        )
        for rate in (0.01, 0.03, 0.1)
    },
    "students of 1000 epochs": dataclasses.replace(
        FULL, student=dataclasses.replace(FULL.student, epochs=1000)
    ),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run(
        "cifar10_ablations",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        labels=list(ROWS),
        dataset=held_back(),
    )
