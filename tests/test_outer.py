import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.distill.compose import compose
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


def _both_loss(theta, sample, aux, key, real):
    noise = jax.random.normal(key, ())
    loss = jnp.sum(jnp.square(sample(theta, None).images - real)) + noise * theta["decoder"]["a"]
    return loss, (aux + 1, {"loss": loss})


def _data_loss(theta, sample, aux, key, real):
    del key
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
        gradient = jax.grad(lambda x, key=key: _both_loss(x, sample, 0, key, REAL)[0])(theta)
        trace = 0.5 * trace + gradient["data"]
        data = theta["data"] - RATES["data"] * trace
        vector = np.array([theta["decoder"]["a"], theta["decoder"]["b"][0]])
        slope = np.array([gradient["decoder"]["a"], gradient["decoder"]["b"][0]]) + 0.1 * vector
        mu, nu = 0.9 * mu + 0.1 * slope, 0.999 * nu + 0.001 * slope**2
        corrected = mu / (1 - 0.9 ** (t + 1)) / (np.sqrt(nu / (1 - 0.999 ** (t + 1))) + 1e-8)
        a, b = np.float32(vector - RATES["decoder"] * corrected)
        theta = {**theta, "data": data, "decoder": {"a": jnp.asarray(a), "b": jnp.asarray([b])}}
        loss, _ = _data_loss(theta, sample, (), None, REAL)
        gradient = jax.grad(lambda x: _data_loss(x, sample, (), None, REAL)[0])(theta)
        trace = 0.5 * trace + gradient["data"]
        theta = {**theta, "data": theta["data"] - RATES["data"] * trace}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.theta, theta)
    np.testing.assert_allclose(metrics["data/loss"], loss, rtol=1e-4)
    assert set(metrics) == {"both/loss", "data/loss"}
    assert state.step == 3
    assert state.aux == (3, ())


def test_a_weighted_sum_would_be_another_algorithm():
    def sum_loss(theta, sample, aux, key, real):
        first, (aux, metrics) = _both_loss(theta, sample, aux, key, real)
        return first + _data_loss(theta, sample, (), key, real)[0], (aux, metrics)

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
    def loss(theta, sample, aux, key, real):
        del sample, real
        return jnp.sum(theta["data"]), (aux, {"draw": jax.random.uniform(key)})

    twins = tuple(Objective(name, DATA.init, loss, ("data",)) for name in ("first", "second"))
    method = compose(_synthetic(), twins, _optimizers())
    draws = [float(draw) for n in (1, 2) for draw in _steps(method, n)[1].values()]
    assert len(set(draws)) == 4
    again = [float(draw) for draw in _steps(method, 2)[1].values()]
    assert draws[2:] == again
    assert float(_steps(method, 1, jax.random.key(1))[1]["first/draw"]) not in draws


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
