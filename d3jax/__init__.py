"""Dataset distillation in JAX/Flax: the public names."""

from d3jax.artifact import Artifact as Artifact
from d3jax.artifact import load as load
from d3jax.artifact import save as save
from d3jax.evaluate import Protocol as Protocol
from d3jax.inner import truncated_unroll as truncated_unroll
from d3jax.inner import unroll as unroll
from d3jax.losses import cross_entropy as cross_entropy
from d3jax.losses import mmd2 as mmd2
from d3jax.losses import trajectory_distance as trajectory_distance
from d3jax.methods.d3 import d3 as d3
from d3jax.methods.dd import dd as dd
from d3jax.objectives import feature_mmd as feature_mmd
from d3jax.objectives import trajectory_matching as trajectory_matching
from d3jax.objectives import unrolled as unrolled
from d3jax.outer import compose as compose
from d3jax.synthetic.gaussian import fit as fit
from d3jax.types import Batch as Batch
from d3jax.types import InputError as InputError
from d3jax.types import Method as Method
from d3jax.types import Network as Network
from d3jax.types import Objective as Objective
from d3jax.types import Real as Real
from d3jax.types import State as State
from d3jax.types import Synthetic as Synthetic
