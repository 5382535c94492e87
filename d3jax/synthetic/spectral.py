"""Synthetic data as a few spectrum tensors and transformations, whose products are the images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from d3jax.synthetic import labels, starts
from d3jax.synthetic.arguments import converting
from d3jax.types import Batch, InputError, PyTree, Real, Synthetic, check_known

_SEEN = 50  # real images per class whose principal directions transformations start from
_SPREAD = 0.1  # of transformations about their common start, relative to their own size


def create(
    *,
    image_shape: Sequence[int],
    num_classes: int,
    spectra_per_class: int = 2,
    transformations: int = 4,
    rank: int | None = None,
    label_kind: str = "hard",
    start: str = "real",
) -> Synthetic:
    """Every spectrum tensor under every transformation is an image: N = K * spectra * transforms.

    A spectrum S f[r, r, C] is mapped to an image by a transformation's three matrices, along rows,
    columns and channels: x[h, w, d] = sum_{a, b, c} rows[h, a] columns[w, b] channels[d, c]
    S[a, b, c]. Spectra belong to a class; transformations serve all of them, and are what classes
    share. theta: `data` = {spectra f[K * s, r, r, C]}; `decoder` = {rows f[t, H, r],
    columns f[t, W, r], channels f[t, C, C]}. Item i is spectrum i // t under transformation i % t.

    Args:
      image_shape: (H, W, C).
      num_classes: K.
      spectra_per_class: s.
      transformations: t.
      rank: r, the side of a spectrum, at most H; default half of H, rounded up.
      label_kind: one of `labels.KINDS`.
      start: `real`: spectra are random real images of their classes in the r principal directions
        of rows and columns, from which all transformations start, 10 % apart; `kmeans`: likewise of
        centres within each class (`starts.centres`); `noise`: all random.

    Raises:
      InputError: a number that is not positive, or a rank above the image's side.

    The data set as a low-rank tensor: Neural Spectral Decomposition (arXiv 2408.16236), which
    combines spectrum tensors with transformation matrices pairwise; how many of each, the start and
    the one level of products are ours.
    """
    height, width, channels = image_shape
    side = -(-height // 2) if rank is None else rank
    for name, value in (
        ("spectra per class", spectra_per_class),
        ("transformations", transformations),
        ("rank", side),
        ("classes", num_classes),
    ):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if side > min(height, width):
        raise InputError(f"a spectrum's rank is at most {min(height, width)} here, not {side}")
    check_known("label kind", label_kind, labels.KINDS)
    check_known("start", start, starts.STARTS)
    num_spectra = num_classes * spectra_per_class
    num_items = num_spectra * transformations

    def init(key: Array, real: Real) -> dict[str, PyTree]:
        for_images, for_rows, for_columns, for_spectra = jax.random.split(key, 4)
        if start == "noise":
            # Keys of their own: what moves transformations apart is drawn from the others.
            rows = _random_basis(jax.random.fold_in(for_rows, 1), height, side)
            columns = _random_basis(jax.random.fold_in(for_columns, 1), width, side)
            shape = (num_spectra, side, side, channels)
            spectra = jax.random.normal(for_spectra, shape, jnp.float32)
        else:
            drawn = real.sample_different(for_images, max(_SEEN, spectra_per_class))
            seen = real.gather(drawn[:, :_SEEN].reshape(-1))
            rows, columns = _principal(seen, 1, side), _principal(seen, 2, side)
            begin = drawn[:, :spectra_per_class]
            chosen = starts.centres(real, begin) if start == "kmeans" else real.gather(begin)
            chosen = chosen.reshape(num_spectra, *image_shape)
            spectra = jnp.einsum("nhwc,ha,wb->nabc", chosen, rows, columns)
        theta: dict[str, PyTree] = {
            "data": {"spectra": spectra},
            "decoder": {
                "rows": _apart(for_rows, rows, transformations),
                "columns": _apart(for_columns, columns, transformations),
                "channels": jnp.broadcast_to(
                    jnp.eye(channels, dtype=jnp.float32), (transformations, channels, channels)
                ),
            },
        }
        if label_kind != "hard":
            theta["labels"] = labels.start(num_items, num_classes)
        return theta

    def sample(theta: dict[str, PyTree], key: Array | None, indices: Array | None = None) -> Batch:
        del key  # images are what they are
        spectra, maps = theta["data"]["spectra"], theta["decoder"]
        if indices is None:
            images = jnp.einsum(
                "nabc,tha,twb,tdc->nthwd", spectra, maps["rows"], maps["columns"],
                maps["channels"], optimize="optimal",
            ).reshape(num_items, height, width, channels)  # fmt: skip
        else:
            which = indices % transformations
            picked = jax.tree.map(lambda x: x[which], maps)
            images = jnp.einsum(
                "nabc,nha,nwb,ndc->nhwd", spectra[indices // transformations], picked["rows"],
                picked["columns"], picked["channels"], optimize="optimal",
            )  # fmt: skip
        classes = labels.item_classes(num_items, num_classes, indices)
        targets = labels.targets(theta, label_kind, classes, indices, num_classes)
        return Batch(images, targets.astype(images.dtype))

    groups = ("data", "decoder", *labels.groups(label_kind))
    made = Synthetic(
        init, sample, lambda theta, key: theta, num_items, num_classes, groups, transformations
    )
    return converting(made._replace(label_kind=label_kind))


def _principal(images: Array, axis: int, number: int) -> Array:
    """The directions f[size, number] along `axis` that hold most of the images' squares."""
    flat = jnp.moveaxis(images, axis, 0).reshape(images.shape[axis], -1)
    # eigh sorts ascending.
    return jnp.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :number]


def _random_basis(key: Array, size: int, number: int) -> Array:
    """Orthonormal columns f[size, number]."""
    return jnp.linalg.qr(jax.random.normal(key, (size, number), jnp.float32))[0]


def _apart(key: Array, basis: Array, number: int) -> Array:
    """`number` copies f[number, size, r] of a basis of unit columns, moved apart at random."""
    noise = jax.random.normal(key, (number, *basis.shape), jnp.float32)
    scale = jnp.asarray(_SPREAD / basis.shape[0] ** 0.5, jnp.float32)
    return basis + scale * noise
