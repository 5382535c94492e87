import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.distill.compose import compose, updates_per_step
from d3jax.types import Batch, Objective, Synthetic

RATES = {"data": 0.1, "decoder": 0.01}


def _synthetic():
    def init(key, real):
        del key, real
        return {
            "data": jnp.asarray([1.0, -2.0]),
            "decoder": {"a": jnp.asarray(3.0), "b": jnp.asarray([0.5])},
            "labels": jnp.asarray([7.0]),
        }

    def sample(theta, key, indices=None):
        del key, indices
        return Batch(theta["data"] * theta["decoder"]["a"] + theta["decoder"]["b"], theta["labels"])

    return Synthetic(init, sample, lambda theta, key: theta, 2, 2)


def _both_loss(theta, sample, aux, step, key, real):
    del step
    noise = jax.random.normal(key, ())
    loss = jnp.sum(jnp.square(sample(theta, None).images - real)) + noise * theta["decoder"]["a"]
    return loss, (aux + 1, {"loss": loss})


def _data_loss(theta, sample, aux, step, key, real):
    del step, key
    loss = jnp.sum(jnp.cos(sample(theta, None).images)) + jnp.sum(theta["data"]) * real
    return loss, (aux, {"loss": loss})


BOTH = Objective("both", lambda key, real: jnp.asarray(0), _both_loss, ("data", "decoder"))
DATA = Objective("data", lambda key, real: (), _data_loss, ("data",))


def _optimizers():
    return {
        "data": optax.sgd(RATES["data"], momentum=0.5),
        "decoder": optax.chain(optax.add_decayed_weights(0.1), optax.adam(RATES["decoder"])),
    }


REAL = jnp.asarray(0.25)
KEY = jax.random.key(0)


def _steps(method, number, key=KEY):
    state = method.init(key, REAL)
    step = jax.jit(method.step)
    for _ in range(number):
        state, metrics = step(key, state, REAL)
    return state, metrics


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_step_is_two_updates_one_after_the_other_on_one_optimizer_state():
    state, metrics = _steps(compose(_synthetic(), (BOTH, DATA), _optimizers()), 3)
    sample = _synthetic().sample
    theta = _synthetic().init(None, None)
    # Momentum and Adam with coupled weight decay, written out.
    trace, mu, nu = np.zeros(2), np.zeros(2), np.zeros(2)
    for t in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, t), 0)
        gradient = jax.grad(lambda x, key=key: _both_loss(x, sample, 0, 0, key, REAL)[0])(theta)
        trace = 0.5 * trace + gradient["data"]
        data = theta["data"] - RATES["data"] * trace
        vector = np.array([theta["decoder"]["a"], theta["decoder"]["b"][0]])
        slope = np.array([gradient["decoder"]["a"], gradient["decoder"]["b"][0]]) + 0.1 * vector
        mu, nu = 0.9 * mu + 0.1 * slope, 0.999 * nu + 0.001 * slope**2
        corrected = mu / (1 - 0.9 ** (t + 1)) / (np.sqrt(nu / (1 - 0.999 ** (t + 1))) + 1e-8)
        a, b = np.float32(vector - RATES["decoder"] * corrected)
        theta = {**theta, "data": data, "decoder": {"a": jnp.asarray(a), "b": jnp.asarray([b])}}
        loss, _ = _data_loss(theta, sample, (), 0, None, REAL)
        gradient = jax.grad(lambda x: _data_loss(x, sample, (), 0, None, REAL)[0])(theta)
        trace = 0.5 * trace + gradient["data"]
        theta = {**theta, "data": theta["data"] - RATES["data"] * trace}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.theta, theta)
    np.testing.assert_allclose(metrics["data/loss"], loss, rtol=1e-4)
    norm = np.sqrt(np.sum((RATES["data"] * trace) ** 2))
    np.testing.assert_allclose(metrics["data/update_data"], norm, rtol=1e-4)
    norm = np.sqrt(np.sum((RATES["decoder"] * corrected) ** 2))  # of both leaves together
    np.testing.assert_allclose(metrics["both/update_decoder"], norm, rtol=1e-4)
    updates = {"both/update_data", "both/update_decoder", "data/update_data"}
    assert set(metrics) == {"both/loss", "data/loss"} | updates
    assert state.step == 3
    assert state.aux == (3, ())


def test_a_weighted_sum_would_be_another_algorithm():
    def sum_loss(theta, sample, aux, step, key, real):
        first, (aux, metrics) = _both_loss(theta, sample, aux, step, key, real)
        return first + _data_loss(theta, sample, (), step, key, real)[0], (aux, metrics)

    summed = compose(_synthetic(), (BOTH._replace(loss=sum_loss),), _optimizers())
    turns = compose(_synthetic(), (BOTH, DATA), _optimizers())
    a, b = (_steps(method, 1)[0].theta["data"] for method in (summed, turns))
    assert np.abs(a - b).max() > 1e-2


def test_a_group_that_an_objective_does_not_update_keeps_its_bits_and_its_state():
    alone, _ = _steps(compose(_synthetic(), (BOTH,), _optimizers()), 1)
    followed, _ = _steps(compose(_synthetic(), (BOTH, DATA), _optimizers()), 1)
    _same_bits(alone.theta["decoder"], followed.theta["decoder"])
    _same_bits(alone.optimizer["decoder"], followed.optimizer["decoder"])
    assert np.abs(alone.theta["data"] - followed.theta["data"]).max() > 0
    only, _ = _steps(compose(_synthetic(), (DATA,), _optimizers()), 2)
    start = _synthetic().init(None, None)
    for group in ("decoder", "labels"):
        _same_bits(only.theta[group], start[group])
    assert set(only.optimizer) == {"data"}


def test_every_step_and_objective_has_its_own_key():
    def loss(theta, sample, aux, step, key, real):
        del sample, step, real
        return jnp.sum(theta["data"]), (aux, {"draw": jax.random.uniform(key)})

    twins = tuple(Objective(name, DATA.init, loss, ("data",)) for name in ("first", "second"))
    method = compose(_synthetic(), twins, _optimizers())

    def drawn(number, key=KEY):
        metrics = _steps(method, number, key)[1]
        return [float(metrics[f"{name}/draw"]) for name in ("first", "second")]

    draws = drawn(1) + drawn(2)
    assert len(set(draws)) == 4
    assert draws[2:] == drawn(2)
    assert drawn(1, jax.random.key(1))[0] not in draws


def test_init_may_be_replaced():
    def init(key, real):
        return {**_synthetic().init(key, real), "data": jnp.asarray([5.0, 5.0])}

    state = compose(_synthetic(), (DATA,), _optimizers(), init).init(KEY, REAL)
    np.testing.assert_array_equal(state.theta["data"], [5, 5])
    assert state.step == 0
    assert state.step.dtype == jnp.int32


def test_a_group_without_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"no optimizer for the groups \['decoder'\]"):
        compose(_synthetic(), (BOTH,), {"data": optax.sgd(1.0)})


def _pull(name, vector, updates=("data",)):
    """A constant gradient in the data; its loss tells the step."""

    def loss(theta, sample, aux, step, key, real):
        del sample, key, real
        slope = jnp.asarray(vector, jnp.float32)
        return jnp.vdot(theta["data"], slope), (aux, {"step": step.astype(jnp.float32)})

    return Objective(name, DATA.init, loss, updates)


# Forty times longer, as D3's MMD is beside its trajectory.
LARGE, SMALL = _pull("large", [40.0, 40.0]), _pull("small", [-1.0, 1.0])


def _adam(steps):
    return {"data": optax.adam(optax.linear_schedule(0.2, 0.0, steps), eps=0.0)}


def test_objectives_with_separate_states_move_as_if_alone():
    """Adam of a constant gradient takes its sign times the learning rate, which each counts."""
    method = compose(_synthetic(), (LARGE, SMALL), _adam(4), separate=True, weights={"small": 0.5})
    state, metrics = _steps(method, 3)
    travelled = 0.2 * (1 + 3 / 4 + 2 / 4)
    expected = np.asarray([1.0, -2.0]) - travelled * np.asarray([1 - 0.5, 1 + 0.5])
    np.testing.assert_allclose(state.theta["data"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["large/update_data"], 0.1 * np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["small/update_data"], 0.05 * np.sqrt(2), rtol=1e-5)
    assert metrics["large/step"] == metrics["small/step"] == 2
    assert set(state.optimizer["data"]) == {"large", "small"}


def test_objectives_with_one_state_share_its_moments_and_its_count():
    state, metrics = _steps(compose(_synthetic(), (LARGE, SMALL), _adam(8)), 3)
    data, mu, nu = np.asarray([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for count, slope in enumerate([(40.0, 40.0), (-1.0, 1.0)] * 3):
        mu, nu = 0.9 * mu + 0.1 * np.asarray(slope), 0.999 * nu + 0.001 * np.square(slope)
        corrected = mu / (1 - 0.9 ** (count + 1)) / np.sqrt(nu / (1 - 0.999 ** (count + 1)))
        change = 0.2 * (1 - count / 8) * corrected
        data = data - change
    np.testing.assert_allclose(state.theta["data"], data, rtol=1e-4)
    np.testing.assert_allclose(metrics["small/update_data"], np.linalg.norm(change), rtol=1e-4)
    # The smaller one's update goes where the larger one's did, also where it is against it.
    assert change[0] > 0.9 * change[1]


def test_updates_per_step_of_a_state():
    assert updates_per_step((BOTH, DATA)) == {"data": 2, "decoder": 1}
    assert updates_per_step((BOTH, DATA), separate=True) == {"data": 1, "decoder": 1}


def test_objectives_of_one_name_are_refused():
    with pytest.raises(ValueError, match="names that differ"):
        compose(_synthetic(), (DATA, DATA), _optimizers())
