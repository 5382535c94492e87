"""The unrolled inner loop: T steps of training that differentiate through themselves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax.types import PyTree


def unroll(
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batches: PyTree,
    learning_rates: Array,
    *,
    optimizer: optax.GradientTransformation | None = None,
    rematerialize: bool = True,
) -> PyTree:
    """Train `params` for T steps on `batches`, differentiably, and return the trained params.

    Step t computes `params + learning_rates[t] * update`, where update is what `optimizer` makes of
    the gradient of `loss(params, batches[t])`. Differentiable (and twice, where `loss` is three
    times) in params, batches and learning rates, in float32 and float64.

    Args:
      loss: (params, batch) -> f[]. It may close over traced values, such as the distilled data.
      params: any pytree of floats.
      batches: any pytree whose leaves have a leading axis T; its leaves may be keys or indices from
        which `loss` makes the batch, so that T batches never exist at once.
      learning_rates: f[T], positive.
      optimizer: any optax transformation that descends at unit learning rate, such as
        `optax.adam(1.0, eps_root=1e-12)`; default plain gradient descent, `optax.sgd(1.0)`.
        (Adam without eps_root has no derivative where a gradient is exactly zero, as behind a dead
        ReLU: its meta-gradient is then NaN.)
      rematerialize: recompute each step's activations on the way back, so that memory is T
        parameter vectors and the activations of one step, not of T. Usually faster too, since
        recomputing moves less memory than storing.

    Returns:
      The params after T steps, same structure, shapes and dtypes.

    Raises:
      ValueError: learning_rates is not a vector, or a leaf of batches has another leading axis.

    The inner loop of Dataset Distillation (Wang et al., arXiv 1811.10959, equation 4) and of
    trajectory matching (Cazenavette et al., CVPR 2022, algorithm 1).
    """
    if learning_rates.ndim != 1:
        raise ValueError(f"learning_rates must be a vector f[T], got {learning_rates.shape}")
    steps = learning_rates.shape[0]
    for leaf in jax.tree.leaves(batches):
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            raise ValueError(
                f"every leaf of batches needs the leading axis T = {steps} of learning_rates, "
                f"got shape {leaf.shape}"
            )
    descent = optax.sgd(1.0) if optimizer is None else optimizer

    def step(carry: PyTree, inputs: PyTree) -> tuple[PyTree, None]:
        params, state = carry
        batch, learning_rate = inputs
        gradient = jax.grad(loss)(params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it: decay**count
            updates, state = descent.update(gradient, state, params)
        params = jax.tree.map(
            lambda p, u: p + learning_rate.astype(p.dtype) * u.astype(p.dtype), params, updates
        )
        return (params, state), None

    if rematerialize:
        # Inside a scan nothing can merge the recomputation with the original, so the barrier that
        # prevents it elsewhere would only cost time.
        step = jax.checkpoint(step, prevent_cse=False)
    carry = (params, descent.init(params))
    (params, _), _ = jax.lax.scan(step, carry, (batches, learning_rates))
    return params


def positive_learning_rates(log_learning_rates: Array, steps: int) -> Array:
    """Learning rates f[T] from their logarithms f[] (one for all steps) or f[T].

    exp keeps them positive by construction; clipping (as in the authors' codes) loses the gradient.
    """
    return jnp.broadcast_to(jnp.exp(log_learning_rates), (steps,))
