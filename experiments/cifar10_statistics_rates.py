"""How far DWA's images should move from the real ones they start from, and what should weigh.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_statistics_rates [ROW ...] [--seeds 0]

The row `dwa` of `cifar10_statistics.py`, whose images are worse than the real ones that they start
from, at smaller learning rates of Adam in normalized units (the authors' is 0.25, cosine, 1000
steps), and at other weights of batch norm's statistics (theirs is 0.01). 3 students, judged on 2000
training images that are held back, from the teacher too; nothing of it sees a test image. Beside
the first row stand random real images with the same labels.

table: cifar10_statistics_rates (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| rate 0.25 | 332,106 | 666,260 | 30.0 (1 seed) | 54.5 | 1.8 | 1 x 3 | 1,174 | 117 | 177 |
| rate 0.03 | 332,106 | 666,260 | 50.1 (1 seed) |  | 1.7 | 1 x 3 | 1,174 | 125 | 182 |
| rate 0.005 | 332,106 | 666,260 | 49.3 (1 seed) |  | 1.1 | 1 x 3 | 1,174 | 119 | 183 |
| rate 0.03, weight 0.1 | 332,106 | 666,260 | 49.9 (1 seed) |  | 1.4 | 1 x 3 | 1,174 | 119 | 173 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-28; commits 03980b1, 15e4672+, b847edc. +: with changes that were committed later. Baselines' students train at the best of several learning rates (chosen: 0.001), those of distilled data at the best of those and the learned one.

end of table
"""

from experiments import ablations, runner
from experiments.ablations import changed
from experiments.cifar10_statistics import DWA

TRIAL = changed(ablations.trial(DWA), outer_steps=DWA.outer_steps)
FIRST = "rate 0.25"
CHANGES = {
    FIRST: {},
    "rate 0.03": {"data_learning_rate": 0.03},
    "rate 0.005": {"data_learning_rate": 0.005},
    "rate 0.03, weight 0.1": {"data_learning_rate": 0.03, "statistics_weight": 0.1},
    "rate 0.03, weight 1": {"data_learning_rate": 0.03, "statistics_weight": 1.0},
    "rate 0.001": {"data_learning_rate": 0.001},
}
ROWS = {
    label: changed(TRIAL, dwa=change, baselines=("random",) if label == FIRST else ())
    for label, change in CHANGES.items()
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0,))
    own = {row: ROWS[row] for row in chosen}
    held_back = ablations.held_back(TRIAL)
    runner.run("cifar10_statistics_rates", own, seeds=seeds, labels=list(ROWS), dataset=held_back)
