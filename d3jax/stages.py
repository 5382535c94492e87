"""What each stage of a run draws follows from the run's seed and the stage's number."""

import enum

import jax
from jax import Array


class Stage(enum.IntEnum):
    """The stages that draw; a new one takes the next number, so that the others' draws stay."""

    EXPERTS = 0
    DISTILL = 1
    FREEZE = 2
    STUDENTS = 3
    INITIAL = 4  # the fixed initialization of Dataset Distillation
    SOURCES = 5  # networks of another data set, which distillation adapts
    REPLAY = 6  # samples that networks see in an artifact's own steps
    PARTLY_TRAINED = 7  # networks trained through a sequence's earlier subsets
    TURNS = 8  # a sequence's outer steps after the first subset


def stage_key(seed: int, stage: Stage, subtask: int | Array | None = None) -> Array:
    """The key of one stage of a run, or of one of its subtasks there."""
    key = jax.random.fold_in(jax.random.key(seed), stage)
    return key if subtask is None else jax.random.fold_in(key, subtask)
