"""Objectives that several methods share; each knows theta only through `sample`."""

from d3jax.distill.objectives.mmd import feature_mmd as feature_mmd
from d3jax.distill.objectives.ridge import kernel_ridge as kernel_ridge
from d3jax.distill.objectives.statistics import batch_items as batch_items
from d3jax.distill.objectives.statistics import statistics_matching as statistics_matching
from d3jax.distill.objectives.trajectory import trajectory_matching as trajectory_matching
from d3jax.distill.objectives.unrolled import Initialization as Initialization
from d3jax.distill.objectives.unrolled import descent as descent
from d3jax.distill.objectives.unrolled import step_items as step_items
from d3jax.distill.objectives.unrolled import unrolled as unrolled
