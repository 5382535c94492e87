"""The unrolled inner loop: T steps of training that differentiate through themselves."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array

from d3jax.networks.convolution import no_cotangent, products
from d3jax.types import PyTree


def unroll(
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batches: PyTree,
    learning_rates: Array,
    *,
    optimizer: optax.GradientTransformation | None = None,
    rematerialize: bool = True,
    scan_unroll: int = 1,
) -> PyTree:
    """Train `params` for T steps on `batches`, differentiably, and return the trained params.

    Step t computes `params + learning_rates[t] * update`, where update is what `optimizer` makes of
    the gradient of `loss(params, batches[t])`. Differentiable (and twice, where `loss` is three
    times) in params, batches and learning rates, in float32 and float64. Under `jax.shard_map` each
    device trains params of its own where the loss differs from device to device, by its batches or
    by what it closes over, even if they start alike.

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
      rematerialize: recompute each step's activations on the way back, all but the results of its
        convolutions (`networks.convolution.products`), so that memory is T parameter vectors, those
        results and the activations of one step, not of T. Usually faster too, since recomputing
        moves less memory than storing.
      scan_unroll: steps in one turn of the compiled loop; more take longer to compile.

    Returns:
      The params after T steps, same structure, shapes and dtypes.

    Raises:
      ValueError: learning_rates is not a vector, or a leaf of batches has another leading axis.

    Examples:
      Three steps at rate 1/2 go half of the way to a number each; the derivative says how far each
      step's number has moved the result.

      >>> import jax, jax.numpy as jnp
      >>> from d3jax import unroll
      >>> loss = lambda w, x: 0.5 * (w - x) ** 2
      >>> trained = lambda xs: unroll(loss, jnp.zeros(()), xs, jnp.full(3, 0.5))
      >>> print(trained(jnp.ones(3)), jax.grad(trained)(jnp.ones(3)))
      0.875 [0.125 0.25  0.5  ]

    The inner loop of Dataset Distillation (Wang et al., arXiv 1811.10959, equation 4) and of
    trajectory matching (Cazenavette et al., CVPR 2022, algorithm 1).
    """
    _check(batches, learning_rates)
    descent = optax.sgd(1.0) if optimizer is None else optimizer
    axes = _varying_axes(loss, params, batches, learning_rates)
    params = _vary(params, axes)
    carry = (params, descent.init(params))
    inputs = (batches, learning_rates)
    return _scan(_step(loss, descent), carry, inputs, axes, rematerialize, scan_unroll)[0]


def truncated_unroll(
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    params: PyTree,
    data: PyTree,
    batches: PyTree,
    learning_rates: Array,
    start: Array,
    window: int,
    *,
    optimizer: optax.GradientTransformation | None = None,
    rematerialize: bool = True,
    scan_unroll: int = 1,
) -> PyTree:
    """Train through step `start + window` and return the params, differentiable in `window` steps.

    As `unroll`, but the first `start` steps are taken without derivatives, at no memory, and only
    the `window` steps after them are unrolled; steps later than those are not taken at all.

    Args:
      loss: (params, batch, data) -> f[]. What is differentiated must come in through `data`: the
        steps before the window see it as a constant.
      data: any pytree of floats, such as theta.
      start: i32[], from 0 to T - window; may be traced.
      window: W, steps that are differentiated, at most T.

    The others, and the errors, as in `unroll`; further a ValueError for a window out of range.
    Differentiable in data and learning rates; the derivative in `params` is cut, hence zero.

    The window of RaT-BPTT (Feng, Vedantam and Kempe, arXiv 2310.07506), whose place is random.
    """
    _check(batches, learning_rates)
    if not 0 < window <= learning_rates.shape[0]:
        raise ValueError(f"window must be from 1 to {learning_rates.shape[0]} steps, not {window}")
    descent = optax.sgd(1.0) if optimizer is None else optimizer
    axes = _varying_axes(
        lambda params, batch: loss(params, batch, data), params, batches, learning_rates, start
    )
    params = _vary(params, axes)
    constant = jax.lax.stop_gradient(data)
    early = _step(lambda params, batch: loss(params, batch, constant), descent)
    rates = jax.lax.stop_gradient(learning_rates)

    def advance(number: Array, carry: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[number], batches)
        return _vary(early(carry, (batch, rates[number]))[0], axes)

    carry = _vary(jax.lax.stop_gradient((params, descent.init(params))), axes)
    carry = jax.lax.fori_loop(jnp.zeros_like(start), start, advance, carry)
    late = _step(lambda params, batch: loss(params, batch, data), descent)
    inputs = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, window), (batches, learning_rates)
    )
    carry = jax.lax.stop_gradient(carry)
    return _scan(late, carry, inputs, axes, rematerialize, scan_unroll)[0]


def direct_unroll(
    loss: Callable[[PyTree, PyTree, PyTree], Array],
    params: PyTree,
    data: PyTree,
    batches: PyTree,
    learning_rates: Array,
) -> PyTree:
    """Train `params` for T steps of plain gradient descent; a cheaper, approximate derivative.

    The result is that of `unroll`: params_T = params_0 - sum_t rate_t g_t with g_t the gradient of
    `loss(params_{t-1}, batch_t, data)`. Its derivative takes each g_t to depend on `data` directly,
    through the batch of its own step, and drops the path by which data of earlier steps moved
    params_{t-1}: d params_T = -sum_t (rate_t (dg_t/d data) d data + g_t d rate_t). For a cotangent
    c that is a sum over steps of derivatives of the scalar product c.g_t, which needs no earlier
    step: the steps are taken a second time, each with one forward-over-reverse product. So memory
    is that of one step and a few parameter vectors, whatever T is.

    Args:
      loss: (params, batch, data) -> f[]. All that is differentiated must come in through `data`.
      data: any pytree of floats, such as theta.

    The others, and the errors, as in `unroll`. Reverse mode only, and once; the derivative in
    `params` is the identity, none is taken in batches.

    TESLA (Cui et al., ICML 2023, section 3.2) for trajectory matching, whose loss is quadratic in
    this sum of gradients; the code there adds that loss's gradient up step by step, here it comes
    out for any loss of params_T.
    """
    _check(batches, learning_rates)
    axes = _varying_axes(
        lambda params, batch: loss(params, batch, data), params, batches, learning_rates
    )
    # All that the custom derivative gives a cotangent for: what devices share gets the sum of
    # theirs here, outside of it.
    params, data, learning_rates = _vary((params, data, learning_rates), axes)
    return _direct(loss, params, data, batches, learning_rates)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _direct(
    loss: Callable[..., Array], params: PyTree, data: PyTree, batches: PyTree, rates: Array
) -> PyTree:
    step = _step(lambda params, batch: loss(params, batch, data), optax.sgd(1.0))
    return _scan(step, (params, optax.sgd(1.0).init(params)), (batches, rates), (), False, 1)[0]


def _direct_forward(
    loss: Callable[..., Array], params: PyTree, data: PyTree, batches: PyTree, rates: Array
) -> tuple[PyTree, PyTree]:
    return _direct(loss, params, data, batches, rates), (params, data, batches, rates)


def _direct_backward(
    loss: Callable[..., Array], kept: PyTree, cotangent: PyTree
) -> tuple[PyTree, PyTree, PyTree, Array]:
    start, data, batches, rates = kept

    def step(carry: PyTree, inputs: PyTree) -> tuple[PyTree, Array]:
        params, total = carry
        batch, rate = inputs

        def gradients(params: PyTree) -> tuple[PyTree, PyTree]:
            return jax.grad(loss, argnums=(0, 2))(params, batch, data)

        # The gradient in data, differentiated along c in params, is that of c.g in data.
        (gradient, _), (_, product) = jax.jvp(gradients, (params,), (cotangent,))
        along: Array = jnp.asarray(optax.tree.vdot(cotangent, gradient), rate.dtype)
        total = jax.tree.map(lambda a, b: a - rate.astype(a.dtype) * b, total, product)
        params = jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, gradient)
        return (params, total), jnp.negative(along)

    carry = (start, jax.tree.map(jnp.zeros_like, data))
    (_, total), for_rates = jax.lax.scan(step, carry, (batches, rates))
    return cotangent, total, jax.tree.map(no_cotangent, batches), for_rates


_direct.defvjp(_direct_forward, _direct_backward)


def _check(batches: PyTree, learning_rates: Array) -> None:
    if learning_rates.ndim != 1:
        raise ValueError(f"learning_rates must be a vector f[T], got {learning_rates.shape}")
    steps = learning_rates.shape[0]
    for leaf in jax.tree.leaves(batches):
        if leaf.ndim == 0 or leaf.shape[0] != steps:
            raise ValueError(
                f"every leaf of batches needs the leading axis T = {steps} of learning_rates, "
                f"got shape {leaf.shape}"
            )


def _step(
    loss: Callable[[PyTree, PyTree], Array], descent: optax.GradientTransformation
) -> Callable[[PyTree, PyTree], tuple[PyTree, None]]:
    """((params, optimizer state), (batch, learning rate)) -> the next of the former, for a scan."""

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

    return step


def _scan(
    step: Callable[[PyTree, PyTree], tuple[PyTree, None]],
    carry: PyTree,
    inputs: PyTree,
    axes: tuple[str, ...],
    rematerialize: bool,
    scan_unroll: int,
) -> PyTree:
    if rematerialize:
        # Inside a scan nothing can merge the recomputation with the original, so the barrier that
        # prevents it elsewhere would only cost time.
        step = jax.checkpoint(step, prevent_cse=False, policy=products)
    carry = _vary(carry, axes)
    return jax.lax.scan(
        lambda carry, inputs: _vary(step(carry, inputs), axes), carry, inputs, unroll=scan_unroll
    )[0]


def _varying_axes(
    loss: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batches: PyTree,
    learning_rates: Array,
    *others: Array,
) -> tuple[str, ...]:
    """The axes of `jax.shard_map` along which training may differ from device to device.

    They are those of the batches, of the learning rates, of `others`, and of whatever `loss` closes
    over; but not those along which `loss` is a sum or mean over devices, which trains all alike.
    None outside of `shard_map`, or where it does not check them (`check_vma=False`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes:
        return ()

    def along(make: Callable[[], PyTree]) -> tuple[str, ...]:
        types = [x.manual_axis_type for x in jax.tree.leaves(jax.eval_shape(make))]
        varying = frozenset().union(*(x.varying for x in types if x is not None))
        return tuple(axis for axis in mesh.manual_axes if axis in varying)

    moved = _vary(params, along(lambda: (batches, learning_rates, others)))

    def seen() -> PyTree:
        values = jax.lax.map(lambda x: loss(moved, x[0]), (batches, learning_rates))
        return values, learning_rates, others

    return along(seen)


def _vary(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    """`tree` as it is, but of a type that says that it differs along `axes` of `jax.shard_map`.

    Params that start alike on every device, and then are trained each on its own data, must have
    that type from the start: the gradient in what all devices share is the sum over devices.
    """
    if not axes:
        return tree

    def cast(x: Array) -> Array:
        known = jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(axis for axis in axes if axis not in known), to="varying")

    return jax.tree.map(cast, tree)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def limit_gradient(tree: PyTree, norm: float) -> PyTree:
    """`tree` as it is; but the gradient that comes back through it is at most `norm` long.

    In a loop over networks that share `tree`, each network's share of the meta-gradient is limited
    before they add up, so that one at the edge of divergence, whose share may be a thousand times
    as long as the others', does not drown them. A share that is not finite, as of a network that
    has diverged, has no direction to keep: it becomes zero. So does one so long that its norm
    overflows.

    Args:
      tree: any pytree of floats. Under `vmap` over networks it must be mapped too (broadcast it):
        of what all share, vmap adds the gradients up first.
      norm: positive; of all leaves together.
    """
    del norm
    return tree


def _limit_forward(tree: PyTree, norm: float) -> tuple[PyTree, None]:
    del norm
    return tree, None


def _limit_backward(norm: float, kept: None, gradient: PyTree) -> tuple[PyTree]:
    del kept
    length = optax.tree.norm(gradient)
    limit = jnp.asarray(norm, length.dtype)
    scale = limit / jnp.maximum(length, limit)
    finite = jnp.isfinite(length)

    def limited(g: Array) -> Array:
        return jnp.where(finite, g * scale.astype(g.dtype), jnp.zeros_like(g))

    return (jax.tree.map(limited, gradient),)


limit_gradient.defvjp(_limit_forward, _limit_backward)


def positive_learning_rates(log_learning_rates: Array, steps: int) -> Array:
    """Learning rates f[T] from their logarithms f[] (one for all steps) or f[T].

    exp keeps them positive by construction; clipping (as in the authors' codes) loses the gradient.
    """
    return jnp.broadcast_to(jnp.exp(log_learning_rates), (steps,))


def mean_learning_rate(log_learning_rates: Array) -> Array:
    """The one learning rate f[] that stands for all the learned ones: their mean.

    The arithmetic mean, not the geometric: to first order, T equal steps of this rate go as far as
    the T learned ones together.

    Args:
      log_learning_rates: logarithms f[] (one for all steps) or f[T].
    """
    return jnp.mean(jnp.exp(log_learning_rates))
