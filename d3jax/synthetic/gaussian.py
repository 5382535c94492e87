"""Synthetic data as Gaussians in a latent space, decoded by one small network (D3)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax.synthetic import decoders, labels, regression, starts
from d3jax.synthetic.arguments import converting
from d3jax.synthetic.rounding import KINDS as ROUNDINGS
from d3jax.synthetic.rounding import as_stored
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic, check_known

FREEZE_BATCHES = 64
VARIANCES = ("each", "class", "none")
_Decoded = tuple[Array, PyTree]  # normalized images, and the batch's statistics
_REAL_LOG_VARIANCE = -4.0  # a standard deviation of 0.14, where means are about 1 apart


def create(
    *,
    image_shape: Sequence[int],
    num_classes: int,
    latents_per_class: int = 1,
    latent_size: int = 64,
    decoder: str = "small",
    width: int | None = None,
    shift: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    variance: str = "each",
    rounding: str = "none",
    start: str = "noise",
    start_steps: int = 500,
    class_embedding: bool = False,
    label_kind: str = "hard",
) -> Synthetic:
    """Per class `latents_per_class` diagonal Gaussians, and one decoder for all: x = decoder(z).

    theta: `data` = {mean f[N, z], log_variance f[N, z]}, N = K * latents_per_class; `decoder`;
    `statistics`, the decoder's frozen batch-norm statistics, where `freeze` has added them.

    `freeze` averages the statistics of `FREEZE_BATCHES` sampled batches; the variance includes that
    of the batches' means (law of total variance). Afterwards an image's decode does not depend on
    its neighbours (the authors' code decodes with batch statistics). What is rounded while it is
    learned is rounded in the frozen theta, statistics too: storing it changes nothing.

    Args:
      image_shape: (H, W, C).
      num_classes: K.
      latents_per_class: Gaussians per class (LPC).
      latent_size: z.
      decoder, width: as in `decoders.create`.
      shift, scale: per-channel f[C] map of the decoder's (-1, 1) to normalized images,
        shift + scale * tanh; default 0 and 1, as in the authors' code.
      variance: `each` Gaussian has log variances of its own; those of a `class` share them,
        log_variance f[K, z]; or `none`: there are none, and images are decoded means, whatever the
        key (the paper's ablation).
      rounding: none, float16 or int8: latents, decoder and learned labels are decoded as they read
        when they are stored so, with straight-through gradients (`synthetic.rounding`).
      start: `noise`, as in the paper; or means and decoder are first fitted, by `regression.fit`,
        to `real` images of their classes, drawn at random, all different, or to their centres by
        `kmeans` (`starts.centres`). Log variances then start at -4, not at random: with the paper's
        N(0, 1) a draw would be as far from its mean as other images are.
      start_steps: of that regression.
      class_embedding: the decoder has a learned vector for each class (`decoders.create`).
      label_kind: one of `labels.KINDS`.

    Raises:
      InputError: a size that is not positive, a decoder that does not fit, or an unknown option.

    D3, arXiv 2403.00999, section 3. z = mean + exp(log_variance / 2) * epsilon; both start N(0, 1).
    """
    if latents_per_class < 1 or num_classes < 1:
        raise InputError(
            f"classes and latents per class must be positive, "
            f"not {num_classes} and {latents_per_class}"
        )
    check_known("label kind", label_kind, labels.KINDS)
    check_known("rounding", rounding, ROUNDINGS)
    check_known("variance", variance, VARIANCES)
    check_known("start", start, starts.STARTS)
    if type(start_steps) is not int or start_steps < 1:
        raise InputError(f"the start needs at least 1 step, not {start_steps}")
    if type(class_embedding) is not bool:
        raise InputError(f"a class embedding is there or not, not {class_embedding!r}")
    shape = (image_shape[0], image_shape[1], image_shape[2])
    network = decoders.create(
        decoder,
        image_shape=shape,
        latent_size=latent_size,
        width=width,
        num_classes=num_classes if class_embedding else None,
    )
    num_items = num_classes * latents_per_class
    offset = np.zeros(shape[2]) if shift is None else np.asarray(shift)
    factor = np.ones(shape[2]) if scale is None else np.asarray(scale)
    if offset.shape != (shape[2],) or factor.shape != (shape[2],):
        raise InputError(f"shift and scale need one number for each of the {shape[2]} channels")
    for numbers in (offset, factor):
        if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
            raise InputError("shift and scale must be finite numbers")

    groups = ("data", "decoder", *labels.groups(label_kind))
    classes_of = partial(labels.item_classes, num_items, num_classes)
    variances = {"each": num_items, "class": num_classes, "none": 0}[variance]

    def decode(params: PyTree, z: Array, classes: Array, statistics: PyTree = None) -> _Decoded:
        embedded = {"classes": classes} if class_embedding else {}
        images, own = network.forward(params, z, statistics=statistics, **embedded)
        dtype = images.dtype
        return jnp.asarray(offset, dtype) + jnp.asarray(factor, dtype) * images, own

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        for_mean, for_variance, for_decoder, *more = jax.random.split(
            key, 3 if start == "noise" else 5
        )
        mean = jax.random.normal(for_mean, (num_items, latent_size), jnp.float32)
        params = network.init(for_decoder)
        size = (variances, latent_size)
        if start == "noise":
            logarithms = jax.random.normal(for_variance, size, jnp.float32)
        else:
            logarithms = jnp.full(size, _REAL_LOG_VARIANCE, jnp.float32)
            found = starts.images(start, more[0], real, latents_per_class)
            params, mean = regression.fit(
                lambda params, z, which: decode(params, z, classes_of(which))[0],
                params, mean, found.reshape(num_items, *shape).astype(jnp.float32), more[1],
                steps=start_steps,
            )  # fmt: skip
        theta: dict[str, PyTree] = {"data": {"mean": mean}, "decoder": params}
        if variances:
            theta["data"]["log_variance"] = logarithms
        if label_kind != "hard":
            theta["labels"] = labels.start(num_items, num_classes)
        return theta

    def draw(data: dict[str, Array], key: Array | None, indices: Array | None) -> Array:
        mean = data["mean"] if indices is None else data["mean"][indices]
        if key is None or variance == "none":
            return mean
        rows = classes_of(indices) if variance == "class" else indices
        logarithm = data["log_variance"] if rows is None else data["log_variance"][rows]
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(logarithm * jnp.asarray(0.5, mean.dtype)) * noise

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        theta = as_stored(theta, rounding, groups)
        z, classes = draw(theta["data"], key, indices), classes_of(indices)
        images, _ = decode(theta["decoder"], z, classes, theta.get("statistics"))
        targets = labels.targets(theta, label_kind, classes, indices, num_classes)
        return Batch(images, targets.astype(images.dtype))

    def freeze(theta: dict[str, PyTree], key: Array) -> dict[str, PyTree]:
        theta = as_stored(theta, rounding, groups)

        def statistics(key: Array) -> PyTree:
            return decode(theta["decoder"], draw(theta["data"], key, None), classes_of(None))[1]

        stacked = jax.lax.map(statistics, jax.random.split(key, FREEZE_BATCHES))
        frozen = [(mean.mean(0), variance.mean(0) + mean.var(0)) for mean, variance in stacked]
        completed = {**theta, "statistics": tuple(frozen)}
        return as_stored(completed, rounding, ("statistics",))

    # The items of a class share its log variances: no fewer of them can be told apart.
    together = latents_per_class if variance == "class" else 1
    made = Synthetic(init, sample, freeze, num_items, num_classes, groups, together)
    return converting(made._replace(label_kind=label_kind))


def fit(vectors: Array, classes: Array, num_classes: int) -> tuple[Array, Array]:
    """Per-class mean and (biased) variance of vectors, as one segment reduction.

    Args:
      vectors: f[N, z].
      classes: i32[N], in 0 .. num_classes - 1.
      num_classes: K.

    Returns:
      (mean f[K, z], variance f[K, z]); NaN for a class without vectors.

    Examples:
      >>> mean, variance = fit(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), 2)
      >>> print(mean.ravel(), variance.ravel())
      [1. 5.] [1. 0.]
    """
    ones = jnp.ones((vectors.shape[0], 1), vectors.dtype)
    # Centring on the overall mean first keeps E[x^2] - E[x]^2 from cancelling.
    centre = vectors.mean(0)
    centred = vectors - centre
    moments = jnp.concatenate([centred, jnp.square(centred), ones], axis=-1)
    sums = jax.ops.segment_sum(moments, classes, num_classes)
    size = vectors.shape[1]
    count = sums[:, -1:]
    mean = sums[:, :size] / count
    variance = sums[:, size : 2 * size] / count - jnp.square(mean)
    return mean + centre, jnp.maximum(variance, jnp.zeros((), vectors.dtype))
