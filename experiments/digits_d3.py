"""The main job with its defaults on the embedded digits, as README's first command runs it.

The second row stores the same distilled arrays in float32: what float16, the default, costs. The
column beside the accuracy judges the same files by the decoder's statistics of each batch, as in
distillation: what freezing them costs.

    python -m experiments.digits_d3

table: digits_d3 (python -m experiments.tables)

Not measured here yet.

end of table
"""

import dataclasses

from d3jax.config import DistillD3
from experiments import runner

DEFAULTS = DistillD3()
FLOAT32 = dataclasses.replace(DEFAULTS, storage="float32", baselines=())

if __name__ == "__main__":
    runner.run(
        "digits_d3",
        {"d3": DEFAULTS, "d3, float32": FLOAT32},
        seeds=(0, 1, 2),
        judgements={"statistics_not_frozen": {"batch_statistics": True}},
    )
