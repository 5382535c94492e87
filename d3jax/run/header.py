"""What an artifact's header says of the run that made it."""

from typing import Any

from d3jax import artifact
from d3jax.artifact import Artifact
from d3jax.data.augment import default_strategy
from d3jax.data.sources import dataset_name
from d3jax.evaluate import Protocol
from d3jax.experts.store import fingerprint
from d3jax.run.job import Job
from d3jax.run.options import plain
from d3jax.types import PyTree


def made(
    job: Job,
    theta: dict[str, PyTree],
    learning_rate: float,
    entries: dict[str, Any] | None = None,
) -> Artifact:
    """The artifact of a run, or of one of its subtasks.

    Args:
      job: the run.
      theta: frozen.
      learning_rate: the student's.
      entries: more of the header.
    """
    options, world = job.options, job.world
    part = world.part
    return artifact.create(
        theta,
        method=job.spec.name,
        dataset=dataset_name(options.data.dataset),
        class_names=world.dataset.class_names,
        normalization={
            "mean": [float(v) for v in world.normalization.mean],
            "sd": [float(v) for v in world.normalization.sd],
            "zca": _whitening(job),
        },
        architecture=plain(options.architecture),
        parametrization=job.specification,
        student_learning_rate=learning_rate,
        protocol=_protocol(job),
        seed=options.seed,
        dtype=options.storage,
        label_dtype=options.label_storage,
        reading=world.dataset.reading.chosen(),
        subtask=None
        if part is None
        else {"classes": list(part.classes), "class_names": list(part.whole.class_names)},
        **(entries or {}),
    )


def _whitening(job: Job) -> dict[str, Any] | None:
    """What the ZCA matrix is computed from again, which is not stored: 38 MB at 32x32x3."""
    options, whole = job.options, job.world.whole
    if job.world.normalization.zca is None:
        return None
    # The matrix's last digits depend on the linear algebra library, so the images are hashed.
    return {
        "epsilon": 0.1,
        "images": fingerprint(whole.train_images, whole.train_labels),
        "train_limit": options.data.train_limit,
        "validation": options.data.validation,
        "seed": options.seed,
    }


def _protocol(job: Job) -> dict[str, Any]:
    """How students were meant to be trained."""
    if hasattr(job.options, "student"):
        return plain(job.options.student)  # type: ignore[attr-defined]
    dataset = job.world.dataset
    return plain(Protocol(augmentation=default_strategy(dataset.name, dataset.class_names)))
