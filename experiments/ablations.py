"""D3 with one change a row, judged on training images held back: defaults are chosen so."""

import dataclasses
from typing import Any

from d3jax.data import Dataset, load

HELD_BACK = 2000


def trial(run: Any) -> Any:
    """A run whose rows are to be compared: half its outer steps, 3 students, no baselines, and
    training images more than it has, to be `held_back`."""
    limit = run.data.train_limit
    return changed(
        run,
        data={"train_limit": limit and limit + HELD_BACK},
        outer_steps=run.outer_steps // 2,
        student={"students": 3},
        baselines=(),
    )


def held_back(run: Any) -> Dataset:
    """A trial's training images but for the last 2000, and those as its test images."""
    loaded = load(run.data.dataset, train_limit=run.data.train_limit)
    return loaded._replace(
        train_images=loaded.train_images[:-HELD_BACK],
        train_labels=loaded.train_labels[:-HELD_BACK],
        test_images=loaded.train_images[-HELD_BACK:],
        test_labels=loaded.train_labels[-HELD_BACK:],
    )


def changed(run: Any, **changes: Any) -> Any:
    """The run but for these options; those of a group are in a dictionary."""
    replaced = {
        name: dataclasses.replace(getattr(run, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(run, **replaced)


def rows(full: Any) -> dict[str, Any]:
    """What D3 consists of, each part left out or done otherwise."""
    twice = 2 * full.outer_steps
    return {
        "full": full,
        "no sampling": changed(full, parametrization={"variance": "none"}),
        "no MMD": changed(full, d3={"mmd": False}),
        "no trajectory": changed(full, d3={"trajectory": False}),
        "no trajectory, twice the steps": changed(
            full, d3={"trajectory": False}, outer_steps=twice
        ),
        "no augmentation in the MMD": changed(full, d3={"mmd_augmentation": ()}),
        "separate states": changed(full, d3={"optimizer_states": "separate"}),
        "bandwidth of the median": changed(full, d3={"mmd_bandwidth": "median"}),
        "start real": changed(full, parametrization={"start": "real", "start_steps": 1000}),
        "start kmeans": changed(full, parametrization={"start": "kmeans", "start_steps": 1000}),
        "one variance a class": changed(full, parametrization={"variance": "class"}),
        "labels learned": changed(full, parametrization={"labels": "learned"}),
        "labels of an expert": changed(full, parametrization={"labels": "expert"}),
    }
