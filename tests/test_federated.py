"""d3jax.distill.sharded: subtasks over devices against the same subtasks alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE_SHAPE, NUM_CLASSES, make_real, to_float64

from d3jax import distill, experts, networks
from d3jax.distill import metrics, sharded
from d3jax.distill.metrics import METRICS
from d3jax.experts.store import Snapshots
from d3jax.host.processes import everywhere
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.methods.mtt import MTTOptions, mtt
from d3jax.synthetic import pixels

SEED, CHUNK = 7, 10
SUBTASKS = (3, 0, 4, 1, 2)  # five over four devices: two rows each, three of which only fill up


NETWORK = networks.create("mlp", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=4)


@pytest.fixture(scope="module")
def method():
    data = pixels.create(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=6)
    options = MTTOptions(
        inner_steps=2, max_start_epoch=2, inner_batch_size=4, inner_augmentation=("flip",)
    )
    return mtt(NETWORK, data, options, 2 * CHUNK)


@pytest.fixture(scope="module")
def reals():
    return {n: jax.tree.map(np.asarray, make_real(NETWORK, n)) for n in SUBTASKS}


def run(program, steps=2 * CHUNK):
    """The whole state after so many steps, as NumPy arrays, and the last chunk."""
    state, chunk = program.start(), None
    for until in range(min(CHUNK, steps), steps + 1, CHUNK):
        chunk = program.function(*program.arguments(state, until))
        state = chunk.state
    return everywhere(state), everywhere(chunk)


def rows(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def over_four(method, reals):
    """All subtasks over four devices, after 20 steps."""
    slots = sharded.Slots(SUBTASKS, sharded.make_mesh())
    assert (slots.mesh.size, slots.number) == (4, 8)
    program = sharded.program(method, slots, slots.stack(reals.get), SEED, CHUNK)
    return (slots, program, *run(program))


@pytest.fixture(scope="module")
def one_by_one(method, reals):
    """Each of three subtasks alone on one device, after 20 steps, as a plain run does it."""
    chunk = jax.jit(distill.chunk_function(method, CHUNK))
    states = {}
    for n in SUBTASKS[:3]:
        for_start, for_steps = jax.random.split(stage_key(SEED, Stage.DISTILL, n))
        state = jax.jit(method.init)(for_start, reals[n])
        for _ in range(2):
            state = chunk(for_steps, state, reals[n], jnp.int32(CHUNK)).state
        states[n] = jax.tree.map(np.asarray, state)
    return states


def test_rows_of_a_mesh_equal_runs_of_each_alone(method, reals, over_four, one_by_one):
    """Bit for bit: plain runs on one device, and runs alone over the same mesh."""
    slots, _, state, chunk = over_four
    for row, n in enumerate(SUBTASKS[:3]):
        assert_equal(rows(state, row), one_by_one[n])
    np.testing.assert_array_equal(state.step[:5], 20)
    np.testing.assert_array_equal(chunk.done, [10] * 5 + [0] * 3)
    assert chunk.finite.all()
    for row in (0, 4):
        alone = sharded.Slots((SUBTASKS[row],), slots.mesh)
        program = sharded.program(method, alone, alone.stack(reals.get), SEED, CHUNK)
        assert_equal(rows(run(program)[0], 0), rows(state, row))


def test_one_device_one_after_another_equals_plain_runs(method, reals, one_by_one):
    """Bit for bit: the loop over subtasks adds nothing."""
    slots = sharded.Slots(SUBTASKS[:3], sharded.make_mesh(jax.devices()[:1]))
    program = sharded.program(method, slots, slots.stack(reals.get), SEED, CHUNK)
    state, _ = run(program)
    for row, n in enumerate(slots.subtasks):
        assert_equal(rows(state, row), one_by_one[n])


@pytest.mark.long
def test_devices_and_vmap_equal_plain_runs_to_rounding(method, reals):
    """In float64, where rounding is small enough to be told from a mistake."""
    with jax.enable_x64(True):
        doubles = {n: to_float64(real) for n, real in reals.items()}
        found = []
        for devices, together in ((4, False), (2, True), (1, False)):
            slots = sharded.Slots(SUBTASKS, sharded.make_mesh(jax.devices()[:devices]))
            real = slots.stack(lambda n: jax.tree.map(np.asarray, doubles[n]))
            program = sharded.program(method, slots, real, SEED, CHUNK, together=together)
            found.append(rows(run(_in_float64(program), 2)[0], slice(len(SUBTASKS))))
        for other in found[:2]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), other, found[2]
            )


def _in_float64(program):
    start = program.start
    return program._replace(start=lambda: to_float64(start()))


def test_no_collective_in_the_compiled_chunk(over_four):
    program = over_four[1]
    text = program.function.lower(*program.arguments(program.start(), CHUNK)).compile().as_text()
    assert "num_partitions=4" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_devices(method, reals, over_four, tmp_path):
    """Four, three, four: where a row is does not matter, nor how many only fill up."""
    for steps, devices in ((3, 4), (7, 3), (2 * CHUNK, 4)):
        slots = sharded.Slots(SUBTASKS, sharded.make_mesh(jax.devices()[:devices]))
        program = sharded.program(method, slots, slots.stack(reals.get), SEED, CHUNK)
        state = drive(program, tmp_path, steps)
        assert state.step.shape == (slots.number,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        slots.rows(state).theta, slots.rows(over_four[2]).theta,
    )  # fmt: skip
    for n in SUBTASKS:
        steps = [row["step"] for row in metrics.read(tmp_path / str(n) / METRICS)]
        assert steps == list(range(1, 2 * CHUNK + 1))


def drive(program, path, steps):
    for n in SUBTASKS:
        (path / str(n)).mkdir(exist_ok=True)
    return distill.drive(
        program, steps=steps, directories=[path / str(n) for n in SUBTASKS],
        checkpoints=path / "checkpoints", reporter=Reporter(), chunk=CHUNK, checkpoint_minutes=5.0,
    )  # fmt: skip


@pytest.mark.long
def test_one_that_is_not_finite_stops_alone(method, reals):
    """The others finish their chunk; nothing of it reaches them."""
    slots = sharded.Slots((0, 1), sharded.make_mesh(jax.devices()[:2]))
    bad = reals[1]._replace(trajectories=np.full_like(reals[1].trajectories, np.nan))
    real = slots.stack({0: reals[0], 1: bad}.get)
    program = sharded.program(method, slots, real, SEED, CHUNK)
    chunk = run(program, CHUNK)[1]
    np.testing.assert_array_equal(chunk.finite, [True, False])
    np.testing.assert_array_equal(chunk.done, [10, 1])
    np.testing.assert_array_equal(chunk.state.step, [10, 0])


@pytest.mark.long
def test_experts_side_by_side_equal_experts_alone(reals, tmp_path):
    """On one device bit for bit, over devices to rounding; snapshots of each in its own folder."""
    options = experts.Options(
        count=3, epochs=2, at_once=2, batch_size=8, learning_rate=0.1, augmentation=("flip",),
        momentum=0.5, schedule="cosine",
    )  # fmt: skip
    parameters = experts.number_of_parameters(NETWORK)
    chosen = SUBTASKS[:3]
    images = {n: reals[n]._replace(number=np.int32(len(reals[n].labels))) for n in chosen}
    found = {}
    for devices in (1, 2):
        slots = sharded.Slots(chosen, sharded.make_mesh(jax.devices()[:devices]))
        training = sharded.training(NETWORK, options, slots, slots.stack(images.get), SEED)
        paths = {n: tmp_path / f"{devices}-{n}" for n in chosen}
        for path in paths.values():
            path.mkdir()
        experts.train_side_by_side(training, options, parameters, paths, Reporter())
        found[devices] = {n: Snapshots(path).read_all() for n, path in paths.items()}
    for n in chosen[1:2]:  # each compiles anew
        root = stage_key(SEED, Stage.EXPERTS, n)
        real = jax.tree.map(jnp.asarray, images[n])
        path = tmp_path / f"alone-{n}"
        path.mkdir()
        alone = experts.alone(NETWORK, options, real, root)
        experts.train_side_by_side(alone, options, parameters, {0: path}, Reporter())
        expected = Snapshots(path).read_all()
        assert (expected[:, 0] != expected[:, 2]).any()
        np.testing.assert_array_equal(found[1][n], expected)
        np.testing.assert_allclose(found[2][n], expected, rtol=1e-4, atol=1e-5)
        assert experts.complete(path)
