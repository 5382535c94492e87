"""Other projects' files, out and in: what `d3jax export` writes and `d3jax import` reads."""

from d3jax.artifact.exchange.conventions import normalization_of as normalization_of
from d3jax.artifact.exchange.export import FORMATS as FORMATS
from d3jax.artifact.exchange.export import export as export
from d3jax.artifact.exchange.imported import check_shape as check_shape
from d3jax.artifact.exchange.imported import imported as imported
from d3jax.artifact.exchange.published import Published as Published
from d3jax.artifact.exchange.published import is_published as is_published
from d3jax.artifact.exchange.published import read as read
