"""Sequential Subset Matching against one subset: K = 1, 2, 3 at 6 images per class.

    D3JAX_DATA_DIR=... python -m experiments.mnist_cifar10_seqmatch [mnist] [cifar10] [--seeds 0,1,2]

10 000 training images of each, ConvNet width 32, 500 outer steps in all (divided among the
subsets), 10 inner steps on 20 images; 4 experts of 10 epochs for each subset, later ones from
networks trained through the earlier subsets. Students' 300 epochs are divided among the subsets
too, so that all rows cost the same. K = 1 is MTT. MNIST's images move at a rate of 0.5, as in
`mnist_mtt.py`: at d3jax's default its digits hardly change.

MNIST: K = 3 is best for each seed but the second, where K = 2 has 0.2 points more, and 1.4 to 3.0
points above K = 1; the standard deviation between seeds is 0.4 to 1.1. CIFAR-10: K = 2 is ahead of
K = 1 by 0.6 points, all of it from one seed of three, and K = 3 behind by 0.6; there it is 0.1 to
1.4. An outer step sees as many images in all rows, but each subset has fewer of them (a third of
500 for K = 3), which CIFAR-10's images may need.

table: seqmatch_mnist (python -m experiments.tables)

| run | floats | bytes | test accuracy % | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| K = 1 | 47,040 | 95,320 | 89.5 ± 1.1 | 1.1 | 3 x 5 | 176 | 166 | 9.6 |
| K = 2 | 47,040 | 95,344 | 91.2 ± 0.4 | 1.4 | 3 x 5 | 350 | 172 | 6.3 |
| K = 3 | 47,040 | 95,368 | 91.7 ± 0.9 | 1.0 | 3 x 5 | 518 | 166 | 5.7 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 33a9786.

end of table

table: seqmatch_cifar10 (python -m experiments.tables)

| run | floats | bytes | test accuracy % | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| K = 1 | 184,320 | 370,016 | 38.7 ± 0.1 | 0.4 | 3 x 5 | 198 | 184 | 8.4 |
| K = 2 | 184,320 | 370,040 | 39.3 ± 1.0 | 0.9 | 3 x 5 | 381 | 180 | 5.8 |
| K = 3 | 184,320 | 370,064 | 38.1 ± 1.4 | 0.9 | 3 x 5 | 594 | 177 | 7.4 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-22; commits 33a9786.

end of table
"""

import dataclasses

from d3jax.methods.seqmatch import SeqMatchOptions
from d3jax.run.options import Architecture, Data, Parametrization, Run, command
from experiments import runner

OPTIONS = SeqMatchOptions(max_start_epoch=8, inner_batch_size=20)
MTT = {"mnist": dataclasses.replace(OPTIONS, data_learning_rate=0.5), "cifar10": OPTIONS}


def configurations(dataset: str) -> dict[str, Run]:
    """K = 1, 2, 3 on `dataset`."""
    return {
        f"K = {subsets}": command("seqmatch")(
            data=Data(dataset=dataset, train_limit=10_000, validation=2000),
            architecture=Architecture(width=32),
            parametrization=Parametrization(images_per_class=6),
            seqmatch=dataclasses.replace(MTT[dataset], subsets=subsets),
            outer_steps=500,
            baselines=(),
        )
        for subsets in (1, 2, 3)
    }


if __name__ == "__main__":
    chosen, seeds = runner.arguments(MTT, (0, 1, 2))
    for dataset in chosen:
        runner.run(f"seqmatch_{dataset}", configurations(dataset), seeds=seeds)
