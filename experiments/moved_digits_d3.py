"""The main job on the embedded moved digits, as README's first command runs it, and what it beats.

    python -m experiments.moved_digits_d3 [ROW ...] [--seeds 0,1,2]

Baselines at as many stored floats, and (uint8) at as many bytes of whole images. `d3, int8` has as
many bytes as `d3`, and rounds to int8 in training. `mtt` matches trajectories on whole images, at
as many floats. All students, the baselines' too, train at the best of several learning rates on
2000 training images.

table: moved_digits_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | herding | class_mean | random, uint8 | kmeans, uint8 | herding, uint8 | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| d3 | 5,113 | 13,386 | 68.7 ± 1.8 | 33.9 ± 2.4 | 34.9 ± 2.3 | 45.1 ± 0.8 | 25.6 ± 1.1 | 48.9 ± 2.1 | 59.6 ± 0.5 | 62.2 ± 0.4 | 1.7 | 3 x 5 | 17 | 52 | 2.8 |
| d3, int8 | 9,736 | 13,774 | 71.3 ± 1.9 |  |  |  |  |  |  |  | 1.3 | 3 x 5 | 17 | 49 | 4.2 |
| mtt | 5,120 | 11,392 | 29.5 ± 2.2 |  |  |  |  |  |  |  | 2.9 | 3 x 5 | 28 | 29 | 1.4 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC, 1 core of Intel(R) Xeon(R) Processor; 2026-11-26, 2026-11-27; commits 8a714d5, 9b49041. uint8: a byte a pixel, for as many bytes as the row's arrays have; other baselines for as many floats. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the best of those and the learned one.

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
