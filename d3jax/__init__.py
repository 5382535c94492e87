"""Dataset distillation in JAX/Flax: the public names."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d3jax.artifact import Artifact as Artifact
    from d3jax.artifact import load as load
    from d3jax.artifact import save as save
    from d3jax.artifact.join import join as join
    from d3jax.distill.compose import compose as compose
    from d3jax.distill.inner import truncated_unroll as truncated_unroll
    from d3jax.distill.inner import unroll as unroll
    from d3jax.distill.objectives import feature_mmd as feature_mmd
    from d3jax.distill.objectives import trajectory_matching as trajectory_matching
    from d3jax.distill.objectives import unrolled as unrolled
    from d3jax.evaluate import Protocol as Protocol
    from d3jax.losses import cross_entropy as cross_entropy
    from d3jax.losses import mmd2 as mmd2
    from d3jax.losses import trajectory_distance as trajectory_distance
    from d3jax.methods.d3 import d3 as d3
    from d3jax.methods.dd import dd as dd
    from d3jax.methods.mtt import mtt as mtt
    from d3jax.methods.seqmatch import seqmatch as seqmatch
    from d3jax.synthetic.gaussian import fit as fit
    from d3jax.types import Batch as Batch
    from d3jax.types import InputError as InputError
    from d3jax.types import Method as Method
    from d3jax.types import Network as Network
    from d3jax.types import Objective as Objective
    from d3jax.types import Real as Real
    from d3jax.types import State as State
    from d3jax.types import Synthetic as Synthetic

# Where each public name is defined; its module is imported when the name is first used.
_HOME = {
    "Artifact": "artifact",
    "load": "artifact",
    "save": "artifact",
    "Protocol": "evaluate",
    "truncated_unroll": "distill.inner",
    "unroll": "distill.inner",
    "join": "artifact.join",
    "cross_entropy": "losses",
    "mmd2": "losses",
    "trajectory_distance": "losses",
    "d3": "methods.d3",
    "dd": "methods.dd",
    "mtt": "methods.mtt",
    "seqmatch": "methods.seqmatch",
    "feature_mmd": "distill.objectives",
    "trajectory_matching": "distill.objectives",
    "unrolled": "distill.objectives",
    "compose": "distill.compose",
    "fit": "synthetic.gaussian",
    **dict.fromkeys(
        (
            *("Batch", "InputError", "Method", "Network"),
            *("Objective", "Real", "State", "Synthetic"),
        ),
        "types",
    ),
}
__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name, or a module, when it is first asked for."""
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
