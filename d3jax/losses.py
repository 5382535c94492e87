"""Losses: cross entropy, maximum mean discrepancy, trajectory distance."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.types import PyTree

BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean over the batch of -sum_k targets[k] log softmax(logits)[k], in nats: f[].

    Args:
      logits: f[B, K].
      targets: f[B, K], one-hot (hard) or any probabilities (soft).
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def _squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 f[n, m], through the Gram matrix; rounding below zero is cut off."""
    squares = jnp.sum(jnp.square(x), -1)[:, None] + jnp.sum(jnp.square(y), -1)[None, :]
    return jnp.maximum(squares - jnp.asarray(2, x.dtype) * (x @ y.T), jnp.zeros((), x.dtype))


def _kernel(x: Array, y: Array, bandwidths: Sequence[float]) -> Array:
    """Sum over bandwidths s of exp(-|x_i - y_j|^2 / (2 s^2)): f[n, m]."""
    distances = _squared_distances(x, y)
    return sum(
        (jnp.exp(distances * jnp.asarray(-0.5 / s**2, x.dtype)) for s in bandwidths),
        jnp.zeros_like(distances),
    )


def mmd2(x: Array, y: Array, bandwidths: Sequence[float] = BANDWIDTHS) -> Array:
    """The unbiased estimate of the squared maximum mean discrepancy of two samples: f[].

    Args:
      x: f[n, F], n >= 2 independent draws of the one distribution.
      y: f[m, F], m >= 2 of the other.
      bandwidths: s of the kernel sum_s exp(-d^2 / (2 s^2)), in the units of x.

    Raises:
      ValueError: fewer than two draws, or different F.

    Gretton et al., JMLR 2012, equation 3 (MMD_u^2); the kernel of D3 (arXiv 2403.00999). It is
    negative about half the time when both distributions are equal.
    """
    n, m = x.shape[0], y.shape[0]
    if n < 2 or m < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"mmd2 needs f[n, F] and f[m, F], n, m >= 2; got {x.shape}, {y.shape}")

    def within(z: Array) -> Array:
        # The diagonal is masked rather than subtracted: its kernel is constant, and cancelling two
        # large sums would cost digits.
        size = z.shape[0]
        off_diagonal = ~jnp.eye(size, dtype=bool)
        kernel = jnp.where(off_diagonal, _kernel(z, z, bandwidths), jnp.zeros((), z.dtype))
        return jnp.sum(kernel) / jnp.asarray(size * (size - 1), z.dtype)

    between = jnp.mean(_kernel(x, y, bandwidths))
    return within(x) + within(y) - jnp.asarray(2, x.dtype) * between


def _squared_norm(tree: PyTree) -> Array:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))  # type: ignore


def trajectory_distance(student: PyTree, target: PyTree, start: PyTree) -> Array:
    """|student - target|^2 / |start - target|^2 over whole parameter pytrees: f[].

    1 is no progress from start towards target, 0 is target reached. Where start equals target it is
    infinite or NaN, which stops a run.

    Cazenavette et al., CVPR 2022, equation 2.
    """

    def difference(a: PyTree, b: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, a, b)

    return _squared_norm(difference(student, target)) / _squared_norm(difference(start, target))
