"""DWA, SRe2L and RDED on ImageNet-1K at 224 pixels, 50 images a class (arXiv 2409.17612).

Prepare the data once with `d3jax prepare imagenet2012`, then

    python -m experiments.imagenet1k_statistics [dwa sre2l rded]

The papers' figures of ResNet-18, 50 images a class, each under its own student's recipe: SRe2L 46.8,
DWA 55.2, RDED 56.5. Not run at full size here: a figure measured is none yet.

The recipe is DWA's: 2000 outer steps (SRe2L 4000), Adam at 0.25, statistics weighed 0.01 and
variances 2, 15 adjustment steps of 0.015 in all, batches of 100 classes, crops and rolls of up to 32
pixels; students 300 epochs of AdamW at 0.001, weight decay 0.01, resized crops, flip and cutmix, KL
at temperature 20. Deviations: the teacher is trained here (90 epochs, SGD 0.1), where theirs is
torchvision's; the teacher is shipped (22 MB), where theirs stores labels of all epochs (30 GB).

What it would take, printed by

    python -m experiments.imagenet1k_statistics plan dwa

(1 core of this machine, 2026-11-27; hours are left out where no accelerator would time the steps):

    experts on disk         46.8 MB
    checkpoints on disk     227.4 GB
    memory of a device      442.1 GB

So it does not fit a device of today: all training images are held there (193 GB as bytes), and all
50 000 images are optimized together (30 GB, Adam's moments 60 GB, adjusted teachers 22 GB). The
papers' runs take one image of each class at a time, which here is a run each, of
`--images-per-class 1`, without a join of their items; and the training images would have to be
streamed.

The same recipe end to end on generated data of that shape, ten classes, with a few steps of each
part, at a quarter of the width:

    python -m experiments.imagenet1k_statistics rehearse dwa
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from d3jax import experts
from d3jax.evaluate import Protocol
from d3jax.host.progress import Reporter
from d3jax.methods.dwa import SRE2L, DWAOptions
from d3jax.methods.rded import RDEDOptions
from d3jax.run import commands
from d3jax.run import run as jobs
from d3jax.run.options import Architecture, Data, Parametrization, command
from d3jax.run.plan import plan
from d3jax.types import InputError
from experiments import generated, runner

replace = dataclasses.replace
CLASSES, IMAGES, PER_CLASS = 1000, 1_281_167, 50
COMMON: dict[str, Any] = {
    "data": Data(dataset="imagenet2012", image_size=224),
    "architecture": Architecture(network="resnet18", width=64, norm="batch", compute="bfloat16"),
    "parametrization": Parametrization(images_per_class=PER_CLASS, labels="teacher"),
    "expert": replace(experts.TEACHER, epochs=90, batch_size=256, weight_decay=1e-4),
    "student": Protocol(
        epochs=300,
        students=1,
        batch_size=128,
        learning_rate=1e-3,
        optimizer="adamw",
        weight_decay=0.01,
        schedule="cosine",
        views="resized",
        mix="cutmix",
        temperature=20.0,
    ),
    "baseline_learning_rates": (1e-3,),
}
LARGE = DWAOptions(
    variance_weight=2.0,
    adjustment_steps=15,
    batch_classes=100,
    roll=32,
    crop=True,
    data_learning_rate=0.25,
)
SETTINGS = {
    "dwa": command("dwa")(**COMMON, dwa=LARGE, outer_steps=2000),
    "sre2l": command("dwa")(
        **{**COMMON, "parametrization": replace(COMMON["parametrization"], start="noise")},
        dwa=replace(LARGE, variance_weight=SRE2L.variance_weight, adjustment_steps=0),
        outer_steps=4000,
        baselines=(),
    ),
    "rded": command("rded")(**COMMON, rded=RDEDOptions(factor=2), baselines=()),
}


def rehearsal(options: Any, out: Path, classes: int = 10) -> Any:
    """The same run on a few generated images, for a few steps of each of its parts."""
    generated.write(out / "data", "imagenet2012", classes=classes, per_class=16, size=224)
    small = replace(options.parametrization, images_per_class=1)
    changes: dict[str, Any] = {}
    if options.spec.name == "dwa":
        own = replace(options.dwa, batch_classes=classes // 2)
        changes["dwa"] = replace(own, adjustment_steps=min(2, own.adjustment_steps))
    else:
        changes["rded"] = replace(options.rded, images=8)
    return replace(
        options,
        data=replace(options.data, data_dir=out / "data"),
        architecture=replace(options.architecture, width=16, compute="float32"),
        parametrization=small,
        expert=replace(options.expert, epochs=3, batch_size=16, learning_rate=0.02),
        student=replace(options.student, epochs=2, batch_size=5),
        outer_steps=2,
        chunk=2,
        experts=out / "experts",
        out=out / options.spec.name,
        **changes,
    )


if __name__ == "__main__":
    mode, names = sys.argv[1:2], sys.argv[2:] or list(SETTINGS)
    folder = Path("runs/imagenet1k_rehearsal")
    if mode == ["plan"]:
        for name in names:
            there = rehearsal(SETTINGS[name], folder).data
            full = commands.Plan(
                replace(SETTINGS[name], data=there),
                classes=CLASSES,
                images=IMAGES,
                timed=jax.default_backend() != "cpu",
            )
            try:
                plan(full, Reporter())
            except InputError as error:
                print(error)
    elif mode == ["rehearse"]:
        for name in names:
            jobs.run(rehearsal(SETTINGS[name], folder / name), Reporter())
    else:
        chosen = {name: SETTINGS[name] for name in sys.argv[1:] or SETTINGS}
        runner.run("imagenet1k_statistics", chosen, seeds=(0,))
