"""The main job on the embedded moved digits, as README's first command runs it, and what it beats.

    python -m experiments.moved_digits_d3 [ROW ...] [--seeds 0,1,2]

Baselines at as many stored floats, and (uint8) at as many bytes of whole images. `d3, int8` has as
many bytes as `d3`, and rounds to int8 in training. `mtt` matches trajectories on whole images, at
as many floats. All students, the baselines' too, train at the best of several learning rates on
2000 training images.

table: moved_digits_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | herding | class_mean | random, uint8 | kmeans, uint8 | herding, uint8 | sd of students | seeds x students | CPU s, experts | CPU s, outer steps |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| d3 | 5,113 | 13,386 | 68.1 ± 2.0 | 33.4 ± 2.0 | 34.5 ± 1.8 | 45.0 ± 0.9 | 25.8 ± 0.8 | 49.0 ± 1.8 | 59.3 ± 0.1 | 62.2 ± 0.6 | 1.4 | 3 x 5 | 28 | 47 |
| d3, int8 | 9,736 | 13,774 | 72.6 ± 2.4 |  |  |  |  |  |  |  | 1.8 | 3 x 5 | 28 | 53 |
| mtt | 5,120 | 11,392 | 29.5 ± 2.2 |  |  |  |  |  |  |  | 2.9 | 3 x 5 | 28 | 29 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. 1 core of AMD EPYC; 2026-11-26; commits 8a714d5. uint8: a byte a pixel, for as many bytes as the row's arrays have; other baselines for as many floats. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the best of those and the learned one.

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
