"""D3 on ImageNet-1K at 64x64, the paper's three budgets (arXiv 2403.00999), in subtasks.

Prepare the data once with `d3jax prepare imagenet_resized/64x64`, then

    python -m experiments.imagenet64_d3 [small medium large]

The paper's figures (ConvNet, ResNet-18 test accuracy, %): small 11.5, 9.7 in 5 subtasks; medium
17.4, 16.0 in 2; large 20.3, 18.5 in 5. Not run at full size here: a figure measured is none yet.
Expert snapshots stay on disk, and the MMD takes 50 classes at a time.

What it would take, on a device for each subtask, printed by

    python -m experiments.imagenet64_d3 plan small medium

(2 cores of AMD EPYC, 2026-11-21; hours are left out where no accelerator would time the steps):

    small                                          medium
    subtasks           5 on 5 devices, 1 a device  2 on 2 devices, 1 a device
    experts on disk    53.1 GB of 80.7 GB          15.3 GB of 80.7 GB
    memory of a device 22.3 GB of 25.3 GB          21.0 GB of 25.3 GB

The same recipe end to end, as wide and in as many subtasks, on generated data of that shape (20
classes in a prepared TFDS folder), with a few steps of each part:

    python -m experiments.imagenet64_d3 rehearse small

(the same machine and day, 4 minutes: two epochs of one expert for each of 5 subtasks, three outer
steps, an expert of all classes for the labels, a student and random images; 3 951 775 floats, of
which the decoders are nearly all, so few are the classes).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from d3jax.evaluate import Protocol
from d3jax.experts import Options as ExpertOptions
from d3jax.host.progress import Reporter
from d3jax.methods.d3 import D3Options
from d3jax.run import commands
from d3jax.run import run as jobs
from d3jax.run.options import Architecture, Data, Parametrization, command
from d3jax.run.plan import plan
from experiments import generated, runner

# The paper learns the rate itself, with the rates in comments; on the logarithm they are divided
# by the first value's square.
SETTINGS = {
    "small": command("d3")(
        parametrization=Parametrization(
            latents_per_class=1,
            latent_size=64,
            decoder="small",
            decoder_width=256,
            output="normalized",
            labels="expert",
        ),
        d3=D3Options(
            max_start_epoch=27,
            mmd_samples=30,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=3e-4,
            decoder_learning_rate=3e-4,
            student_learning_rate=0.01,
            learning_rate_learning_rate=1e-6 / 0.01**2,
        ),
        expert=ExpertOptions(count=100, epochs=30, learning_rate=0.01),
        student=Protocol(epochs=1000, learning_rate=0.05),
        outer_steps=10_000,
        subtasks="5",
    ),
    "medium": command("d3")(
        parametrization=Parametrization(
            latents_per_class=2,
            latent_size=2048,
            decoder="medium",
            output="normalized",
            labels="expert",
        ),
        d3=D3Options(
            max_start_epoch=10,
            mmd_samples=12,
            inner_batch_size=250,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=5e-3,
            decoder_learning_rate=8e-5,
            student_learning_rate=0.015,
            learning_rate_learning_rate=5e-6 / 0.015**2,
        ),
        expert=ExpertOptions(count=100, epochs=12, learning_rate=0.01),
        student=Protocol(epochs=1000, learning_rate=0.02),
        outer_steps=10_000,
        subtasks="2",
    ),
    "large": command("d3")(
        parametrization=Parametrization(
            latents_per_class=10,
            latent_size=4096,
            decoder="large",
            output="normalized",
            labels="expert",
        ),
        d3=D3Options(
            max_start_epoch=27,
            mmd_samples=20,
            inner_batch_size=250,
            latent_optimizer="sgd",
            schedule="constant",
            latent_learning_rate=5e-3,
            decoder_learning_rate=8e-5,
            student_learning_rate=0.008,
            learning_rate_learning_rate=1e-6 / 0.008**2,
        ),
        expert=ExpertOptions(count=100, epochs=30, learning_rate=0.01),
        student=Protocol(epochs=1000, learning_rate=0.005),
        outer_steps=8000,
        subtasks="5",
    ),
}
DATA = Data(dataset="imagenet_resized/64x64")
NETWORK = Architecture(width=128, depth=4)
CLASSES, IMAGES = 20, 20  # of the rehearsal: classes, and images of each


def configurations(names: list[str]) -> dict[str, Any]:
    """The settings by name; all of them where none is named."""
    chosen = {name: SETTINGS[name] for name in names or SETTINGS}
    return {
        name: dataclasses.replace(
            setting,
            data=DATA,
            architecture=NETWORK,
            d3=dataclasses.replace(setting.d3, mmd_classes=50, mmd_augmentation=()),
            snapshots="disk",
        )
        for name, setting in chosen.items()
    }


def rehearsal(options: Any, out: Path) -> Any:
    """The same run, as wide and in as many subtasks, but for a few steps of each of its parts."""
    generated.write(
        out / "data", "imagenet_resized/64x64", classes=CLASSES, per_class=IMAGES, size=64
    )
    replace = dataclasses.replace
    return replace(
        options,
        data=replace(options.data, data_dir=out / "data", validation=CLASSES),
        d3=replace(options.d3, inner_steps=2, mmd_samples=4, max_start_epoch=1, mmd_classes=None),
        expert=replace(options.expert, count=1, epochs=2, batch_size=16),
        student=replace(options.student, students=1, epochs=2),
        outer_steps=3,
        baselines=("random",),
        experts=out / "experts",
        out=out / "run",
    )


if __name__ == "__main__":
    mode, names = sys.argv[1:2], sys.argv[2:]
    if mode == ["plan"]:
        for name, options in configurations(names).items():
            here = rehearsal(options, Path("runs/imagenet64_rehearsal") / name).data
            full = commands.Plan(
                dataclasses.replace(options, data=here),
                devices=int(options.subtasks or 1),
                classes=1000,
                images=1_281_167,
                timed=jax.default_backend() != "cpu",
            )
            plan(full, Reporter())
    elif mode == ["rehearse"]:
        for name, options in configurations(names).items():
            jobs.run(rehearsal(options, Path("runs/imagenet64_rehearsal") / name), Reporter())
    else:
        runner.run("imagenet64_d3", configurations(sys.argv[1:]), seeds=(0,))
