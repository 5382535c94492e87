"""Distilled data of multi-index tasks, after Kinoshita, Nishikawa and Toyoizumi (arXiv 2603.14830).

    python -m experiments.multi_index [FIGURE ...] [--seeds 10] [--small]

Labels depend on an input of d dimensions through r directions U alone, y = link(U x). A two-layer
network of L units learns them by one step on its first layer and ridge regression on its second.
Distilled data of few points repeats that first step, since matching gradients of one step moves
every point by one power iteration of the link's mean Hessian, which lies in the span of U; and a
second layer of L units needs no more than some L inputs that a seed draws, with solved labels.

Their page says that memory of r^2 d + L is enough; their figures could not be read, so that these
are ours: `share`, of points in the span of U by outer steps (i); `size`, how many points a first
layer needs, beside as many real ones, and with another link on the same U (ii, iii, v, vi); and
`width`, how many inputs the second layer needs (iv). --small is a rehearsal that writes nothing.

To reach: points grow as r^2 (slope 2 +- 0.3 of their logarithms) and not with d where real data
grows as 20 d^2 (slope of memory in d 1 +- 0.15). Points are counted where they leave little more
error than all real ones do: a first layer of 256 units has an error of its own, which grows with r,
so that one error for every r is out of reach. How much more is a choice, so two are shown. ± is a
jackknife's standard error over seeds.

Found: memory grows as d (1.0 +- 0.2), as it should. Points grow more slowly than r^2, about as r (1.0
+- 0.2 at the looser of the two): missed. r^2 is an upper bound, and for r = 4 and 5 the error levels
off at that of the units, where all real points end too. Real points in the distilled ones' place
leave most of the error. One step of matching puts 80 to 90 % of the points' length in U, as do 50
small ones; descending on performance takes more than 100. Solved labels need a quarter to a half of
the inputs that true labels do.

table: multi_index_share (python -m experiments.multi_index share)

| outer step | gaussian | gradient | performance |
| --- | --- | --- | --- |
| 0 | 0.039 | 0.039 | 0.039 |
| 1 | 0.041 | 0.050 | 0.041 |
| 2 | 0.042 | 0.081 | 0.042 |
| 5 | 0.043 | 0.230 | 0.044 |
| 10 | 0.047 | 0.545 | 0.052 |
| 20 | 0.064 | 0.730 | 0.075 |
| 50 | 0.135 | 0.841 | 0.142 |
| 100 | 0.237 | 0.844 | 0.219 |

d = 50, r = 2, 32 points. 10 seeds. 1 core of AMD EPYC; 2026-11-27; acdda09.

end of table

table: multi_index_size (python -m experiments.multi_index size)

| d | r | M | M / r^2 | distilled | real points | transfer | all real | no step | the other link by itself | share in U |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 50 | 2 | 2 | 0.50 | 0.346 | 0.996 | 0.591 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 2 | 4 | 1.00 | 0.188 | 0.992 | 0.398 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 2 | 8 | 2.00 | 0.080 | 0.984 | 0.187 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 2 | 16 | 4.00 | 0.065 | 0.963 | 0.167 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 2 | 32 | 8.00 | 0.045 | 0.885 | 0.111 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 2 | 64 | 16.00 | 0.036 | 0.816 | 0.077 | 0.023 | 0.880 | 0.894 | 0.859 |
| 50 | 3 | 4 | 0.44 | 0.259 | 0.991 | 0.470 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 3 | 9 | 1.00 | 0.142 | 0.974 | 0.317 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 3 | 18 | 2.00 | 0.123 | 0.953 | 0.295 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 3 | 36 | 4.00 | 0.093 | 0.906 | 0.231 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 3 | 72 | 8.00 | 0.084 | 0.831 | 0.199 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 3 | 144 | 16.00 | 0.083 | 0.741 | 0.198 | 0.062 | 0.856 | 0.872 | 0.878 |
| 50 | 4 | 8 | 0.50 | 0.233 | 0.979 | 0.457 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 4 | 16 | 1.00 | 0.178 | 0.947 | 0.388 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 4 | 32 | 2.00 | 0.155 | 0.922 | 0.355 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 4 | 64 | 4.00 | 0.144 | 0.857 | 0.325 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 4 | 128 | 8.00 | 0.140 | 0.806 | 0.322 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 4 | 256 | 16.00 | 0.141 | 0.718 | 0.321 | 0.109 | 0.858 | 0.848 | 0.899 |
| 50 | 5 | 12 | 0.48 | 0.245 | 0.963 | 0.435 | 0.130 | 0.840 | 0.834 | 0.907 |
| 50 | 5 | 25 | 1.00 | 0.187 | 0.942 | 0.385 | 0.130 | 0.840 | 0.834 | 0.907 |
| 50 | 5 | 50 | 2.00 | 0.166 | 0.910 | 0.357 | 0.130 | 0.840 | 0.834 | 0.907 |
| 50 | 5 | 100 | 4.00 | 0.157 | 0.856 | 0.352 | 0.130 | 0.840 | 0.834 | 0.907 |
| 50 | 5 | 200 | 8.00 | 0.157 | 0.763 | 0.350 | 0.130 | 0.840 | 0.834 | 0.907 |
| 50 | 5 | 400 | 16.00 | 0.156 | 0.679 | 0.348 | 0.130 | 0.840 | 0.834 | 0.907 |
| 20 | 2 | 2 | 0.50 | 0.322 | 0.995 | 0.546 | 0.023 | 0.444 | 0.615 | 0.815 |
| 20 | 2 | 4 | 1.00 | 0.145 | 0.920 | 0.292 | 0.023 | 0.444 | 0.615 | 0.815 |
| 20 | 2 | 8 | 2.00 | 0.088 | 0.869 | 0.197 | 0.023 | 0.444 | 0.615 | 0.815 |
| 20 | 2 | 16 | 4.00 | 0.047 | 0.796 | 0.118 | 0.023 | 0.444 | 0.615 | 0.815 |
| 20 | 2 | 32 | 8.00 | 0.043 | 0.638 | 0.094 | 0.023 | 0.444 | 0.615 | 0.815 |
| 20 | 2 | 64 | 16.00 | 0.035 | 0.468 | 0.075 | 0.023 | 0.444 | 0.615 | 0.815 |
| 30 | 2 | 2 | 0.50 | 0.345 | 0.997 | 0.588 | 0.026 | 0.692 | 0.746 | 0.830 |
| 30 | 2 | 4 | 1.00 | 0.163 | 0.979 | 0.365 | 0.026 | 0.692 | 0.746 | 0.830 |
| 30 | 2 | 8 | 2.00 | 0.110 | 0.960 | 0.263 | 0.026 | 0.692 | 0.746 | 0.830 |
| 30 | 2 | 16 | 4.00 | 0.067 | 0.911 | 0.143 | 0.026 | 0.692 | 0.746 | 0.830 |
| 30 | 2 | 32 | 8.00 | 0.044 | 0.759 | 0.090 | 0.026 | 0.692 | 0.746 | 0.830 |
| 30 | 2 | 64 | 16.00 | 0.037 | 0.657 | 0.075 | 0.026 | 0.692 | 0.746 | 0.830 |
| 40 | 2 | 2 | 0.50 | 0.347 | 0.998 | 0.609 | 0.030 | 0.807 | 0.844 | 0.815 |
| 40 | 2 | 4 | 1.00 | 0.184 | 0.996 | 0.416 | 0.030 | 0.807 | 0.844 | 0.815 |
| 40 | 2 | 8 | 2.00 | 0.081 | 0.978 | 0.195 | 0.030 | 0.807 | 0.844 | 0.815 |
| 40 | 2 | 16 | 4.00 | 0.063 | 0.945 | 0.139 | 0.030 | 0.807 | 0.844 | 0.815 |
| 40 | 2 | 32 | 8.00 | 0.042 | 0.828 | 0.088 | 0.030 | 0.807 | 0.844 | 0.815 |
| 40 | 2 | 64 | 16.00 | 0.034 | 0.771 | 0.066 | 0.030 | 0.807 | 0.844 | 0.815 |
| 70 | 2 | 2 | 0.50 | 0.397 | 0.997 | 0.587 | 0.024 | 0.929 | 0.946 | 0.852 |
| 70 | 2 | 4 | 1.00 | 0.175 | 0.993 | 0.348 | 0.024 | 0.929 | 0.946 | 0.852 |
| 70 | 2 | 8 | 2.00 | 0.078 | 0.986 | 0.205 | 0.024 | 0.929 | 0.946 | 0.852 |
| 70 | 2 | 16 | 4.00 | 0.057 | 0.973 | 0.154 | 0.024 | 0.929 | 0.946 | 0.852 |
| 70 | 2 | 32 | 8.00 | 0.038 | 0.938 | 0.093 | 0.024 | 0.929 | 0.946 | 0.852 |
| 70 | 2 | 64 | 16.00 | 0.029 | 0.904 | 0.068 | 0.024 | 0.929 | 0.946 | 0.852 |

Points for an error of 0.05 above that of all real ones: 11.0 (d 50, r 2), 22.6 (d 50, r 3), 28.0 (d 50, r 4), 31.7 (d 50, r 5), 9.7 (d 20, r 2), 13.4 (d 30, r 2), 8.5 (d 40, r 2), 9.1 (d 70, r 2). Slope of points in r: 1.15 ± 0.58. Slope of memory in d: 0.90 ± 0.27. Points for an error of 0.1 above that of all real ones: 5.7 (d 50, r 2), 7.5 (d 50, r 3), 10.5 (d 50, r 4), 14.3 (d 50, r 5), 5.0 (d 20, r 2), 6.3 (d 30, r 2), 5.4 (d 40, r 2), 5.4 (d 70, r 2). Slope of points in r: 1.01 ± 0.17. Slope of memory in d: 1.02 ± 0.16. 10 seeds. 1 core of AMD EPYC; 2026-11-27; acdda09.

end of table

table: multi_index_width (python -m experiments.multi_index width)

| L | inputs | true labels | solved labels | all real data |
| --- | --- | --- | --- | --- |
| 64 | 8 | 0.824 | 0.305 | 0.122 |
| 64 | 16 | 0.765 | 0.218 | 0.122 |
| 64 | 32 | 0.441 | 0.149 | 0.122 |
| 64 | 64 | 0.382 | 0.113 | 0.122 |
| 64 | 128 | 0.194 | 0.112 | 0.122 |
| 128 | 8 | 0.748 | 0.302 | 0.068 |
| 128 | 16 | 0.556 | 0.198 | 0.068 |
| 128 | 32 | 0.343 | 0.126 | 0.068 |
| 128 | 64 | 0.248 | 0.081 | 0.068 |
| 128 | 128 | 0.138 | 0.060 | 0.068 |
| 256 | 8 | 0.722 | 0.288 | 0.047 |
| 256 | 16 | 0.450 | 0.177 | 0.047 |
| 256 | 32 | 0.276 | 0.109 | 0.047 |
| 256 | 64 | 0.153 | 0.068 | 0.047 |
| 256 | 128 | 0.115 | 0.050 | 0.047 |
| 512 | 8 | 0.705 | 0.276 | 0.030 |
| 512 | 16 | 0.417 | 0.177 | 0.030 |
| 512 | 32 | 0.234 | 0.099 | 0.030 |
| 512 | 64 | 0.139 | 0.057 | 0.030 |
| 512 | 128 | 0.092 | 0.037 | 0.030 |

d = 50, r = 2; first layer by 32 distilled points. 10 seeds. 1 core of AMD EPYC; 2026-11-27; acdda09.

end of table
"""

import argparse
import datetime
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from d3jax import losses, unroll
from d3jax.host.files import write_json
from d3jax.run.tables import markdown_table
from experiments.frontier import PICTURES
from experiments.provenance import COMMIT, hardware
from experiments.rows import RESULTS

Link = Callable[[Array], Array]
REAL_PER_SQUARE = 20  # real points: so many times d^2
UNITS = 256
ABOVE = (0.05, 0.1)  # errors by which points are counted, above what all real points leave: a
# network of these units has an error of its own, which grows with r


def quadratic(z: Array) -> Array:
    """Labels f[n] of inputs f[n, r], r >= 2: of variance 1, with a Hessian of rank r."""
    directions = z.shape[1]
    squares = jnp.sum(jnp.square(z) - 1, 1) / np.sqrt(2 * directions)
    mixed = 0.5 * z[:, 0] * z[:, 1] + 0.5 * cubic(z)
    return ((squares + mixed) / np.sqrt(1.5)).astype(z.dtype)


def cubic(z: Array) -> Array:
    """The third Hermite polynomial of the first direction: no Hessian, which one step cannot see."""
    first = z[:, 0]
    return ((first**3 - 3 * first) / np.sqrt(6)).astype(z.dtype)


def waves(z: Array) -> Array:
    """Another link on the same directions, to transfer to: the mean of cosines."""
    return jnp.mean(jnp.cos(z * 1.5), 1)


class FirstLayer(NamedTuple):
    """L units with directions on the unit sphere, no bias, and signs as outgoing weights."""

    w: Array  # f[L, d]
    a: Array  # f[L]


def directions(key: Array, d: int, r: int) -> Array:
    """U f[r, d], orthonormal rows."""
    return jnp.linalg.qr(jax.random.normal(key, (d, r)))[0].T


def first_layer(key: Array, d: int, units: int) -> FirstLayer:
    """Units whose directions are uniform on the sphere, and whose signs are 1 or -1."""
    for_w, for_a = jax.random.split(key)
    w = jax.random.normal(for_w, (units, d))
    return FirstLayer(
        w / jnp.linalg.norm(w, axis=1, keepdims=True),
        jax.random.rademacher(for_a, (units,), w.dtype),
    )


def detrended(x: Array, y: Array) -> Array:
    """Labels f[n] less their mean and their best linear fit, without which a step learns these."""
    inputs = jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
    return y - inputs @ jnp.linalg.lstsq(inputs, y)[0]


def first_step(layer: FirstLayer, x: Array, y: Array) -> Array:
    """Rows f[L, d] that one step on points f[n, d] with labels f[n] leaves of the first layer.

    Row j is a_j mean(y x 1(w_j.x > 0)): a step of rate 1 from w on the squared error of a network
    that says 0 (half of the units cancel the others), with weight decay 1, so that w itself is
    gone (Damian, Lee and Soltanolkotabi, COLT 2022).
    """

    def loss(w: Array, batch: tuple[Array, Array]) -> Array:
        points, labels = batch
        said = jax.nn.relu(points @ w.T) @ layer.a
        return 0.5 * jnp.sum(jnp.square(w)) - jnp.mean(labels * said)

    batches = jax.tree.map(lambda leaf: leaf[None], (x, y))
    return unroll(loss, layer.w, batches, jnp.ones(1, x.dtype))


def match_step(layer: FirstLayer, x: Array, y: Array, real_rows: Array) -> Array:
    """Where points f[M, d] go by one step towards rows f[L, d] of real data, f[M, d].

    The gradient of the inner product of their own rows with these; as for the network, weight decay
    leaves nothing of where they were. relu's kink has no derivative, so that a point is moved by
    y sum_j a_j rows_j 1(w_j.x > 0), which for many units is one power iteration of the Hessian.
    """

    def agreement(x: Array) -> Array:
        return len(x) * jnp.vdot(first_step(layer, x, y), real_rows)

    return jax.grad(agreement)(x)


def subspace_share(points: Array, u: Array) -> Array:
    """The share of points' squared length that lies in the rows of U: f[]."""
    return jnp.sum(jnp.square(points @ u.T)) / jnp.sum(jnp.square(points))


def features(rows: Array, biases: Array, x: Array) -> Array:
    """Second layer's inputs f[n, L + 1]: relu of rows of rms length 1, and a constant."""
    length = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(rows), 1)))
    hidden = jax.nn.relu(x @ (rows / length).T + biases)
    return jnp.concatenate([hidden, jnp.ones_like(hidden[:, :1])], 1)


def second_layer(features: Array, y: Array, ridge: float = 1e-3) -> Array:
    """Weights f[p] by ridge regression on the mean Gram matrix."""
    gram = features.T @ features / len(features) + ridge * jnp.eye(features.shape[1])
    return jax.scipy.linalg.solve(gram, features.T @ y / len(features), assume_a="pos")


class World(NamedTuple):
    """A task, real data of it and of another link on the same U, and a network to start from."""

    u: Array
    x: Array
    y: Array
    test: tuple[Array, Array]
    other: tuple[Array, Array]  # labels of the other link, of x and of the test
    layer: FirstLayer
    biases: Array
    rows: Array  # after the step on real data


def world(
    key: Array, d: int, r: int, units: int, link: Link = quadratic, tests: int = 4000
) -> World:
    """Draws all of it."""
    keys = jax.random.split(key, 5)
    u = directions(keys[0], d, r)
    x = jax.random.normal(keys[1], (REAL_PER_SQUARE * d * d, d))
    test = jax.random.normal(keys[2], (tests, d))
    layer = first_layer(keys[3], d, units)
    y = link(x @ u.T)
    rows = first_step(layer, x, detrended(x, y))
    other = (waves(x @ u.T), waves(test @ u.T))
    biases = jax.random.normal(keys[4], (units,))
    return World(u, x, y, (test, link(test @ u.T)), other, layer, biases, rows)


def error(made: World, rows: Array, other: bool = False) -> Array:
    """The test's squared error, by the variance, of a second layer on these rows and real data.

    other: for the other link.
    """
    (x, target), y = made.test, made.y
    if other:
        y, target = made.other
    seen = [jnp.concatenate([features(rows, made.biases, z), z], 1) for z in (made.x, x)]
    said = seen[1] @ second_layer(seen[0], y)
    return jnp.mean(jnp.square(said - target)) / jnp.var(target)


def distilled(made: World, key: Array, most: int) -> Array:
    """`most` unit points f[M, d] that noise became by one step of matching; their labels are 1."""
    noise = jax.random.normal(key, (most, made.x.shape[1]))
    signs = jnp.where(jnp.arange(most) % 2 == 0, 1.0, -1.0)
    moved = match_step(made.layer, noise, signs, made.rows)
    return moved / jnp.linalg.norm(moved, axis=1, keepdims=True)


def of_sizes(key: Array, sizes: Array, d: int, r: int, units: int, most: int) -> dict[str, Array]:
    """Errors by how many points make the first layer, for each of `sizes` i32[S], at most `most`.

    Returns:
      distilled, real (as many real points with their labels) and transfer (the other link, on
      distilled points' rows) f[S]; whole (all real points), none (no step), scratch (the other
      link's own step on as many real points as `most`) f[]; share f[].
    """
    for_world, for_points = jax.random.split(key)
    made = world(for_world, d, r, units)
    points = distilled(made, for_points, most)
    detrended_y = detrended(made.x, made.y)

    def rows(x: Array, y: Array, size: Array) -> Array:
        kept = (jnp.arange(most) < size).astype(x.dtype)  # the others weigh nothing
        return first_step(made.layer, x, y * kept)

    def each(size: Array) -> dict[str, Array]:
        own = rows(points, jnp.ones(most), size)
        return {
            "distilled": error(made, own),
            "real": error(made, rows(made.x[:most], detrended_y[:most], size)),
            "transfer": error(made, own, other=True),
        }

    other = detrended(made.x, made.other[0])[:most]
    return {
        **jax.lax.map(each, sizes),
        "whole": error(made, made.rows),
        "none": error(made, made.layer.w),
        "scratch": error(made, first_step(made.layer, made.x[:most], other), other=True),
        "share": subspace_share(points, made.u),
    }


def of_inputs(key: Array, sizes: Sequence[int], d: int, r: int, units: int) -> dict[str, Array]:
    """Errors by how many random inputs the second layer is learned from, after 8 r^2 points.

    Returns:
      true and solved, by their labels, f[S]; whole, by ridge regression on all real data, f[].
    """
    for_world, for_points, for_inputs = jax.random.split(key, 3)
    made = world(for_world, d, r, units)
    points = distilled(made, for_points, 8 * r * r)
    rows = first_step(made.layer, points, jnp.ones(len(points)))
    see = functools.partial(features, rows, made.biases)
    inputs = jax.random.normal(for_inputs, (max(sizes), d))
    target, of_test = made.test[1], see(made.test[0])
    real, variance = see(made.x), jnp.var(target)
    found: dict[str, list[Array]] = {"true": [], "solved": []}
    for size in sizes:
        own = see(inputs[:size])
        labels = {
            "true": quadratic(inputs[:size] @ made.u.T)[:, None],
            "solved": losses.solved_labels(own, real, made.y[:, None], 1e-6),
        }
        for name, given in labels.items():
            said = losses.kernel_ridge_regression(own, given, of_test)[:, 0]
            found[name].append(jnp.mean(jnp.square(said - target)) / variance)
    whole = of_test @ second_layer(real, made.y)
    return {
        **{name: jnp.stack(values) for name, values in found.items()},
        "whole": jnp.mean(jnp.square(whole - target)) / variance,
    }


def of_steps(
    key: Array, d: int, r: int, units: int, steps: int, rate: float = 0.1
) -> dict[str, Array]:
    """The share of 8 r^2 points in U after each of `steps` outer steps: f[steps + 1] each.

    By matching gradients (`gradient`), by the error of the network after one step on the points
    (`performance`), and by the same of Gaussians' draws, whose means' share is shown (`gaussian`).
    """
    for_world, for_points, for_draws = jax.random.split(key, 3)
    made = world(for_world, d, r, units)
    number = 8 * r * r
    start = jax.random.normal(for_points, (number, d)) / np.sqrt(d)
    signs = jnp.where(jnp.arange(number) % 2 == 0, 1.0, -1.0)
    x, y = made.x[: 10 * d], detrended(made.x, made.y)[: 10 * d]
    wide = made.rows / jnp.linalg.norm(made.rows)

    def performance(points: Array) -> Array:
        """Of real labels with what the stepped network says, which no scale of it changes."""
        rows = first_step(made.layer, points, signs)
        rows = rows / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(rows), 1)))
        said = jax.nn.relu(x @ rows.T) @ made.layer.a / np.sqrt(units)
        said = said - jnp.mean(said)
        return -jnp.mean(said * y) / jnp.sqrt(jnp.mean(jnp.square(said)))

    def matching(points: Array) -> Array:
        rows = first_step(made.layer, points, signs)
        return -jnp.vdot(rows, wide) / jnp.linalg.norm(rows)

    def run(loss: Callable[[Array], Array], noisy: bool) -> Array:
        def step(points: Array, key: Array) -> tuple[Array, Array]:
            noise = jax.random.normal(key, points.shape) / np.sqrt(d)
            gradient = jax.grad(lambda p: loss(p + 0.5 * noise if noisy else p))(points)
            unit = gradient / jnp.linalg.norm(gradient)
            moved = points + -rate * jnp.linalg.norm(start) * unit
            return moved, subspace_share(moved, made.u)

        shares = jax.lax.scan(step, start, jax.random.split(for_draws, steps))[1]
        return jnp.concatenate([subspace_share(start, made.u)[None], shares])

    return {
        "gradient": run(matching, noisy=False),
        "performance": run(performance, noisy=False),
        "gaussian": run(performance, noisy=True),
    }


def over_seeds(function: Callable[[Array], dict[str, Array]], seeds: int) -> dict[str, np.ndarray]:
    """What the function says of every seed, f[seeds, ...]; all of them are one program.

    One after another: see `losses.solve_ridge` on several solutions under vmap.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    found = jax.jit(lambda keys: jax.lax.map(function, keys))(keys)
    return {name: np.asarray(value) for name, value in found.items()}


def needed(sizes: Sequence[int], errors: np.ndarray, wanted: float) -> float:
    """How many points have that error, between sizes by straight lines of logarithms; else NaN."""
    below = np.flatnonzero(errors <= wanted)
    if not len(below) or below[0] == 0:
        return float("nan")
    one = below[0]
    x, y = np.log(sizes[one - 1 : one + 1]), np.log(errors[one - 1 : one + 1])
    return float(np.exp(np.interp(np.log(wanted), y[::-1], x[::-1])))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the logarithms, by least squares over what is a number; NaN of fewer than three."""
    known = np.isfinite(y)
    if known.sum() < 3:
        return float("nan")
    return float(np.polyfit(np.log(np.asarray(x)[known]), np.log(np.asarray(y)[known]), 1)[0])


def jackknife(statistic: Callable[[np.ndarray], float], seeds: int) -> tuple[float, float]:
    """A statistic of the seeds with these numbers, and its standard error by leaving out each."""
    numbers = np.arange(seeds)
    without = [statistic(np.delete(numbers, seed)) for seed in numbers]
    return statistic(numbers), float(np.sqrt((seeds - 1) * np.var(without)))


class Result(NamedTuple):
    """A table, and which of its columns a picture shows."""

    header: list[str]
    cells: list[list[str]]
    note: str
    x: str
    lines: tuple[str, ...]
    groups: tuple[str, ...] = ()  # a line for each value that these columns have


def picture(result: Result) -> Figure:
    """Lines over x; x and errors on logarithmic axes."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    at = result.header.index
    groups = dict.fromkeys(tuple(row[at(name)] for name in result.groups) for row in result.cells)
    for group in groups:
        own = [row for row in result.cells if tuple(row[at(n)] for n in result.groups) == group]
        named = [f"{name} = {value}" for name, value in zip(result.groups, group)]
        for line in result.lines:
            x, y = ([float(row[at(name)]) for row in own] for name in (result.x, line))
            axes.plot(x, y, marker="o", label=", ".join([*named, line]))
    by_steps = result.x == "outer step"
    axes.set(xlabel=result.x, ylabel="share in U" if by_steps else "test error / variance")
    axes.set(xscale="linear" if by_steps else "log", yscale="linear" if by_steps else "log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


def share(seeds: int, small: bool) -> Result:
    """(i)"""
    d, r, steps = (10, 2, 10) if small else (50, 2, 100)
    found = over_seeds(lambda key: of_steps(key, d, r, UNITS, steps), seeds)
    shown = sorted({0, 1, 2, 5, 10, 20, 50, steps} & set(range(steps + 1)))
    cells = [[str(n), *(f"{found[name][:, n].mean():.3f}" for name in found)] for n in shown]
    note = f"d = {d}, r = {r}, {8 * r * r} points."
    return Result(["outer step", *found], cells, note, "outer step", tuple(found))


def size(seeds: int, small: bool) -> Result:
    """(ii), (iii), (v), (vi)"""
    cases = [(10, 2), (16, 2)] if small else [(50, r) for r in (2, 3, 4, 5)]
    cases += [] if small else [(d, 2) for d in (20, 30, 40, 70)]
    cells, made = [], {}
    for d, r in cases:
        sizes = [max(2, round(share * r * r)) for share in (0.5, 1, 2, 4, 8, 16)]
        run = functools.partial(
            of_sizes, sizes=jnp.asarray(sizes), d=d, r=r, units=UNITS, most=sizes[-1]
        )
        found = over_seeds(lambda key, run=run: run(key), seeds)
        made[d, r] = sizes, found
        for n, points in enumerate(sizes):
            row = [found[name][:, n].mean() for name in ("distilled", "real", "transfer")]
            row += [found[name].mean() for name in ("whole", "none", "scratch", "share")]
            cells.append(
                [str(d), str(r), str(points), f"{points / r**2:.2f}", *(f"{v:.3f}" for v in row)]
            )
    header = ["d", "r", "M", "M / r^2", "distilled", "real points", "transfer", "all real", "no step",
              "the other link by itself", "share in U"]  # fmt: skip
    notes = [_growth(made, above, seeds) for above in ABOVE]
    return Result(header, cells, " ".join(notes), "M / r^2", ("distilled",), ("d", "r"))


def _growth(
    made: dict[tuple[int, int], tuple[list[int], dict[str, np.ndarray]]], above: float, seeds: int
) -> str:
    """How the points that are `above` the error of all real ones grow with r and with d."""

    def points(case: tuple[int, int], chosen: np.ndarray) -> float:
        sizes, found = made[case]
        errors, floor = found["distilled"][chosen].mean(0), found["whole"][chosen].mean()
        return needed(sizes, errors, floor + above)

    def in_r(chosen: np.ndarray) -> float:
        cases = [case for case in made if case[0] == 50]
        return slope([r for _, r in cases], [points(case, chosen) for case in cases])

    def in_d(chosen: np.ndarray) -> float:
        cases = [case for case in made if case[1] == 2]
        return slope([d for d, _ in cases], [case[0] * points(case, chosen) for case in cases])

    everyone = np.arange(seeds)
    note = f"Points for an error of {above:g} above that of all real ones: "
    note += ", ".join(f"{points(c, everyone):.1f} (d {c[0]}, r {c[1]})" for c in made) + "."
    for name, statistic in (("points in r", in_r), ("memory in d", in_d)):
        value, error = jackknife(statistic, seeds)
        note += f" Slope of {name}: {value:.2f} ± {error:.2f}."
    return note


def width(seeds: int, small: bool) -> Result:
    """(iv)"""
    d, r = (10, 2) if small else (50, 2)
    sizes, cells = (8, 16, 32, 64, 128), []
    for units in (64, 128) if small else (64, 128, 256, 512):
        found = over_seeds(lambda key, units=units: of_inputs(key, sizes, d, r, units), seeds)
        for n, inputs in enumerate(sizes):
            row = [found["true"][:, n].mean(), found["solved"][:, n].mean(), found["whole"].mean()]
            cells.append([str(units), str(inputs), *(f"{v:.3f}" for v in row)])
    header = ["L", "inputs", "true labels", "solved labels", "all real data"]
    note = f"d = {d}, r = {r}; first layer by {8 * r * r} distilled points."
    return Result(header, cells, note, "inputs", ("true labels", "solved labels"), ("L",))


FIGURES = {"share": share, "size": size, "width": width}


def main() -> None:
    """Makes the figures that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", nargs="*", choices=[[], *FIGURES], metavar="FIGURE")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--small", action="store_true")
    said = parser.parse_args()
    for name in said.figures or FIGURES:
        result = FIGURES[name](said.seeds, said.small)
        print(f"{markdown_table(result.header, result.cells).rstrip()}\n\n{result.note}\n")
        if said.small:
            continue
        note = f"{result.note} {said.seeds} seeds. {hardware()}; {datetime.date.today()}; {COMMIT}."
        table = {"header": result.header, "cells": result.cells, "note": note}
        write_json(RESULTS / f"multi_index_{name}.json", table)
        picture(result).savefig(PICTURES / f"multi_index_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
