"""The theory of multi-index tasks: exact facts about one step, and what distilled points are."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import hermite_e, legendre

from experiments import multi_index
from experiments.multi_index import FirstLayer

H = np.diag([2.0, 1.0, 0.0])
W = np.array([0.6, 0.8, 0.0])


@pytest.fixture(scope="module")
def half_space():
    """(points f64[N, 3], weights f64[N]) of an integral of N(0, I) that is exact on either side of
    the plane across W: Gauss-Legendre along W, Gauss-Hermite across it."""
    t, of_t = legendre.leggauss(60)
    t, of_t = np.concatenate([t - 1, t + 1]) * 4.5, np.tile(of_t, 2) * 4.5
    of_t = of_t * np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    s, of_s = hermite_e.hermegauss(6)
    of_s = of_s / of_s.sum()
    across = np.array([[-0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    grid = np.stack(np.meshgrid(t, s, s, indexing="ij"), -1).reshape(-1, 3)
    weights = np.einsum("a,b,c->abc", of_t, of_s, of_s).reshape(-1)
    return grid @ np.concatenate([W[None], across]), weights


def stepped(half_space, labels, sign=1.0):
    """The row of a unit with direction W after a step on all of N(0, I)."""
    points, weights = half_space
    with jax.enable_x64(True):
        layer = FirstLayer(jnp.asarray(W[None]), jnp.asarray([sign]))
        y = labels(points) * weights * len(points)
        return np.asarray(multi_index.first_step(layer, jnp.asarray(points), jnp.asarray(y)))[0]


def test_one_step_on_a_quadratic_is_its_hessian_at_the_unit(half_space):
    """(H w - 0.5 (w^T H w) w) / sqrt(2 pi), times the unit's sign."""
    expected = (H @ W - 0.5 * (W @ H @ W) * W) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(expected, (0.31596, 0.10213, 0), atol=1e-5)
    found = stepped(half_space, lambda x: 0.5 * ((x @ H * x).sum(1) - 3), sign=-1.0)
    np.testing.assert_allclose(found, -expected, atol=1e-9)


def test_one_step_sees_nothing_of_the_third_hermite_polynomial(half_space):
    """The negative control: it has no mean Hessian."""
    direction = np.array([[0.48, 0.64, 0.6]])

    def labels(x):
        return np.asarray(multi_index.cubic(x @ direction.T))

    points, weights = half_space
    assert (weights * labels(points) ** 2).sum() == pytest.approx(1)
    np.testing.assert_allclose(stepped(half_space, labels), 0, atol=1e-9)


@pytest.mark.parametrize(("d", "expected"), [(10, 0.129345), (50, 0.0567017)])
def test_half_a_sphere_has_its_centre_at_c_d(d, expected):
    closed = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / (2 * math.sqrt(math.pi))
    assert closed == pytest.approx(expected, rel=1e-5)
    layer = multi_index.first_layer(jax.random.key(0), d, 100_000)
    w, v = np.asarray(layer.w), np.full(d, 1 / np.sqrt(d))
    half = w[w @ v > 0]
    np.testing.assert_allclose(half.sum(0) / len(w), expected * v, atol=4 / np.sqrt(d * len(w)))
    assert set(np.unique(layer.a)) == {-1.0, 1.0}


def test_matching_moves_a_point_by_a_power_iteration():
    """The engine's gradient is y sum_j a_j g_j 1(w_j.x > 0); for many units that is H x / |x|."""
    d = 20
    layer = multi_index.first_layer(jax.random.key(1), d, 200_000)
    w, a = np.asarray(layer.w), np.asarray(layer.a)
    hessian = np.diag([3.0, -3.0, *[0.0] * 18])
    quadratic = np.einsum("ja,ab,jb->j", w, hessian, w)
    rows = a[:, None] * (w @ hessian - 0.5 * quadratic[:, None] * w) / np.sqrt(2 * np.pi)
    points = np.random.default_rng(0).normal(size=(3, d)).astype(np.float32)
    labels = np.float32([1, -1, 2])
    found = np.asarray(multi_index.match_step(layer, *map(jnp.float32, (points, labels, rows))))
    active = (points @ w.T > 0) * a
    expected = labels[:, None] * (active @ rows)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    iterated = labels[:, None] * (points @ hessian)
    products = (found * iterated).sum(1)
    cosines = products / np.linalg.norm(found, axis=1) / np.linalg.norm(iterated, axis=1)
    assert cosines.min() > 0.97
    assert multi_index.subspace_share(found, np.eye(2, d)) > 0.97


def test_two_points_for_each_direction_span_it():
    """Points +-u_k with labels lambda_k: rows a_j sum_k lambda_k sign(w_j.u_k) u_k, by 2 r."""
    u = np.asarray(multi_index.directions(jax.random.key(2), 6, 2))
    np.testing.assert_allclose(u @ u.T, np.eye(2), atol=1e-6)
    layer = multi_index.first_layer(jax.random.key(3), 6, 40)
    values = np.float32([1.5, -0.5])
    points = np.concatenate([u, -u])
    rows = multi_index.first_step(layer, jnp.asarray(points), jnp.asarray(np.tile(values, 2)))
    signs = np.sign(np.asarray(layer.w) @ u.T)
    expected = np.asarray(layer.a)[:, None] * ((signs * values) @ u) / 4
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert len(np.unique(signs, axis=0)) <= 4, "no more than 2^r directions"


def test_distilled_points_teach_what_random_features_do_not():
    """Small: d = 10, r = 2, two seeds in one program."""
    sizes = jnp.asarray([4, 32])
    found = multi_index.over_seeds(
        lambda key: multi_index.of_sizes(key, sizes, d=10, r=2, units=64, most=32), 2
    )
    found = {name: values.mean(0) for name, values in found.items()}
    assert found["share"] > 0.7
    assert found["whole"] < 0.5 * found["none"]
    few, many = found["distilled"]
    assert many < few
    assert many < 0.6 * found["none"]
    assert many < found["real"][1]
    inputs = multi_index.over_seeds(lambda key: multi_index.of_inputs(key, (16, 48), 10, 2, 64), 2)
    assert (inputs["solved"].mean(0) < inputs["true"].mean(0)).all()


def test_how_many_are_needed_and_how_that_grows():
    errors = np.array([0.4, 0.2, 0.05])
    assert multi_index.needed([4, 8, 16], errors, 0.1) == pytest.approx(math.sqrt(8 * 16))
    assert math.isnan(multi_index.needed([4, 8], errors[:2], 0.1))
    assert multi_index.slope([1, 2, 4, 8], [3, 12, 48, float("nan")]) == pytest.approx(2)
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean, error = multi_index.jackknife(lambda seeds: values[seeds].mean(), 4)
    assert (mean, error) == pytest.approx((4.0, values.std(ddof=1) / 2)), "a mean's standard error"
