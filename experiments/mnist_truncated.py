"""Truncated backpropagation (RaT-BPTT) on MNIST: 1 and 10 images per class, ConvNet width 32.

    D3JAX_DATA_DIR=... python -m experiments.mnist_truncated [ROW ...]

60 inner steps of Adam, of which 20 at a random place are differentiated (Feng et al., arXiv
2310.07506); 2000 outer steps, one fresh network and 256 real images each; 58 000 training images.
Test accuracy on all 10 000 test images of 50 unseen networks right after those 60 steps, and of 5
ordinary students of 300 augmented epochs. Gradient matching has 91.7 and 97.4 at width
128; to reach here: 90 and 96.5, which 1 image per class misses right after the 60 steps.

At 10 images per class a step sees five of each, thirty times over: with one of each a network has
seen every image only six times when it is judged. Rates and batches were chosen on training
batches, in 300 outer steps or fewer; batches only after a whole run with one of each had missed the
aim on the test images. Learned images and curves: pictures/mnist_truncated_*.png.

table: mnist_truncated (python -m experiments.tables)

| run | floats | bytes | test accuracy % | before the steps | ordinary students | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 image per class | 7,840 | 18,336 | 89.5 (1 seed) | 10.4 | 90.7 | 1.2 | 1 x 50 | 0 | ≤ 1,270 | 0.4 |
| 10 images per class | 78,400 | 159,400 | 97.4 (1 seed) | 10.4 | 97.4 | 0.2 | 1 x 50 | 0 | 4,897 | 3.1 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 02c079b, 7d7a873, cabc844. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too.

end of table

With an image rate of 0.01, where images hardly move, the first row ended far lower.
"""

from d3jax.methods.dd import DDOptions
from d3jax.run.options import Architecture, Data, Run, command
from experiments import runner


def _truncated(steps: int, images_per_step: int = 1) -> Run:
    return command("dd")(
        data=Data(dataset="mnist", validation=2000),
        architecture=Architecture(network="convnet", width=32, initialization="uniform_fan_in"),
        dd=DDOptions(
            steps=steps,
            passes=60 // steps,
            window=20,
            networks=1,
            real_batch=256,
            inner_optimizer="adam",
            inner_learning_rate=1e-3,
            shared_learning_rate=True,
            data_learning_rate=0.15,
            learning_rate_learning_rate=0.005,
            images_per_step=images_per_step,
            unseen=50,
        ),
        outer_steps=2000,
        baselines=(),
    )


ROWS = {"1 image per class": _truncated(1), "10 images per class": _truncated(2, 5)}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0,))
    runner.run(
        "mnist_truncated",
        {row: ROWS[row] for row in chosen},
        seeds=seeds,
        judgements={"ordinary_students": {"ordinary": True}},
        labels=list(ROWS),
    )
