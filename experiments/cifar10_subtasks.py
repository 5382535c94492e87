"""Does decomposing pay? CIFAR-10 in 1, 2 and 5 subtasks at equal floats.

    D3JAX_DATA_DIR=... python -m experiments.cifar10_subtasks [ROW ...] [--seeds 0,1,2]

D3, the first 10 000 training images, ConvNet depth 3, width 32, one latent per class, 500 outer
steps for each subtask; 2000 further training images choose what is chosen. Each subtask has 4
experts of 10 epochs on its own classes (at 32 images a step below 5000 images, as experts do) and a
small decoder: k=64, z=64 for one, k=48, z=32 for two, k=24, z=64 for five, so that all the decoders
and latents together are equal within 5 %. Students as in `cifar10_d3.py`, 5 of each seed: with hard
labels, and with those of an expert of all classes after its best epoch on the validation images
(200 bytes more), for which students visit the decoded means too. CIFAR-10 here is the copy decoded
from JPEG files.

table: cifar10_subtasks (python -m experiments.tables)

| run | floats | bytes | test accuracy % | expert labels | sd of students | seeds x students | CPU s, experts | CPU s, outer steps | s, a student |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 subtask | 62,491 | 129,142 | 35.8 ± 0.5 | 28.1 ± 2.4 | 0.5 | 3 x 5 | 252 | ≤ 420 | 2.2 |
| 2 subtasks | 63,658 | 134,428 | 35.2 ± 0.9 | 24.4 ± 3.8 | 1.1 | 3 x 5 | 246 | ≤ 391 | 2.4 |
| 5 subtasks | 64,460 | 144,920 | 30.7 ± 0.4 | 23.0 ± 1.1 | 0.8 | 3 x 5 | 286 | ≤ 351 | 2.7 |

±: between seeds, students averaged. sd of students: of the run's, within a seed. s, a student: wall seconds of training, by those that train at once. 1 core of AMD EPYC; 2026-11-21, 2026-11-22; commits 62c74c5, 76131c4, 76131c4+. +: with changes that were committed later. ≤: the whole run's CPU seconds: compilation, students, baselines and source networks too.

end of table

Decomposing does not pay here: two subtasks are behind one by less than seeds differ, five lose 5 points,
probably since each has a narrow decoder, and students of five parts see images that were never
matched side by side. What it saves is the experts' memory and a little time: with the experts' CPU
seconds 5 % in both. Nor do an expert's labels pay: with one latent a class there is one label for
all its samples, what the expert says of a mean that was made to be learned under a hard label; how
sure it is differs from seed to seed, and students with it.
"""

import dataclasses
from pathlib import Path
from typing import Any

from d3jax.evaluate import Protocol
from d3jax.host.progress import Reporter
from d3jax.run import commands
from d3jax.run.join import join as join_parts
from d3jax.run.options import Architecture, Data, Parametrization, command
from experiments import runner

ONE = command("d3")(
    data=Data(dataset="cifar10", train_limit=10_000, validation=2000),
    architecture=Architecture(width=32),
    parametrization=Parametrization(latent_size=64, decoder_width=64),
    student=Protocol(students=5),
    outer_steps=500,
    subtasks="1",
    baselines=(),
)


def cut(one: Any, subtasks: int, width: int, latent_size: int) -> Any:
    """The same in so many subtasks, each with a smaller decoder."""
    parametrization = Parametrization(latent_size=latent_size, decoder_width=width)
    return dataclasses.replace(one, subtasks=str(subtasks), parametrization=parametrization)


def labelled(options: Any, reporter: Reporter) -> Path:
    """A finished run's artifact with labels of an expert of all classes."""
    assert options.experts is not None
    path = options.out / "labelled.safetensors"
    parts = sorted(options.out.glob("subtask-*/artifact.safetensors"))
    join = commands.Join(
        artifacts=tuple(parts),
        out=path,
        labels="expert",
        data=options.data,
        expert=options.expert,
        experts=options.experts,
        seed=options.seed,
    )
    join_parts(join, reporter)
    return path


CONFIGURATIONS = {
    "1 subtask": ONE,
    "2 subtasks": cut(ONE, 2, 48, 32),
    "5 subtasks": cut(ONE, 5, 24, 64),
}

if __name__ == "__main__":
    chosen, seeds = runner.arguments(CONFIGURATIONS, (0, 1, 2))
    runner.run(
        "cifar10_subtasks",
        {label: CONFIGURATIONS[label] for label in chosen},
        seeds=seeds,
        derived={"expert_labels": labelled},
        labels=list(CONFIGURATIONS),
    )
