"""D3 with its defaults on the embedded digits.

The second row stores the same distilled arrays in float32: what float16, the default, costs. The
third computes the networks' convolutions and linear layers in bfloat16, experts' and students' too,
which is worth its while on accelerators alone and costs no accuracy that three seeds would show. The
column beside the accuracy judges the same files by the decoder's statistics of each batch, as in
distillation: what freezing them costs.

    python -m experiments.digits_d3 [ROW ...] [--seeds 0,1,2]

table: digits_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | statistics not frozen | random | kmeans | class_mean | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| d3 | 4,033 | 10,730 | 97.4 ± 0.3 | 97.3 ± 0.4 | 95.1 ± 1.2 | 98.2 ± 0.2 | 91.7 ± 0.3 | 0.5 | 3 x 5 | 9 | ≤ 176 | 1.9 |
| d3, float32 | 4,033 | 18,812 | 97.0 ± 0.7 | 97.1 ± 0.4 |  |  |  | 0.4 | 3 x 5 | 11 | ≤ 118 | 1.2 |
| d3, computed in bfloat16 | 4,033 | 10,754 | 97.5 ± 0.4 | 97.4 ± 0.3 |  |  |  | 0.7 | 3 x 5 | 18 | 132 | 1.3 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC, 2 cores of AMD EPYC; 2026-11-21, 2026-11-22; commits 46ca192, 6b7a9eb, cb576ce. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too. Baselines' students train at the best of several learning rates (chosen: 0.01, 0.03, 0.1), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.run.options import Architecture, command
from experiments import runner

DEFAULTS = command("d3")()
FLOAT32 = dataclasses.replace(DEFAULTS, storage="float32", baselines=())
COARSE = Architecture(compute="bfloat16")
BFLOAT16 = dataclasses.replace(DEFAULTS, architecture=COARSE, baselines=())

ROWS = {"d3": DEFAULTS, "d3, float32": FLOAT32, "d3, computed in bfloat16": BFLOAT16}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run(
        "digits_d3",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        judgements={"statistics_not_frozen": {"batch_statistics": True}},
        labels=list(ROWS),
    )
