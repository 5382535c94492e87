"""Dataset Distillation: its meta-gradient, what it learns, and its replay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, check_gradient, make_real, to_float64
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec

from d3jax import distill, experts, losses, networks, synthetic
from d3jax.distill import objectives
from d3jax.evaluate import replay, unseen
from d3jax.evaluate.recipe import Recipe, recipe_of
from d3jax.experts import source
from d3jax.methods.dd import DDOptions, dd
from d3jax.synthetic import labels, pixels
from d3jax.types import InputError, Network, Outputs, Real

KEY = jax.random.key(3)
STEP = jnp.asarray(0, jnp.int32)
STEPS, PASSES, ITEMS = 2, 2, 6


def images(label_kind="free", num_items=ITEMS):
    return pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=num_items, label_kind=label_kind
    )


def unrolled(network, **options):
    sizes = {"steps": STEPS, "passes": PASSES, "batch_size": 5, "initialization": "random"}
    return objectives.unrolled(
        network, ITEMS, **{**sizes, "updates": ("data", "labels", "learning_rates"), **options}
    )


def theta_of(data, real, seed=0):
    generator = np.random.default_rng(seed)
    theta = data.init(KEY, real)
    if "labels" in theta:
        theta["labels"] = theta["labels"] + 0.1 * jnp.asarray(
            generator.normal(size=theta["labels"].shape), jnp.float32
        )
    rates = np.log(0.1) + 0.3 * generator.normal(size=STEPS * PASSES)
    return {**theta, "learning_rates": jnp.asarray(rates, jnp.float32)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_meta_gradient_of_the_whole_unroll(tiny_network, tiny_real, optimizer):
    """Images, soft labels, learning rates, and the initial weights, against finite differences."""
    objective = unrolled(tiny_network, initialization="fixed", weights_key=KEY, optimizer=optimizer)
    with jax.enable_x64(True):
        theta, real = to_float64((theta_of(images(), tiny_real), tiny_real))
        start = to_float64(ravel_pytree(tiny_network.init(KEY))[0])

        def loss(tree):
            theta = {name: tree[name] for name in tree if name != "weights"}
            aux = {"weights": tree["weights"]}
            return objective.loss(theta, images().sample, aux, STEP, jax.random.key(5), real)[0]

        check_gradient(loss, {**theta, "weights": start}, step=1e-6, tolerance=2e-5)


@pytest.mark.parametrize("initialization", ["fixed", "random", "pretrained"])
def test_devices_that_share_theta_and_draw_by_keys_of_their_own(
    tiny_network, tiny_real, initialization
):
    """The meta-gradient under shard_map is the sum of the devices'."""
    objective = unrolled(tiny_network, initialization=initialization, weights_key=KEY)
    keys = jax.random.split(KEY, 2)
    mesh = jax.make_mesh((2,), ("seed",), (AxisType.Auto,), devices=jax.devices()[:2])
    spread, shared = PartitionSpec("seed"), PartitionSpec()
    with jax.enable_x64(True):
        theta, real = to_float64((theta_of(images(), tiny_real), tiny_real))
        aux = to_float64(objective.init(KEY, real))

        def both(key, theta, aux, real):
            def loss(theta):
                return objective.loss(theta, images().sample, aux, STEP, key, real)[0]

            return jax.value_and_grad(loss)(theta)

        def on_a_device(keys, theta, aux, real):
            value, gradient = both(keys[0], theta, aux, real)
            return value[None], gradient

        value, gradient = jax.jit(
            jax.shard_map(
                on_a_device,
                mesh=mesh,
                in_specs=(spread, shared, shared, shared),
                out_specs=(spread, shared),
            )
        )(keys, theta, aux, real)
        alone = jax.jit(both)
        (first, for_first), (second, for_second) = (alone(key, theta, aux, real) for key in keys)
        np.testing.assert_allclose(value, [first, second], rtol=1e-10)
        jax.tree.map(
            lambda g, a, b: np.testing.assert_allclose(g, a + b, rtol=1e-8, atol=1e-12),
            gradient, for_first, for_second,
        )  # fmt: skip


def test_the_loss_is_that_of_plain_training(tiny_network, tiny_real):
    """One class, one real image: the real batch and the start are what they must be."""
    objective = unrolled(tiny_network, initialization="fixed", weights_key=KEY)
    theta = theta_of(images(), tiny_real)
    one = tiny_real._replace(images=tiny_real.images[4:5], labels=tiny_real.labels[4:5])
    aux = objective.init(KEY, one)
    value, (after, metrics) = jax.jit(objective.loss, static_argnums=1)(
        theta, images().sample, aux, STEP, KEY, one
    )
    np.testing.assert_array_equal(after["weights"], aux["weights"])  # untouched

    params = tiny_network.init(KEY)
    # Items 0, 2, 4 are the first step's, 1, 3, 5 the second's; then the same again.
    for step, chosen in enumerate([[0, 2, 4], [1, 3, 5]] * PASSES):
        batch = jnp.asarray(chosen)

        def training_loss(params, batch=batch):
            logits = tiny_network.apply(params, theta["data"]["images"][batch])
            return losses.cross_entropy(logits, theta["labels"][batch])

        rate = jnp.exp(theta["learning_rates"][step])
        gradient = jax.grad(training_loss)(params)
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, gradient)
    logits = tiny_network.apply(params, one.gather(jnp.zeros(1, jnp.int32)))
    expected = -jax.nn.log_softmax(logits)[0, int(one.labels[0])]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_an_attack_leaves_every_label_but_one_alone(tiny_network, tiny_real):
    """The attacked loss of a world is the plain loss of the world with that label exchanged."""
    theta = theta_of(images(), tiny_real)
    exchanged = np.asarray(tiny_real.labels).copy()
    exchanged[exchanged == 2] = 0
    plain, attacked = (unrolled(tiny_network, relabel=pair) for pair in (None, (2, 0)))

    def value(objective, real):
        return float(jax.jit(objective.loss, static_argnums=1)(
            theta, images().sample, (), STEP, KEY, real
        )[0])  # fmt: skip

    relabelled = tiny_real._replace(labels=jnp.asarray(exchanged))
    assert value(attacked, tiny_real) == value(plain, relabelled)
    assert value(attacked, tiny_real) != value(plain, tiny_real)


def test_pretrained_networks_are_drawn_without_replacement(tiny_network):
    """Of two networks both take part, whatever the key; their losses differ by far."""
    real = make_real(tiny_network, 1, experts=2)
    real = real._replace(trajectories=real.trajectories * jnp.asarray([0.1, 10.0])[:, None, None])
    theta = theta_of(images(), real)
    options = {"initialization": "pretrained", "batch_size": 400}
    both = unrolled(tiny_network, number_of_networks=2, **options)
    alone = unrolled(tiny_network, number_of_networks=1, **options)

    @jax.jit
    def losses_of(key):
        each = [
            alone.loss(theta, images().sample, (), STEP, key, real._replace(trajectories=own))[0]
            for own in jnp.split(real.trajectories, 2)
        ]
        return both.loss(theta, images().sample, (), STEP, key, real)[0], jnp.stack(each)

    for key in jax.random.split(KEY, 8):
        value, each = losses_of(key)
        assert np.ptp(each) > np.mean(each)  # one of them twice would be half off
        np.testing.assert_allclose(value, np.mean(each), rtol=0.25)  # other real batches


@pytest.mark.parametrize("wrong", [{"seed": "x"}, {"dataset": 3}, {"validation": None}])
def test_a_lying_source_of_pretrained_networks(wrong):
    recipe = source.recipe("digits", None, 0, experts.Options(), 0)
    with pytest.raises(InputError, match="is not one"):
        source.load({**recipe, **wrong}, (8, 8, 1), "0123456789", None)


def test_networks_side_by_side_are_those_in_turn(tiny_network, tiny_real, monkeypatch):
    """On a CPU they are trained in turn, on accelerators under vmap; the arithmetic is the same."""
    objective = unrolled(tiny_network, number_of_networks=3, clip={"data": 0.01})

    def value(theta):
        return objective.loss(theta, images().sample, (), STEP, KEY, tiny_real)[0]

    theta = theta_of(images(), tiny_real)
    in_turn = jax.jit(jax.value_and_grad(value))(theta)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    together = jax.jit(jax.value_and_grad(lambda theta: value(theta)))(theta)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), in_turn, together
    )


def test_the_loss_is_that_of_networks_that_do_not_diverge(tiny_network):
    """Of two pretrained networks one has weights of 1e38; what it would move is limited to zero."""
    real = make_real(tiny_network, 1, experts=2)
    large = real._replace(trajectories=real.trajectories * jnp.asarray([1, 1e38])[:, None, None])
    theta = theta_of(images(), real)
    moved = ("data", "learning_rates")
    for clip, finite in ((dict.fromkeys(moved, 1.0), True), ({}, False)):
        options = {"initialization": "pretrained", "clip": clip, "updates": moved}
        objective = unrolled(tiny_network, number_of_networks=2, **options)

        def loss(theta, real, objective=objective):
            value, (_, metrics) = objective.loss(theta, images().sample, (), STEP, KEY, real)
            return value, metrics["loss"]

        gradient, found = jax.jit(jax.grad(loss, has_aux=True))(theta, large)
        assert bool(jnp.isfinite(found)) is finite
        assert all(np.isfinite(x).all() == finite for x in jax.tree.leaves(gradient["data"]))


def linear() -> Network:
    """Logits (w x, 0) of images 1x1x2: logistic regression in two dimensions."""

    def init(key):
        return {"w": jax.random.normal(key, (2,), jnp.float32)}

    def forward(params, images, *, statistics=None):
        score = images.reshape(-1, 2) @ params["w"]
        return Outputs(jnp.stack([score, jnp.zeros_like(score)], 1), images.reshape(-1, 2), ())

    return Network(init, forward)


def test_a_two_dimensional_problem_with_a_known_optimum():
    """Bayes' rule for two normal classes N(+-m, 1) is w = 2 m: no w has a lower expected loss."""
    generator = np.random.default_rng(0)
    m, number = np.asarray([1.0, -0.5]), 4000
    signs = np.repeat([1, -1], number)
    points = signs[:, None] * m + generator.normal(size=(2 * number, 2))
    order = np.arange(2 * number).reshape(2, -1)
    real = Real(
        images=jnp.asarray(points.reshape(-1, 1, 1, 2), jnp.float32),
        labels=jnp.asarray((signs < 0).astype(np.int32)),
        class_index=jnp.asarray(order, jnp.int32),
        class_counts=jnp.asarray([number, number], jnp.int32),
        mean=jnp.zeros(2),
        sd=jnp.ones(2),
    )
    data = pixels.create(image_shape=(1, 1, 2), num_classes=2, num_items=2, start="noise")
    options = DDOptions(
        steps=1, passes=2, networks=8, real_batch=256, inner_learning_rate=1.0,
        data_learning_rate=0.05, learning_rate_learning_rate=0.05,
    )  # fmt: skip
    method = dd(linear(), data, options, 300)
    state = jax.jit(method.init)(KEY, real)
    run = jax.jit(distill.chunk_function(method, 300))
    chunk = run(KEY, state, real, jnp.asarray(300, jnp.int32))
    values = np.asarray(chunk.metrics["unrolled/loss"])
    test_points = np.concatenate([s * m + generator.normal(size=(50_000, 2)) for s in (1, -1)])
    margins = np.repeat([1, -1], 50_000) * (test_points @ (2 * m))
    optimum = np.mean(np.logaddexp(0, -margins))
    assert values[:10].mean() > optimum + 0.2
    assert optimum - 0.03 < values[-50:].mean() < optimum + 0.05


def test_labels_start_as_classes_or_shares_of_classes():
    np.testing.assert_array_equal(labels.start(6, 3), np.repeat(np.eye(3), 2, 0))
    shares = [[1 / 2, 1 / 2, 0, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(labels.start(2, 5), shares, rtol=1e-6)


def test_steps_are_dealt_out_with_all_classes_alike():
    items = np.asarray(objectives.step_items(12, 2, 3))
    assert items.shape == (6, 6)
    np.testing.assert_array_equal(items[0], [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(items[1], items[5])
    classes = np.asarray(labels.item_classes(12, 3))
    for row in items:
        np.testing.assert_array_equal(np.bincount(classes[row]), [2, 2, 2])
    with pytest.raises(InputError, match="cannot be dealt out"):
        objectives.step_items(10, 3, 1)
    recipe = Recipe(2, 3, (0.1,) * 6, "random")
    assert recipe.dealt(12, 3) == recipe
    for number in (3, 4):  # no even number; and 4 items, 2 in a step, of which one class has none
        assert recipe.dealt(number, 3) == dataclasses.replace(recipe, steps=1, passes=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": 0}, "networks"),
        ({"real_batch": 0}, "real_batch"),
        ({"window": 7}, "window"),
        ({"steps": 4}, "dealt out"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate"),
        ({"clip": 0.0}, "clip"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
def test_options_that_cannot_be(tiny_network, options, message):
    with pytest.raises(InputError, match=message):
        dd(tiny_network, images(), dataclasses.replace(DDOptions(steps=2), **options), 1)


def test_replay_is_the_training_that_was_unrolled(tiny_network, tiny_real):
    """The objective's own loss, from the networks that replay leaves."""
    theta = theta_of(images(), tiny_real)
    rates = tuple(float(rate) for rate in jnp.exp(theta["learning_rates"]))
    recipe = Recipe(STEPS, PASSES, rates, "random")
    weights = unseen.initial_weights(tiny_network, KEY, 3)
    trained, _ = replay.train(tiny_network, images(), theta, recipe, weights, KEY, at_once=2)
    assert trained.shape == weights.shape
    objective = unrolled(tiny_network, initialization="fixed", weights_key=KEY)
    one = tiny_real._replace(images=tiny_real.images[:1], labels=tiny_real.labels[:1])
    image = one.gather(jnp.zeros(1, jnp.int32))
    unravel = networks.unraveler(tiny_network)
    for start, end in zip(weights, trained):
        value = objective.loss(theta, images().sample, {"weights": start}, STEP, KEY, one)[0]
        logits = tiny_network.apply(unravel(end), image)
        np.testing.assert_allclose(value, -jax.nn.log_softmax(logits)[0, 0], rtol=1e-5)


def test_confusion_is_a_plain_count(tiny_network, tiny_real):
    weights = unseen.initial_weights(tiny_network, KEY, 3)
    counts = replay.confusion(tiny_network, weights, tiny_real, at_once=2)
    everything = tiny_real.gather(jnp.arange(12))
    for vector, found in zip(weights, counts):
        params = networks.unraveler(tiny_network)(vector)
        predicted = np.asarray(tiny_network.apply(params, everything)).argmax(1)
        expected = np.zeros((3, 3), int)
        for label, prediction in zip(np.asarray(tiny_real.labels), predicted):
            expected[label, prediction] += 1
        np.testing.assert_array_equal(found, expected)


GOOD = {
    "steps": 2, "passes": 1, "learning_rates": [0.1, 0.2], "initialization": "random",
    "optimizer": "sgd", "attack": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 3}, {"steps": "2"}, {"passes": 0}, {"learning_rates": [0.1]},
     {"learning_rates": [0.1, -0.2]}, {"learning_rates": None}, {"initialization": "warm"},
     {"optimizer": "lion"}, {"attack": [1]}, {"attack": "0:1"}],
    ids=repr,
)  # fmt: skip
def test_a_recipe_that_cannot_be_replayed(wrong):
    assert recipe_of(GOOD).learning_rates == (0.1, 0.2)
    with pytest.raises(InputError, match="cannot be replayed"):
        recipe_of({**GOOD, **wrong})


def test_any_parametrization_goes(tiny_network, tiny_real):
    specification = {
        "kind": "gaussian", "image_shape": list(IMAGE_SHAPE), "num_classes": NUM_CLASSES,
        "latents_per_class": 2, "latent_size": 4, "width": 8,
    }  # fmt: skip
    data = synthetic.create(specification)
    assert data is synthetic.create(dict(specification))
    method = dd(tiny_network, data, DDOptions(steps=2, networks=1, real_batch=4), 2)
    assert method.objectives[0].updates == ("data", "decoder", "learning_rates")
    state = jax.jit(method.init)(KEY, tiny_real)
    state, metrics = jax.jit(method.step)(KEY, state, tiny_real)
    assert np.isfinite(float(metrics["unrolled/loss"]))
