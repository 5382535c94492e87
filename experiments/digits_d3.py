"""The main job with its defaults on the embedded digits, as README's first command runs it.

    python -m experiments.digits_d3

table: digits_d3 (python -m experiments.tables)

Not measured here yet.

end of table
"""

from d3jax.config import DistillD3
from experiments import runner

if __name__ == "__main__":
    runner.run("digits_d3", {"d3": DistillD3()}, seeds=(0, 1, 2))
