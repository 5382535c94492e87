"""Does decomposing pay at more classes? Tiny-ImageNet's 20 in 1, 2 and 4 subtasks, equal floats.

    D3JAX_DATA_DIR=... python -m experiments.tiny_imagenet_subtasks [ROW ...] [--seeds 0]

D3 on `tiny_imagenet_20.npz` (64x64; 1000 of the training images choose what is chosen), ConvNet
depth 4, width 32, one latent per class, 300 outer steps for each subtask with 15 MMD samples, 2
experts of 8 epochs on the subtask's own classes. Small decoders: k=128, z=64 for one, k=88, z=64
for two, k=64, z=32 for four, equal within 5 % in all. Students of 300 epochs on hard labels, and
on those of an expert of all classes (800 bytes more).

table: tiny_imagenet_subtasks (python -m experiments.tables)

| run | floats | bytes | test accuracy % | expert labels | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 subtask | 217,219 | 439,566 | 18.1 (1 seed) | 11.2 | 0.9 | 1 x 3 | 346 | ≤ 1,877 | 51 |
| 2 subtasks | 220,278 | 449,236 | 18.8 (1 seed) | 13.1 | 1.7 | 1 x 3 | 350 | ≤ 1,655 | 31 |
| 4 subtasks | 217,612 | 450,920 | 20.3 (1 seed) | 11.4 | 3.0 | 1 x 3 | 416 | ≤ 1,457 | 30 |

sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-21, 2026-11-22; commits 62c74c5, 76131c4. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too.

end of table

With 20 classes decomposing costs nothing and may pay: four subtasks are 2 points above one, though
within their standard deviation over one seed's three students. (Their CPU seconds are in part of a
later, faster commit.) An expert's labels lose at every number of subtasks, as in
`cifar10_subtasks.py`.
"""

from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import D3Options
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner
from experiments.cifar10_subtasks import cut, labelled

ONE = command("d3")(
    data=Data(dataset="tiny_imagenet_20", train_limit=9000, validation=1000),
    architecture=Architecture(width=32, depth=4),
    parametrization=Parametrization(latent_size=64, decoder_width=128),
    d3=D3Options(max_start_epoch=6, mmd_samples=15),
    expert=ExpertOptions(count=2, epochs=8),
    student=Protocol(students=3),
    outer_steps=300,
    subtasks="1",
    baselines=(),
)
CONFIGURATIONS = {
    "1 subtask": ONE,
    "2 subtasks": cut(ONE, 2, 88, 64),
    "4 subtasks": cut(ONE, 4, 64, 32),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(CONFIGURATIONS, (0,))
    runner.run(
        "tiny_imagenet_subtasks",
        {label: CONFIGURATIONS[label] for label in chosen},
        seeds=seeds,
        derived={"expert_labels": labelled},
        labels=list(CONFIGURATIONS),
    )
