"""The main job with its defaults on the embedded digits, as README's first command runs it.

The second row stores the same distilled arrays in float32: what float16, the default, costs.

    python -m experiments.digits_d3

table: digits_d3 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | kmeans | class_mean | seeds x students | CPU s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| d3 | 4,033 | 10,562 | 96.6 ± 1.0 | 94.1 ± 0.7 | 97.6 ± 0.4 | 92.1 ± 0.6 | 3 x 5 | 124 |
| d3, float32 | 4,033 | 18,644 | 96.6 ± 1.2 |  |  |  | 3 x 5 | 83 |

2 cores of AMD EPYC; 2026-11-21; commit 0706801. Baselines' students train at 0.01, D3's at the learned rate.

end of table
"""

import dataclasses

from d3jax.config import DistillD3
from experiments import runner

DEFAULTS = DistillD3()
FLOAT32 = dataclasses.replace(
    DEFAULTS,
    parametrization=dataclasses.replace(DEFAULTS.parametrization, storage="float32"),
    baselines=(),
)

if __name__ == "__main__":
    runner.run("digits_d3", {"d3": DEFAULTS, "d3, float32": FLOAT32}, seeds=(0, 1, 2))
