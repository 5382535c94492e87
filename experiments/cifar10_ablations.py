"""What of D3 matters on CIFAR-10, and what was tried beside: budget 2, one change a row.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_ablations [ROW ...] [--seeds 0,1,2]

The setting of `cifar10_budgets.py`, row "d3, 2", in half its outer steps and with 3 students, judged
on 2000 training images, those that follow the first 10 000, and not on test images: defaults are
chosen by this table.

table: cifar10_ablations (python -m experiments.tables)

| run | floats | bytes | test accuracy % | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| full | 60,693 | 125,474 | 46.6 (1 seed) | 0.8 | 1 x 3 | 579 | 594 | 52 |
| four times the steps | 60,693 | 125,474 | 49.7 (1 seed) | 0.7 | 1 x 3 | 579 | 2,264 | 201 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-28; commits 57bdc39, 944395b.

end of table
"""

from experiments import ablations, runner
from experiments.ablations import changed
from experiments.cifar10_budgets import ROWS as BUDGETS

FULL = ablations.trial(BUDGETS["d3, 2"])
PIXELS = ablations.trial(BUDGETS["pixels, 2"])
ROWS = {
    **ablations.rows(FULL),
    "kernel ridge for trajectory": changed(
        FULL, d3={"trajectory": False, "kernel_ridge": True, "optimizer_states": "separate"}
    ),
    "int8, twice the numbers": changed(FULL, parametrization={"rounding": "int8", "budget": 4.0}),
    "experts at 0.03": changed(FULL, expert={"learning_rate": 0.03}),
    "experts at 0.01": changed(FULL, expert={"learning_rate": 0.01}),
    "experts of 10 epochs": changed(FULL, expert={"epochs": 10}),
    "four times the steps": changed(FULL, outer_steps=4 * FULL.outer_steps),
    "students of 1000 epochs": changed(FULL, student={"epochs": 1000}),
    "pixels": PIXELS,
    "pixels, experts at 0.03": changed(PIXELS, expert={"learning_rate": 0.03}),
    "pixels, experts at 0.1": changed(PIXELS, expert={"learning_rate": 0.1}),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run(
        "cifar10_ablations",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        labels=list(ROWS),
        dataset=ablations.held_back(FULL),
    )
