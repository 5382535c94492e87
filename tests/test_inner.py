from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check_gradient
from jax.sharding import AxisType, PartitionSpec

from d3jax.distill.inner import (
    direct_unroll,
    limit_gradient,
    mean_learning_rate,
    positive_learning_rates,
    truncated_unroll,
    unroll,
)

STEPS = 4
OPTIMIZERS = {
    "descent": None,
    "momentum": optax.sgd(1.0, momentum=0.9, nesterov=True),
    "adam": optax.adam(1.0),
}


def _loss(params, batch):
    images, targets = batch
    hidden = jnp.tanh(images @ params["first"]["kernel"] + params["first"]["bias"])
    return jnp.mean(jnp.square(jax.nn.softplus(hidden @ params["second"]) - targets))


def _problem(dtype):
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.normal(size=shape), dtype)

    params = {"first": {"kernel": normal(3, 4), "bias": normal(4)}, "second": normal(4)}
    batches = (normal(STEPS, 5, 3), normal(STEPS, 5))
    return params, batches, jnp.asarray([0.3, 0.1, 0.2, 0.4], dtype)


@partial(jax.jit, static_argnums=3)
def _loop(params, batches, learning_rates, optimizer):
    """The same, a step at a time, as anyone would write it."""
    state = None if optimizer is None else optimizer.init(params)
    for t in range(STEPS):
        batch = jax.tree.map(lambda x, t=t: x[t], batches)
        updates = jax.tree.map(jnp.negative, jax.grad(_loss)(params, batch))
        if optimizer is not None:
            gradient = jax.tree.map(jnp.negative, updates)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda p, u, t=t: p + learning_rates[t] * u, params, updates)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_unroll_is_a_plain_loop(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        arguments = _problem(dtype)
        expected = _loop(*arguments, OPTIMIZERS[name])
        actual = unroll(_loss, *arguments, optimizer=OPTIMIZERS[name])
        assert jax.tree.structure(actual) == jax.tree.structure(arguments[0])
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rematerialize", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_meta_gradient_against_finite_differences(name, rematerialize):
    with jax.enable_x64(True):
        params, batches, learning_rates = _problem(jnp.float64)
        target = jax.tree.map(jnp.ones_like, params)

        def outer(x):
            trained = unroll(
                _loss,
                x["params"],
                x["batches"],
                x["learning_rates"],
                optimizer=OPTIMIZERS[name],
                rematerialize=rematerialize,
            )
            return optax.tree.norm(optax.tree.sub(trained, target), squared=True)

        groups = {"params": params, "batches": batches, "learning_rates": learning_rates}
        check_gradient(outer, groups)


def test_one_step_of_a_quadratic_in_closed_form():
    # loss = a p^2 / 2: p' = p (1 - eta a), so dp'^2/deta = -2 a p^2 (1 - eta a).
    def trained(eta):
        params = unroll(lambda p, a: a * p**2 / 2, jnp.float32(3), jnp.ones(1) * 2, eta[None])
        return params**2

    value, slope = jax.value_and_grad(trained)(jnp.float32(0.1))
    np.testing.assert_allclose(value, 9 * 0.8**2, rtol=1e-6)
    np.testing.assert_allclose(slope, -2 * 2 * 9 * 0.8, rtol=1e-6)


def test_rematerializing_changes_nothing_but_memory():
    params, batches, learning_rates = _problem(jnp.float32)

    def outer(params, rematerialize):
        trained = unroll(_loss, params, batches, learning_rates, rematerialize=rematerialize)
        return jnp.sum(jnp.square(trained["second"]))

    kept, again = (
        jax.jit(jax.grad(outer), static_argnums=1)(params, flag) for flag in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, again)


def test_unroll_refuses_shapes_that_do_not_fit():
    params, batches, learning_rates = _problem(jnp.float32)
    with pytest.raises(ValueError, match=r"must be a vector f\[T\], got \(\)"):
        unroll(_loss, params, batches, learning_rates[0])
    with pytest.raises(ValueError, match=r"leading axis T = 3 of learning_rates, got .*4, 5"):
        unroll(_loss, params, batches, learning_rates[:3])
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        unroll(_loss, params, jnp.float32(1), learning_rates)


def test_positive_learning_rates_are_exponentials():
    one = positive_learning_rates(jnp.log(jnp.float32(0.02)), 3)
    np.testing.assert_allclose(one, [0.02] * 3, rtol=1e-6)
    several = positive_learning_rates(jnp.asarray([-80.0, 0.0]), 2)
    assert several[0] > 0
    assert several[1] == 1


def test_equal_steps_of_the_mean_rate_go_as_far():
    """Down a slope of 5; the geometric mean of these rates would be 0.026."""
    logarithms = jnp.log(jnp.asarray([0.01, 0.02, 0.09], jnp.float32))
    np.testing.assert_allclose(mean_learning_rate(logarithms), 0.04, rtol=1e-6)
    np.testing.assert_allclose(mean_learning_rate(logarithms[1]), 0.02, rtol=1e-6)
    ends = [
        unroll(lambda p, slope: slope * p, jnp.float32(1), jnp.full(3, 5.0), rates)
        for rates in (jnp.exp(logarithms), jnp.broadcast_to(mean_learning_rate(logarithms), (3,)))
    ]
    np.testing.assert_allclose(ends, 1 - 5 * 0.12, rtol=1e-6)


def _with_data(params, batch, data):
    images, targets = batch
    return _loss(params, (images * data, targets))


def test_direct_unroll_is_an_unroll_whose_gradients_forget_the_steps_before():
    def shifted(params, batch, shift):
        images, targets = batch
        return _loss(params, (images + shift[0] * images**2 + shift[1], targets)) * (1 + shift[2])

    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        shift = jnp.asarray([0.3, -0.2, 0.1])
        each = [jax.tree.map(lambda x, t=t: x[t], batches) for t in range(STEPS)]

        def stopped(shift, rates):
            """Backpropagation through the sum of gradients, each at weights held constant."""
            total = moving = params
            for batch, rate in zip(each, rates):
                gradient = jax.grad(shifted)(jax.lax.stop_gradient(moving), batch, shift)
                step = jax.tree.map(lambda g, rate=rate: rate * g, gradient)
                total, moving = (jax.tree.map(jnp.subtract, p, step) for p in (total, moving))
            return total

        def direct(shift, rates):
            return direct_unroll(shifted, params, shift, batches, rates)

        def exact(shift, rates):
            return unroll(lambda p, batch: shifted(p, batch, shift), params, batches, rates)

        def measured(unrolled):
            def value(shift, rates):
                ends = jax.tree.leaves(unrolled(shift, rates))
                return sum(jnp.sum(jnp.sin(x) ** 2) for x in ends)

            return jax.jit(jax.value_and_grad(value, (0, 1)))(shift, rates)

        value, gradients = measured(direct)
        expected, expected_gradients = measured(stopped)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for actual, wanted in zip(gradients, expected_gradients):
            np.testing.assert_allclose(actual, wanted, rtol=1e-10)
        exact_value, exact_gradients = measured(exact)
        np.testing.assert_allclose(value, exact_value, rtol=1e-12)  # the same steps
        assert not np.allclose(gradients[0], exact_gradients[0], rtol=1e-2)  # the path is missed


def test_direct_unroll_needs_no_more_memory_for_more_steps():
    params, (images, targets), _ = _problem(jnp.float32)

    def temporary_bytes(steps):
        def value(shift):
            rates = jnp.full((steps,), 0.1)

            def loss(params, batch, shift):
                return _loss(params, (images[0] + batch * shift, targets[0]))

            ends = direct_unroll(loss, params, shift, jnp.arange(steps, dtype=jnp.float32), rates)
            return sum(jnp.sum(x) for x in jax.tree.leaves(ends))

        compiled = jax.jit(jax.grad(value)).lower(jnp.zeros(())).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Each further step has a number and a learning rate; unroll keeps a parameter vector for each.
    assert temporary_bytes(400) - temporary_bytes(100) < 300 * 3 * 4


@pytest.mark.parametrize("together", [True, False])
def test_a_limited_gradient_adds_up_network_by_network(together):
    slopes = jnp.asarray([[3.0, 4.0], [0.3, 0.4]])

    def total(shared):
        def of_network(slope, shared):
            return jnp.sum(slope * limit_gradient({"data": shared}, 1.0)["data"])

        if together:
            return jax.vmap(of_network)(slopes, jnp.broadcast_to(shared, (2, 2))).sum()
        return jax.lax.map(lambda slope: of_network(slope, shared), slopes).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray([1.0, 10.0]))
    np.testing.assert_allclose(value, 3 + 40 + 0.3 + 4, rtol=1e-6)
    # The first network's slope, 5 long, is cut to (0.6, 0.8); the second's, 0.5 long, is not.
    np.testing.assert_allclose(gradient, [0.9, 1.2], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("together", [True, False])
def test_a_share_of_the_gradient_that_is_not_finite_is_left_out(together, bad):
    # The first network's share has one bad entry, in another leaf than its good ones.
    slopes = {"data": jnp.asarray([[3.0, 4.0], [0.3, 0.4]]), "rate": jnp.asarray([bad, 0.0])}
    shared = {"data": jnp.asarray([1.0, 10.0]), "rate": jnp.asarray(2.0)}

    def of_network(slope, shared):
        limited = limit_gradient(shared, 1.0)
        return jnp.sum(slope["data"] * limited["data"]) + slope["rate"] * limited["rate"]

    def total(shared):
        if together:
            copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), shared)
            return jax.vmap(of_network)(slopes, copies).sum()
        return jax.lax.map(lambda slope: of_network(slope, shared), slopes).sum()

    gradient = jax.jit(jax.grad(total))(shared)
    np.testing.assert_allclose(gradient["data"], [0.3, 0.4], rtol=1e-6)
    assert gradient["rate"] == 0


def test_a_window_is_an_unroll_after_steps_without_derivatives():
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        data = jnp.asarray(1.3)

        def windowed(data, rates, start):
            trained = truncated_unroll(_with_data, params, data, batches, rates, start, 2)
            return jnp.sum(jnp.square(trained["second"]))

        def by_hand(data, rates, start):
            def part(params, data, rates, steps):
                return unroll(
                    lambda p, b: _with_data(p, b, data),
                    params,
                    jax.tree.map(lambda x: x[steps], batches),
                    rates[steps],
                )

            middle = jax.lax.stop_gradient(part(params, data, rates, slice(0, start)))
            trained = part(middle, data, rates, slice(start, start + 2))
            return jnp.sum(jnp.square(trained["second"]))

        actual = jax.jit(jax.value_and_grad(windowed, (0, 1)))
        expected = jax.jit(jax.value_and_grad(by_hand, (0, 1)), static_argnums=2)
        for start in (0, 1, 2):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14),
                actual(data, rates, jnp.asarray(start, jnp.int32)),
                expected(data, rates, start),
            )


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_out_of_range_is_refused(window):
    params, batches, rates = _problem(jnp.float32)
    with pytest.raises(ValueError, match="window must be from 1 to 4"):
        truncated_unroll(
            _with_data, params, jnp.ones(()), batches, rates, jnp.zeros((), jnp.int32), window
        )


SHARDS = 2


def _sharded(function, in_specs, out_specs):
    devices = jax.devices()[:SHARDS]
    mesh = jax.make_mesh((SHARDS,), ("shard",), (AxisType.Auto,), devices=devices)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)


def _trained(name, params, data, batches, rates):
    """Params after training on `data`, which the loss closes over where it can."""
    if name == "direct":
        return direct_unroll(_with_data, params, data, batches, rates)
    if name == "window":
        start = jnp.asarray(1, jnp.int32)
        return truncated_unroll(_with_data, params, data, batches, rates, start, 2)
    if name == "whole window":  # no step before it
        start = jnp.asarray(0, jnp.int32)
        return truncated_unroll(_with_data, params, data, batches, rates, start, STEPS)
    optimizer = optax.adam(1.0, eps_root=1e-12) if name == "adam" else None
    return unroll(
        lambda p, batch: _with_data(p, batch, data), params, batches, rates, optimizer=optimizer,
        rematerialize=name != "stored",
    )  # fmt: skip


def _outer(name, batches):
    def outer(params, rates, data):
        ends = jax.tree.leaves(_trained(name, params, data, batches, rates))
        return sum(jnp.sum(jnp.sin(x) ** 2) for x in ends)

    return outer


SHARDED = ["descent", "stored", "adam", "window", "whole window", "direct"]
DATA = [[0.7, 1.3, -0.4], [1.1, 0.2, 0.5]]  # a row for each device


@pytest.mark.parametrize("name", SHARDED)
def test_data_that_differs_from_device_to_device_trains_params_that_start_alike(name):
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        outer, data = _outer(name, batches), jnp.asarray(DATA)
        both = jax.value_and_grad(outer, (0, 1, 2))
        alone = [jax.jit(both)(params, rates, row) for row in data]

        def on_a_device(params, rates, data):
            value, (for_params, for_rates, for_data) = both(params, rates, data[0])
            return value[None], for_params, for_rates, for_data[None]

        spread, shared = PartitionSpec("shard"), PartitionSpec()
        value, for_params, for_rates, for_data = jax.jit(
            _sharded(on_a_device, (shared, shared, spread), (spread, shared, shared, spread))
        )(params, rates, data)
        np.testing.assert_allclose(value, [x for x, _ in alone], rtol=1e-12)
        np.testing.assert_allclose(for_data, [g[2] for _, g in alone], rtol=1e-10)
        # What the devices share, all of them move: its gradient is the sum.
        np.testing.assert_allclose(for_rates, alone[0][1][1] + alone[1][1][1], rtol=1e-10)
        jax.tree.map(
            lambda g, a, b: np.testing.assert_allclose(g, a + b, rtol=1e-10),
            for_params, alone[0][1][0], alone[1][1][0],
        )  # fmt: skip

        # And differentiated from outside.
        def total(params, rates, data):
            values = _sharded(
                lambda p, r, x: outer(p, r, x[0])[None], (shared, shared, spread), spread
            )(params, rates, data)
            return jnp.sum(values)

        outside = jax.jit(jax.grad(total, (0, 1, 2)))(params, rates, data)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10),
            outside, (for_params, for_rates, for_data),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["descent", "window", "direct"])
def test_devices_that_share_the_data_and_train_on_batches_of_their_own(name):
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        data = jnp.asarray(DATA[0])
        per_device = jax.tree.map(lambda x: jnp.stack([x, x[::-1] + 0.1]), batches)

        def both(batches, data, rates):
            return jax.value_and_grad(_outer(name, batches), (1, 2))(params, rates, data)

        rows = [jax.tree.map(lambda x, i=i: x[i], per_device) for i in range(SHARDS)]
        alone = [jax.jit(both)(row, data, rates) for row in rows]

        def on_a_device(batches, data, rates):
            value, gradients = both(jax.tree.map(lambda x: x[0], batches), data, rates)
            return value[None], gradients

        spread, shared = PartitionSpec("shard"), PartitionSpec()
        value, gradients = jax.jit(
            _sharded(on_a_device, (spread, shared, shared), (spread, shared))
        )(per_device, data, rates)
        np.testing.assert_allclose(value, [x for x, _ in alone], rtol=1e-12)
        for actual, a, b in zip(gradients, alone[0][1], alone[1][1]):
            np.testing.assert_allclose(actual, a + b, rtol=1e-10)


def test_a_window_whose_place_differs_from_device_to_device():
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        starts = jnp.asarray([0, 2], jnp.int32)

        def both(start, data):
            def outer(data):
                trained = truncated_unroll(_with_data, params, data, batches, rates, start, 2)
                return jnp.sum(jnp.square(trained["second"]))

            return jax.value_and_grad(outer)(data)

        data = jnp.asarray(DATA[0])
        alone = [jax.jit(both)(start, data) for start in starts]

        def on_a_device(start, data):
            value, gradient = both(start[0], data)
            return value[None], gradient

        spread, shared = PartitionSpec("shard"), PartitionSpec()
        value, gradient = jax.jit(_sharded(on_a_device, (spread, shared), (spread, shared)))(
            starts, data
        )
        np.testing.assert_allclose(value, [x for x, _ in alone], rtol=1e-12)
        np.testing.assert_allclose(gradient, alone[0][1] + alone[1][1], rtol=1e-10)


def test_devices_that_average_their_losses_train_one_network_on_all_the_batches():
    # The loss is alike on every device, though the batches are not: so are the params.
    with jax.enable_x64(True):
        params, (images, targets), rates = _problem(jnp.float64)
        images = jnp.concatenate([images, images[::-1] * 0.7], axis=1)
        targets = jnp.concatenate([targets, targets[::-1] + 0.1], axis=1)

        def on_a_device(batches):
            def loss(params, batch):
                return jax.lax.pmean(_loss(params, batch), "shard")

            return unroll(loss, params, batches, rates)

        spread, shared = PartitionSpec(None, "shard"), PartitionSpec()
        trained = jax.jit(_sharded(on_a_device, (spread,), shared))((images, targets))
        expected = _loop(params, (images, targets), rates, None)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), trained, expected)


def test_params_of_batches_that_the_loss_ignores_may_differ_all_the_same():
    # As where an inner step has a key of its own, and nothing random to do with it: what follows
    # on a device, with real images of its own, should not depend on that.
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        keys = jax.random.split(jax.random.key(0), (SHARDS, STEPS))

        def on_a_device(keys, params):
            def loss(params, batch):
                return _loss(params, batch[0])

            trained = unroll(loss, params, (batches, keys[0]), rates)
            assert jax.typeof(trained["second"]).manual_axis_type.varying == {"shard"}
            return trained["second"][None]

        spread, shared = PartitionSpec("shard"), PartitionSpec()
        trained = jax.jit(_sharded(on_a_device, (spread, shared), spread))(keys, params)
        expected = _loop(params, batches, rates, None)["second"]
        np.testing.assert_allclose(trained, [expected] * SHARDS, rtol=1e-12)


def test_second_derivatives_and_starts_side_by_side_on_every_device():
    with jax.enable_x64(True):
        params, batches, rates = _problem(jnp.float64)
        data = jnp.asarray(DATA)
        params = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), params)  # two networks
        outer = _outer("descent", batches)

        def curvature(data):
            def value(data):
                return jnp.sum(jax.vmap(outer, (0, None, None))(params, rates, data))

            return jax.grad(lambda x: jnp.sum(jax.grad(value)(x) ** 2))(data)

        actual = jax.jit(
            _sharded(
                lambda x: curvature(x[0])[None], PartitionSpec("shard"), PartitionSpec("shard")
            )
        )(data)
        expected = [jax.jit(curvature)(row) for row in data]
        np.testing.assert_allclose(actual, expected, rtol=1e-9)
