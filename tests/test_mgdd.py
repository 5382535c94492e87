"""After MGDD: a generator, its training and its adaptation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, random_params

from d3jax import artifact, data, losses
from d3jax.host.progress import Reporter
from d3jax.methods.mgdd import MGDDOptions, adapt, generate, load_generator, mgdd
from d3jax.run import run as jobs
from d3jax.run.options import Architecture, Data, Parametrization, command
from d3jax.run.resolve import resolved
from d3jax.synthetic import generated, labels, pixels
from d3jax.types import InputError

KEY = jax.random.key(3)
SIZES = {"image_shape": IMAGE_SHAPE, "num_classes": NUM_CLASSES, "label_kind": "solved"}


def _method(network, items=3, generator=None, **options):
    synthetic = generated.create(**SIZES, num_items=items, generator_width=4)
    given = {"pool": 1, "network_steps": 9, "real_batch": 9, "generator_learning_rate": 0.01}
    return mgdd(network, synthetic, MGDDOptions(**{**given, **options}), generator)


@pytest.fixture(scope="module")
def alike(tiny_real):
    """One image a class: whatever is drawn, it is the same."""
    first = tiny_real.class_index[:, 0]
    return tiny_real._replace(
        images=tiny_real.images[first],
        labels=jnp.arange(3, dtype=jnp.int32),
        class_index=jnp.arange(3, dtype=jnp.int32)[:, None],
        class_counts=jnp.ones(3, jnp.int32),
        trajectories=None,
    )


@pytest.mark.long
def test_at_first_all_is_real_images_with_solved_labels(tiny_network, tiny_real):
    """The floor: images bit for bit, and so the labels, students and accuracy."""
    method = _method(tiny_network, items=6)
    theta = jax.jit(method.init)(KEY, tiny_real).theta
    images = method.synthetic.sample(theta, None).images
    np.testing.assert_array_equal(images, theta["data"]["images"])
    plain = pixels.create(**SIZES, num_items=6)
    own, floor = (
        labels.by_solving(tiny_network, made, theta, tiny_real, KEY, networks=1)
        for made in (method.synthetic, plain)
    )
    np.testing.assert_array_equal(own, floor)


def _numbers(seed=0):
    """Features of 4 images and of 9 others, and their targets."""
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(size=shape) for shape in ((4, 6), (9, 6), (9, 3))]
    return [jnp.asarray(x) for x in arrays]


def test_the_gradient_with_labels_fixed_is_the_full_one():
    """The envelope theorem, in float64: the labels are where the loss is least."""
    with jax.enable_x64(True):
        features, others, targets = _numbers()

        def full(features):
            predictor = losses.ridge_predictor(features, others, 1e-3)
            found = losses.solved_labels(features, others, targets, 1e-3)
            gram = predictor.T @ predictor
            squares = jnp.sum((predictor @ found - targets) ** 2)
            return (squares + 1e-3 / 4 * jnp.trace(gram) * jnp.sum(found**2)) / 18

        def fixed(features):
            return losses.solved_error(features, others, targets, 1e-3)[0]

        (value, expected), (own, gradient) = (
            jax.jit(jax.value_and_grad(f))(features) for f in (full, fixed)
        )
        np.testing.assert_allclose(own, value, rtol=1e-14)
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert error < 1e-12


def test_masked_images_change_nothing_that_is_solved():
    """Padding with zeros against the same without, in float64."""
    with jax.enable_x64(True):
        features, others, targets = _numbers()
        padded = jnp.concatenate([features, jnp.zeros((3, 6))])
        number = jnp.asarray(4, jnp.int32)
        plain = losses.solved_error(features, others, targets)
        loss, predicted, found = jax.jit(losses.solved_error)(
            padded, others, targets, 1e-3, number=number
        )
        np.testing.assert_allclose(loss, plain[0], rtol=1e-12)
        np.testing.assert_allclose(predicted, plain[1], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found[:4], plain[2], rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found[4:], 0)


def test_seven_generated_are_the_first_of_twenty_and_no_number_compiles_again():
    made = generated.generator(1, 4)
    params = random_params(made.init)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(203, 8, 8, 1)), jnp.float32)
    traced = []

    def forward(params, images):
        traced.append(images.shape)
        return made.forward(params, images)

    counting = made._replace(forward=forward)
    few, more, many = (generate(counting, params, images[:n]) for n in (7, 20, 203))
    np.testing.assert_array_equal(few, more[:7])
    np.testing.assert_array_equal(more, many[:20])
    assert many.shape == images.shape
    assert traced == [(100, 8, 8, 1)]
    assert np.abs(more - images[:20]).max() > 0.1


@pytest.mark.long
def test_reptile_that_goes_all_the_way_is_its_inner_steps(tiny_network, alike):
    """On data of which all draws are the same."""
    plain = _method(tiny_network)
    state = jax.jit(plain.init)(KEY, alike)
    step, after = jax.jit(plain.step), state
    for _ in range(3):
        after, _ = step(KEY, after, alike)

    def reached(**options):
        method = _method(tiny_network, meta="reptile", inner_steps=3, **options)
        start = state._replace(optimizer=jax.jit(method.init)(KEY, alike).optimizer)
        return jax.jit(method.step)(KEY, start, alike)[0]

    whole, half = reached(reptile_step=1.0), reached(reptile_step=0.5)
    moved = jax.tree.map(lambda a, b: a - b, after.theta["decoder"], state.theta["decoder"])
    for state_, share in ((whole, 1.0), (half, 0.5)):
        jax.tree.map(
            lambda end, start, way, s=share: np.testing.assert_allclose(
                end, start + s * way, rtol=1e-4, atol=1e-5
            ),
            state_.theta["decoder"], state.theta["decoder"], moved,
        )  # fmt: skip
    np.testing.assert_allclose(whole.aux[0].weights, after.aux[0].weights, atol=1e-5)
    assert int(whole.aux[0].steps[0]) == 3


@pytest.mark.long
def test_adapting_lowers_the_loss_and_begins_where_it_is_told(tiny_network, alike):
    """`adapt` is the method's own steps; a generator that is given is what a run begins with."""
    made = generated.generator(1, 4)
    params = made.init(jax.random.key(0))
    options = MGDDOptions(most=1, pool=1, real_batch=9, generator_learning_rate=0.01)
    found = adapt(tiny_network, made, params, alike, 0, steps=20, options=options)
    method = _method(tiny_network, generator=found)
    state = jax.jit(method.init)(KEY, alike)
    jax.tree.map(np.testing.assert_array_equal, state.theta["decoder"], found)
    step = jax.jit(method.step)
    _, adapted = step(KEY, state, alike)
    _, fresh = step(KEY, state._replace(theta={**state.theta, "decoder": params}), alike)
    assert adapted["generator/loss"] < fresh["generator/loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 4}, "tasks of 4 classes are more than the 3"),
        ({"most": 0}, "most must be at least 1, not 0"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, not 0"),
        ({"network_steps": -1}, "network_steps must not be negative"),
        ({"reptile_step": 0.0}, "reptile_step must be above 0, up to 1"),
        ({"most": 4}, "labels of 12 images are solved on no fewer real ones: raise real_batch 9"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_network, options, message):
    with pytest.raises(InputError, match=message):
        _method(tiny_network, **options)


def test_only_a_generator_is_learned(tiny_network):
    with pytest.raises(InputError, match="needs the parametrization generated"):
        mgdd(tiny_network, pixels.create(**SIZES, num_items=3), MGDDOptions())


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    """A run that trains a generator for other data sets, on tasks of 3 of the 10 digits."""
    run = command("mgdd")(
        data=Data(train_limit=200, test_limit=100),
        architecture=Architecture(network="mlp", width=8),
        parametrization=Parametrization(generator_width=4, store="generator"),
        mgdd=MGDDOptions(classes=3, meta="reptile", inner_steps=2, most=2, pool=2, real_batch=30),
        outer_steps=3,
        baselines=(),
        out=tmp_path_factory.mktemp("meta") / "run",
    )
    run = dataclasses.replace(
        run, student=dataclasses.replace(run.student, students=1, epochs=2), storage="float32"
    )
    jobs.run(run, Reporter())
    return run


@pytest.mark.long
def test_a_generator_is_a_file_that_other_runs_begin_with(meta, tmp_path):
    stored = artifact.load(meta.out)
    assert stored.ledger["bytes"]["decoder"] > 0
    params = load_generator(meta.out, 1, 4, whitened=False)
    assert max(np.abs(x).max() for x in jax.tree.leaves(params)) > 0
    jax.tree.map(np.testing.assert_array_equal, params, stored.decodable()["decoder"])
    load_generator(meta.out, 3, 4, whitened=False)  # one for grey images takes coloured ones

    # As it is, on other images and for another number; the images are stored, and nothing else.
    file = tmp_path / "generator.safetensors"
    artifact.save(stored, file)
    own = dataclasses.replace(meta.mgdd, classes=None, meta="joint", generator=file)
    sizes = Parametrization(generator_width=4, images_per_class=3)
    other = dataclasses.replace(
        meta,
        mgdd=dataclasses.replace(own, generator_learning_rate=0.0),
        parametrization=sizes,
        outer_steps=50,
        out=tmp_path / "other",
    )
    report = jobs.run(other, Reporter())
    assert report["configuration"]["outer_steps"] == 1
    assert report["bytes"]["decoder"] == 0
    assert report["bytes"]["images"] == 4 * 30 * 64
    made = artifact.load(other.out)
    assert set(made.theta) == {"data", "labels"}
    real = meta.data.load(0)[0].real(data.Normalization.of_header(made.header["normalization"]))
    candidates = generate(generated.generator(1, 4), params, real.gather(jnp.arange(200)))
    distances = np.abs(np.asarray(made.sample().images)[:, None] - candidates[None]).max((2, 3, 4))
    assert distances.min(1).max() < 1e-5, "each is what the generator makes of a real image"

    changed = {**stored.theta, "decoder": jax.tree.map(lambda x: 2 * x, stored.theta["decoder"])}
    artifact.save(stored._replace(theta=changed), file)
    with pytest.raises(InputError, match=r"mgdd\.generator's contents = "):
        jobs.run(other, Reporter())


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator_width": 8}, "has width 4, not 8: give --generator-width 4"),
        ({"zca": True}, "another whitening: leave out --zca"),
        ({"store": "images", "classes": 3}, "add --store generator"),
        ({"labels": "expert"}, "labels are solved for"),
        ({"kind": "pixels"}, "leave out --parametrization"),
    ],
)
def test_runs_that_cannot_be_are_refused(meta, changes, message):
    stored = {n: v for n, v in changes.items() if n not in ("classes", "zca")}
    if changes.get("kind") != "pixels":
        stored = {"generator_width": 4, **stored}
    run = dataclasses.replace(
        meta,
        data=dataclasses.replace(meta.data, zca=changes.get("zca", False)),
        parametrization=Parametrization(**stored),
        mgdd=MGDDOptions(generator=meta.out, classes=changes.get("classes")),
    )
    with pytest.raises(InputError, match=message):
        resolved(run, meta.data.read(0))


@pytest.mark.long
def test_files_without_a_fitting_generator_are_refused(meta, tmp_path):
    with pytest.raises(InputError, match="is for 3 channels, images have 4"):
        load_generator(meta.out, 4, 4, whitened=False)
    with pytest.raises(InputError, match="there is no artifact"):
        load_generator(tmp_path / "none", 1, 4, whitened=False)
    (tmp_path / "cut.safetensors").write_bytes(
        (meta.out / "artifact.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(InputError, match="cut"):
        load_generator(tmp_path / "cut.safetensors", 1, 4, whitened=False)
    stored = artifact.load(meta.out)
    plain = {name: x for name, x in stored.theta.items() if name != "decoder"}
    header = {**stored.header["parametrization"], "store": "images"}
    made = stored._replace(theta=plain, header={**stored.header, "parametrization": header})
    artifact.save(made, tmp_path / "images.safetensors")
    with pytest.raises(InputError, match="holds no generator"):
        load_generator(tmp_path / "images.safetensors", 1, 4, whitened=False)
