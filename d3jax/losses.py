"""Losses: cross entropy, divergence, ridge regression; distances of samples and of weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from d3jax.types import PyTree

BANDWIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
RELATIVE_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in units of `median_distance`


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean over the batch of -sum_k targets[k] log softmax(logits)[k], in nats: f[].

    Args:
      logits: f[B, K].
      targets: f[B, K], one-hot (hard) or any probabilities (soft).

    Examples:
      >>> print(f"{cross_entropy(jnp.zeros((2, 4)), jnp.eye(4)[:2]):.4f}")  # log 4
      1.3863
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1))


def soft_divergence(
    student: Array, teacher: Array, temperature: float = 1.0, scale: float = 1.0
) -> Array:
    """`scale` times the mean over the batch of KL(teacher || student), both softened, in nats: f[].

    Args:
      student: logits f[B, K].
      teacher: logits f[B, K].
      temperature: T; both are softmax(logits / T).
      scale: 1, as SRe2L, DWA and RDED have it for CIFAR and ImageNet; or T^2 (Hinton et al., arXiv
        1503.02531), which keeps the gradient's length whatever T is: plain SGD needs it.

    Its gradient is that of `cross_entropy` of the softened student with the softened teacher, which
    students minimize (`evaluate.students`): their targets may be mixed, or no teacher's at all.
    """
    warmth = jnp.asarray(temperature, student.dtype)
    divergence = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(student / warmth), jax.nn.log_softmax(teacher / warmth)
    )
    return jnp.asarray(scale, student.dtype) * jnp.mean(divergence)


def statistics_distance(
    own: PyTree, frozen: PyTree, variance_weight: float = 1.0, first_weight: float = 10.0
) -> Array:
    """How far a batch's statistics are from those of the data that a network was trained on: f[].

    Args:
      own: (mean f[C], biased variance f[C]) of each batch norm's input, in the network's order
        (`Outputs.statistics`).
      frozen: the same of the training data.
      variance_weight: w, the factor on variances; 1 in SRe2L, 11 (ImageNet: 2) in DWA.
      first_weight: the factor on the first batch norm, 10 in the authors' code and 1 in the paper.

    Returns:
      The sum over batch norms of |mean - frozen mean| + w |variance - frozen variance|, with
      Euclidean norms over channels, which are neither squared nor averaged. Where one of them is
      zero, so is its gradient.

    SRe2L, arXiv 2306.13092, equation 7; w of DWA, arXiv 2409.17612.
    """

    def distance(own: Array, frozen: Array) -> Array:
        return optax.safe_norm(own - frozen, 0.0)

    total = jnp.zeros((), own[0][0].dtype)
    for layer, (batch, data) in enumerate(zip(own, frozen, strict=True)):
        means, variances = (distance(*pair) for pair in zip(batch, data, strict=True))
        weighted = means + jnp.asarray(variance_weight, means.dtype) * variances
        total = total + jnp.asarray(first_weight if layer == 0 else 1.0, means.dtype) * weighted
    return total


def kernel_ridge_regression(
    features: Array, targets: Array, others: Array, regularization: float = 1e-6
) -> Array:
    """What ridge regression on some images' features, and their targets, predicts for others.

    Args:
      features: f[n, F], of the images that are learned from.
      targets: f[n, K], theirs.
      others: f[m, F], features of those that are predicted.
      regularization: lambda, in units of the kernel matrix's mean eigenvalue.

    Returns:
      f[m, K]: K_ts (K_ss + lambda tr(K_ss) / n I)^-1 targets, where K_ss = features features^T and
      K_ts = others features^T.

    The prediction of KIP (Nguyen et al., ICLR 2021) and FRePo (Zhou et al., NeurIPS 2022, arXiv
    2206.00719). Deviation: lambda has a least value (`solve_ridge`).
    """
    weights = solve_ridge(features @ features.T, targets, regularization)
    return others @ (features.T @ weights)


def solve_ridge(
    matrix: Array, right: Array, regularization: float = 1e-6, number: Array | None = None
) -> Array:
    """(matrix + lambda tr(matrix) / n I)^-1 right: f[n, K].

    Args:
      matrix: f[n, n], symmetric, with no negative eigenvalues.
      right: f[n, K].
      regularization: lambda, in units of the mean eigenvalue.
      number: i32[], n, where rows and columns past some are padding: of zeros, in `right` too. Then
        so are the solution's, and the others are what they are without padding.

    lambda is at least 4 n times the precision of the matrix's type, since below that a matrix of
    images that are nearly alike has no Cholesky factor: in float32 1e-6 is met up to two images,
    and at 100 it is 5e-5. A matrix of zeros gives NaN.

    On a CPU, a program with two of these under `vmap` that do not depend on each other may wait for
    ever: batched factorizations of jaxlib before 0.11 share one pool of threads, and wait in it for
    their parts. `jax.lax.map` in place of `vmap`, or one batched call, does not.
    """
    ridge = ridge_of(matrix, regularization, number) * jnp.eye(len(matrix), dtype=matrix.dtype)
    return jax.scipy.linalg.solve(matrix + ridge, right, assume_a="pos")


def ridge_of(matrix: Array, regularization: float = 1e-6, number: Array | None = None) -> Array:
    """What `solve_ridge` adds to a matrix's diagonal: f[]."""
    dtype = matrix.dtype
    least = 4 * float(jnp.finfo(dtype).eps)  # for each row
    if number is None:
        share = jnp.asarray(max(regularization / len(matrix), least), dtype)
    else:
        share = jnp.maximum(jnp.asarray(regularization, dtype) / number.astype(dtype), least)
    return share * jnp.trace(matrix)


def ridge_predictor(
    features: Array, others: Array, regularization: float = 1e-6, number: Array | None = None
) -> Array:
    """The matrix P f[m, n] for which `kernel_ridge_regression` predicts P @ targets.

    The arguments are those of `kernel_ridge_regression`; `number` is that of `solve_ridge`, for
    features that are padded.
    """
    return solve_ridge(features @ features.T, features @ others.T, regularization, number).T


def solved_labels(
    features: Array, others: Array, targets: Array, regularization: float = 1e-3
) -> Array:
    """The targets with which kernel ridge regression on some images predicts others best: f[n, K].

    Args:
      features: f[n, F], of the images that get labels.
      others: f[m, F], of those that are predicted; m >= n.
      targets: f[m, K], theirs.
      regularization: of both solutions, as `solve_ridge` takes it. In float32 less than 1e-3 gives
        images that are nearly alike labels that have little to do with each other.

    Returns:
      (P^T P + mu I)^-1 P^T targets, P of `ridge_predictor` and mu of `ridge_of`: the minimum y of
      |P y - targets|^2 + mu |y|^2. Where rows of `targets` sum to zero so do its own.

    The label solve of KIP (Nguyen et al., ICLR 2021, section 3), whose two ridges are put in
    otherwise, so that here they have the data's own scale; MGDD's least squares (Liu and Wang,
    NeurIPS 2023) in its simplest reading.
    """
    return solve_ridge(*label_equations(features, others, targets, regularization), regularization)


def label_equations(
    features: Array, others: Array, targets: Array, regularization: float = 1e-3
) -> tuple[Array, Array]:
    """The normal equations of `solved_labels`, P^T P f[n, n] and P^T targets f[n, K].

    The arguments are its own. Their means over several networks give labels for all of them.
    """
    predictor = ridge_predictor(features, others, regularization)
    return predictor.T @ predictor, predictor.T @ targets


def solved_error(
    features: Array,
    others: Array,
    targets: Array,
    regularization: float = 1e-3,
    number: Array | None = None,
) -> tuple[Array, Array, Array]:
    """How well some images' features can predict others at all: with `solved_labels` of their own.

    Args:
      features, others, targets, regularization: as for `solved_labels`.
      number: i32[], so many of the features count; the others are rows of zeros (`solve_ridge`).

    Returns:
      The least over y of (|P y - targets|^2 + mu |y|^2) / (2 m), f[]; P y, f[m, K]; and that y,
      f[n, K]. The labels have no derivative: where a loss is least in them, by the envelope theorem
      its gradient is that of the loss with them fixed, and no second solution is differentiated.

    Variable projection (Golub and Pereyra, 1973); after MGDD (Liu and Wang, NeurIPS 2023).
    """
    predictor = ridge_predictor(features, others, regularization, number)
    gram = predictor.T @ predictor
    found = solve_ridge(gram, predictor.T @ targets, regularization, number)
    found = jax.lax.stop_gradient(found)
    predicted = predictor @ found
    ridge = ridge_of(gram, regularization, number)
    squares = jnp.sum(jnp.square(predicted - targets)) + ridge * jnp.sum(jnp.square(found))
    return squares / jnp.asarray(2 * len(targets), squares.dtype), predicted, found


def margin_loss(targets: Array, margin: float) -> Array:
    """Minus how far the largest of each row is above the second, up to `margin`; the mean: f[].

    It has no gradient in rows that have the margin. targets: f[n, K], K >= 2.

    FRePo's label loss (arXiv 2206.00719, the authors' code), with a margin of 1 / K.
    """
    highest, _ = jax.lax.top_k(targets, 2)
    gaps = highest[:, 0] - highest[:, 1]
    return -jnp.mean(jnp.minimum(gaps, jnp.asarray(margin, targets.dtype)))


def squared_error(predicted: Array, targets: Array) -> Array:
    """Half the squared distance to the targets less their mean over classes; the mean: f[].

    Args:
      predicted: f[B, K].
      targets: f[B, K]: one-hot ones are thereby centred, 1 - 1 / K and -1 / K, as KIP and FRePo
        have them; rows that sum to zero are taken as they are.
    """
    centred = targets - jnp.mean(targets, -1, keepdims=True)
    half = jnp.asarray(0.5, predicted.dtype)
    return half * jnp.mean(jnp.sum(jnp.square(predicted - centred), -1))


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


def median_distance(x: Array, y: Array) -> Array:
    """The median distance between two of all the draws x f[n, F] and y f[m, F]: f[].

    The unit of an RBF kernel's bandwidth where features have none of their own (Gretton et al.,
    JMLR 2012, section 8): the root of the median squared one. It carries no derivative. Where at
    least half of all pairs coincide it is 1, not 0.
    """
    pooled = jax.lax.stop_gradient(jnp.concatenate([x, y]))
    pairs = np.triu_indices(pooled.shape[0], 1)
    median = jnp.sqrt(jnp.median(_squared_distances(pooled, pooled)[pairs]))
    return jnp.where(median > 0, median, jnp.ones_like(median))


def mmd2(x: Array, y: Array, bandwidths: Sequence[float] = BANDWIDTHS, *, strata: int = 1) -> Array:
    """The unbiased estimate of the squared maximum mean discrepancy of two samples: f[].

    Args:
      x: f[n, F], n >= 2 independent draws of the one distribution.
      y: f[m, F], m >= 2 of the other.
      bandwidths: s of the kernel sum_s exp(-d^2 / (2 s^2)), in the units of x.
      strata: S parts, equally probable, that the first distribution is cut into, n >= 2 S: x[j] is
        drawn from part j mod S, independently of the others. Of a mixture this has a lower variance
        than independent draws, since each part has its share of every sample.

    Raises:
      ValueError: fewer than two draws, or than two of each part, or different F.

    Gretton et al., JMLR 2012, equation 3 (MMD_u^2); the kernel of D3 (arXiv 2403.00999). It is
    negative about half the time when both distributions are equal.

    With c_a draws of part a, a pair of different draws of parts a and b has the weight
    1 / (S^2 c_a c_b), or 1 / (S^2 c_a (c_a - 1)) where a = b: two draws of the mixture are of one
    part with probability 1 / S, which among the pairs of dealt draws is rarer.

    Examples:
      Two points at a distance of sqrt 2 have 2 - 2 / e.

      >>> print(f"{mmd2(jnp.zeros((4, 2)), jnp.ones((6, 2)), bandwidths=(1.0,)):.4f}")
      1.2642
    """
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"mmd2 needs f[n, F] and f[m, F], n, m >= 2; got {x.shape}, {y.shape}")
    if not 1 <= strata <= n // 2:
        raise ValueError(f"mmd2 needs two draws of each of {strata} strata, not {n} of all")
    part = np.arange(n) % strata
    count = np.bincount(part)[part]

    def within(z: Array, weights: np.ndarray | None = None) -> Array:
        # The diagonal is masked rather than subtracted: its kernel is constant, and cancelling two
        # large sums would cost digits.
        size = z.shape[0]
        off_diagonal = ~jnp.eye(size, dtype=bool)
        kernel = jnp.where(off_diagonal, _kernel(z, z, bandwidths), jnp.zeros((), z.dtype))
        if weights is not None:
            kernel = kernel * jnp.asarray(weights, z.dtype)
        return jnp.sum(kernel) / jnp.asarray(size * (size - 1), z.dtype)

    # Beside the weights of independent draws, 1 / (n (n - 1)) and 1 / n.
    single = pairs = None
    if strata > 1:
        others = count - (part[:, None] == part)
        pairs = n * (n - 1) / (strata**2 * count[:, None] * others)
        single = n / (strata * count)
    between = _kernel(x, y, bandwidths)
    if single is not None:
        between = between * jnp.asarray(single, x.dtype)[:, None]
    return within(x, pairs) + within(y) - jnp.asarray(2, x.dtype) * jnp.mean(between)


def trajectory_distance(student: PyTree, target: PyTree, start: PyTree) -> Array:
    """|student - target|^2 / |start - target|^2 over whole parameter pytrees: f[].

    1 is no progress from start towards target, 0 is target reached. Where start equals target it is
    infinite or NaN, which stops a run.

    Cazenavette et al., CVPR 2022, equation 2.

    Examples:
      Half of the way:

      >>> print(trajectory_distance(jnp.array([0.5]), jnp.array([1.0]), jnp.array([0.0])))
      0.25
    """
    left = optax.tree.norm(optax.tree.sub(student, target), squared=True)
    return left / optax.tree.norm(optax.tree.sub(start, target), squared=True)
