"""The main job on the embedded moved digits, as README's first command runs it, and what it beats.

    python -m experiments.moved_digits_d3 [ROW ...] [--seeds 0,1,2]

Baselines at as many stored floats, and (uint8) at as many bytes of whole images. `d3, int8` has as
many bytes as `d3`, and rounds to int8 in training. `mtt` matches trajectories on whole images, at
as many floats. All students, the baselines' too, train at the best of several learning rates on
2000 training images.

table: moved_digits_d3 (python -m experiments.tables)

end of table
"""

import dataclasses

from d3jax.run.options import Data, Parametrization, command
from experiments import runner

ALL = ("random", "kmeans", "herding", "class_mean", "random_uint8", "kmeans_uint8", "herding_uint8")
MOVED = Data(dataset="moved_digits")
DEFAULTS = command("d3")(data=MOVED, outer_steps=500, baselines=ALL)

ROWS = {
    "d3": DEFAULTS,
    "d3, int8": dataclasses.replace(
        DEFAULTS,
        baselines=(),
        parametrization=Parametrization(budget_bytes=10_240, rounding="int8"),
    ),
    "mtt": command("mtt")(
        data=MOVED, outer_steps=500, baselines=(), parametrization=Parametrization(budget=2)
    ),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run(
        "moved_digits_d3",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        labels=list(ROWS),
    )
