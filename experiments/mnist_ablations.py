"""What of D3 matters on MNIST: budget 3, one change a row.

    D3JAX_DATA_DIR=... python -m experiments.mnist_ablations [ROW ...] [--seeds 0,1,2]

The setting of `mnist_budgets.py`, row "d3, 3", in half its outer steps and with 3 students, judged on
2000 training images, those that follow the first 10 000, and not on test images.

table: mnist_ablations (python -m experiments.tables)

Not measured here yet.

end of table
"""

from experiments import ablations, runner
from experiments.mnist_budgets import ROWS as BUDGETS

FULL = ablations.trial(BUDGETS["d3, 3"])
ROWS = ablations.rows(FULL)

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0, 1, 2))
    runner.run(
        "mnist_ablations",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        labels=list(ROWS),
        dataset=ablations.held_back(FULL),
    )
