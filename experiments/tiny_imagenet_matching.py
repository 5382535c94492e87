"""Where a decoder starts to pay: pixels and D3 at equal floats on 20 classes of Tiny-ImageNet.

    D3JAX_DATA_DIR=... python -m experiments.tiny_imagenet_matching [ROW ...] [--seeds 0]

64x64, all 10 000 training images, ConvNet depth 4, width 32, 2 experts of 8 epochs, 300 outer steps
of 10 inner steps, start epochs below 6, MMD with 15 samples; 3 students of 300 epochs. 1 and 2
images per class are 245 760 and 491 520 floats; D3 has the small decoder k=128 with one latent per
class, and k=192 with two. Yardstick (250 outer steps, PyTorch, one seed): MTT 16.8, D3 18.5
(standard deviation of 3 students 0.7 and 1.5).

The decoder does not clearly pay at either budget: 0.8 points ahead at one image a class, 0.7 behind
at two, less than three students of one seed differ, for three and six times the CPU seconds of
outer steps.

table: tiny_imagenet_matching (python -m experiments.tables)

| run | floats | bytes | test accuracy % | random | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| mtt, 1 image per class | 245,760 | 493,200 | 17.1 (1 seed) | 7.4 | 0.9 | 1 x 3 | 293 | 422 | 13 |
| d3, 1 image per class | 217,219 | 439,342 | 17.9 (1 seed) |  | 0.9 | 1 x 3 | 293 | 1,421 | 26 |
| mtt, 2 images per class | 491,520 | 984,720 | 19.6 (1 seed) | 11.3 | 1.3 | 1 x 3 | 293 | 518 | 24 |
| d3, 2 images per class | 462,275 | 929,486 | 18.9 (1 seed) |  | 0.8 | 1 x 3 | 293 | 3,063 | 58 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 33a9786. Baselines' students train at the best of several learning rates (chosen: 0.03), those of distilled data at the learned one.

end of table
"""

import dataclasses

from d3jax.methods import d3, mtt
from d3jax.run.options import Parametrization, command
from experiments import runner
from experiments.tiny_imagenet_d3 import configuration

D3 = dataclasses.replace(
    configuration("tiny_imagenet_20"),
    d3=d3.D3Options(max_start_epoch=6, mmd_samples=15),
    outer_steps=300,
    baselines=(),
)
MTT = command("mtt")(
    data=D3.data,
    architecture=D3.architecture,
    mtt=mtt.MTTOptions(max_start_epoch=6, inner_batch_size=20),
    expert=D3.expert,
    student=D3.student,
    outer_steps=300,
    baselines=("random",),
)
ROWS = {
    "mtt, 1 image per class": MTT,
    "d3, 1 image per class": D3,
    "mtt, 2 images per class": dataclasses.replace(
        MTT, parametrization=Parametrization(images_per_class=2)
    ),
    "d3, 2 images per class": dataclasses.replace(
        D3,
        parametrization=Parametrization(latent_size=64, decoder_width=192, latents_per_class=2),
    ),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(ROWS, (0,))
    runner.run(
        "tiny_imagenet_matching",
        {row: ROWS[row] for row in chosen},  # type: ignore[arg-type]
        seeds=seeds,
        labels=list(ROWS),
    )
