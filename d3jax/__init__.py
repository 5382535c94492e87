"""Dataset distillation in JAX/Flax: the public names.

A name's module is imported when the name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3jax.artifact import Artifact as Artifact
    from d3jax.artifact import load as load
    from d3jax.artifact import save as save
    from d3jax.artifact.join import join as join
    from d3jax.artifact.model import load_model as load_model
    from d3jax.data import Dataset as Dataset
    from d3jax.data import load as load_data
    from d3jax.distill.compose import compose as compose
    from d3jax.distill.inner import truncated_unroll as truncated_unroll
    from d3jax.distill.inner import unroll as unroll
    from d3jax.distill.objectives import feature_mmd as feature_mmd
    from d3jax.distill.objectives import trajectory_matching as trajectory_matching
    from d3jax.distill.objectives import unrolled as unrolled
    from d3jax.evaluate import Protocol as Protocol
    from d3jax.experts import train_experts as train_experts
    from d3jax.losses import cross_entropy as cross_entropy
    from d3jax.losses import kernel_ridge_regression as kernel_ridge_regression
    from d3jax.losses import mmd2 as mmd2
    from d3jax.losses import solved_labels as solved_labels
    from d3jax.losses import trajectory_distance as trajectory_distance
    from d3jax.methods.d3 import D3Options as D3Options
    from d3jax.methods.d3 import d3 as d3
    from d3jax.methods.dd import DDOptions as DDOptions
    from d3jax.methods.dd import dd as dd
    from d3jax.methods.dwa import DWAOptions as DWAOptions
    from d3jax.methods.dwa import dwa as dwa
    from d3jax.methods.frepo import FRePoOptions as FRePoOptions
    from d3jax.methods.frepo import frepo as frepo
    from d3jax.methods.mgdd import MGDDOptions as MGDDOptions
    from d3jax.methods.mgdd import mgdd as mgdd
    from d3jax.methods.mtt import MTTOptions as MTTOptions
    from d3jax.methods.mtt import mtt as mtt
    from d3jax.methods.rded import RDEDOptions as RDEDOptions
    from d3jax.methods.rded import rded as rded
    from d3jax.methods.registry import METHODS as METHODS
    from d3jax.methods.registry import Spec as Spec
    from d3jax.methods.registry import register as register
    from d3jax.methods.seqmatch import SeqMatchOptions as SeqMatchOptions
    from d3jax.methods.seqmatch import seqmatch as seqmatch
    from d3jax.run.api import show as show
    from d3jax.synthetic.gaussian import fit as fit
    from d3jax.types import Batch as Batch
    from d3jax.types import InputError as InputError
    from d3jax.types import Method as Method
    from d3jax.types import Network as Network
    from d3jax.types import Objective as Objective
    from d3jax.types import Real as Real
    from d3jax.types import State as State
    from d3jax.types import Synthetic as Synthetic

# Where each public name is defined, by module.
_NAMES = {
    "artifact": ("Artifact", "load", "save"),
    "artifact.join": ("join",),
    "artifact.model": ("load_model",),
    "data": ("Dataset",),
    "distill.compose": ("compose",),
    "distill.inner": ("truncated_unroll", "unroll"),
    "distill.objectives": ("feature_mmd", "trajectory_matching", "unrolled"),
    "evaluate": ("Protocol",),
    "experts": ("train_experts",),
    "losses": (
        *("cross_entropy", "kernel_ridge_regression", "mmd2"),
        *("solved_labels", "trajectory_distance"),
    ),
    "methods.d3": ("D3Options", "d3"),
    "methods.dd": ("DDOptions", "dd"),
    "methods.dwa": ("DWAOptions", "dwa"),
    "methods.frepo": ("FRePoOptions", "frepo"),
    "methods.mgdd": ("MGDDOptions", "mgdd"),
    "methods.mtt": ("MTTOptions", "mtt"),
    "methods.rded": ("RDEDOptions", "rded"),
    "methods.registry": ("METHODS", "Spec", "register"),
    "methods.seqmatch": ("SeqMatchOptions", "seqmatch"),
    "run.api": ("show",),
    "synthetic.gaussian": ("fit",),
    "types": (
        *("Batch", "InputError", "Method", "Network"),
        *("Objective", "Real", "State", "Synthetic"),
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
# `distill` and `evaluate` are modules that can be called (see `host/callable.py`).
__all__ = [*_HOME, "distill", "evaluate", "load_data"]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name, or a module, when it is first asked for."""
    if name == "load_data":
        return importlib.import_module("d3jax.data").load
    if name in _HOME:
        return getattr(importlib.import_module(f"d3jax.{_HOME[name]}"), name)
    try:
        return importlib.import_module(f"d3jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"d3jax.{name}":
            raise
    raise AttributeError(f"module 'd3jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
