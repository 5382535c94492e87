"""The contract test: what every method promises. A new method is one more entry of METHODS."""

import inspect
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    check_gradient,
    make_real,
    random_params,
    to_float64,
)
from jax.sharding import AxisType, PartitionSpec

from d3jax import networks
from d3jax.methods import registry
from d3jax.methods.d3 import D3Options, d3
from d3jax.methods.dd import DDOptions, dd
from d3jax.methods.frepo import FRePoOptions, frepo
from d3jax.methods.mgdd import MGDDOptions, mgdd
from d3jax.methods.mtt import MTTOptions, mtt
from d3jax.synthetic import gaussian, generated, pixels, spectral
from d3jax.types import InputError, Method, State


def _d3(network, stored=None, **options):
    data = gaussian.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, latents_per_class=2, latent_size=4,
        width=8, **(stored or {}),
    )  # fmt: skip
    sizes = {"inner_steps": 2, "max_start_epoch": 2, "mmd_samples": 3}
    return d3(network, data, D3Options(**sizes, **options), outer_steps=10)


def _dd(network, label_kind="hard", initialization=None, attack=None, **options):
    data = pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=6, label_kind=label_kind
    )
    sizes = {"steps": 2, "passes": 2, "networks": 2, "real_batch": 4}
    return dd(
        network, data, DDOptions(**{**sizes, **options}), 10, initialization=initialization,
        attack=attack, weights_key=jax.random.key(1),
    )  # fmt: skip


def _spectral(label_kind="hard"):
    return spectral.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, spectra_per_class=1, transformations=2,
        rank=3, label_kind=label_kind,
    )  # fmt: skip


def _mtt(network, label_kind="hard", data=None, expert_labels=False, **options):
    data = data or pixels.create(
        image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, num_items=6, label_kind=label_kind
    )
    sizes = {"inner_steps": 2, "max_start_epoch": 2, "inner_augmentation": ("color", "flip")}
    options = MTTOptions(**{**sizes, **options})
    return mtt(network, data, options, outer_steps=10, expert_labels=expert_labels)


def _mgdd(network, **options):
    data = generated.create(**registry.TINY, num_items=6, generator_width=4, label_kind="solved")
    return mgdd(network, data, MGDDOptions(pool=2, network_steps=2, real_batch=8, **options))


def skeleton():
    """The method that docs shows, as printed there; registered while it is looked at."""
    text = (Path(__file__).parent.parent / "docs" / "add-a-method.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1]


def _skeleton(network):
    room: dict = {"__name__": "skeleton"}
    exec(compile(skeleton(), "add-a-method.md", "exec"), room)
    registry.METHODS._specs.pop(room["SPEC"].name)
    return room["SPEC"].tiny(network)


# name: network -> Method, tiny, on images of conftest.IMAGE_SHAPE. To register is to be tested; the
# other rows are of options, and long, as mgdd's is.
METHODS = {name: spec.tiny for name, spec in registry.METHODS.items()} | {
    "skeleton": _skeleton,
    "d3-options": lambda network: _d3(
        network,
        {
            **{"label_kind": "logits", "variance": "class", "rounding": "int8"},
            **{"start": "real", "start_steps": 2, "class_embedding": True},
        },
        inner_batch_size=4,
        inner_augmentation=("color", "flip"),
        latent_optimizer="adam",
        schedule="cosine",
        mmd_epoch=2,
        mmd_classes=1,
        mmd_experts=2,
        mmd_bandwidth="median",
        mmd_augmentation=("color",),
        mmd_weight=0.5,
        kernel_ridge=True,
        kernel_ridge_images=4,
        optimizer_states="separate",
    ),
}
METHODS |= {
    "dd-options": lambda network: _dd(
        network, label_kind="free", init="fixed", window=2, inner_optimizer="adam", clip=1.0,
        shared_learning_rate=True,
    ),
    "dd-pretrained": lambda network: _dd(network, initialization="pretrained", attack=(0, 2)),
    "mtt-options": lambda network: _mtt(
        network, label_kind="logits", gradient="tesla", first_max_start_epoch=1, growth_steps=2,
        inner_batch_size=4, optimizer="sgd", schedule="constant",
    ),
    "frepo-generated": lambda network: frepo(
        network,
        generated.create(**registry.TINY, num_items=3, generator_width=4, label_kind="values"),
        FRePoOptions(pool=1, network_steps=0, real_batch=4),
        outer_steps=10,
    ),
    "mgdd-reptile": lambda network: _mgdd(network, meta="reptile", inner_steps=2),
    "mgdd-maml": lambda network: _mgdd(network, meta="maml", inner_steps=1, classes=2),
    "mtt-spectral": lambda network: _mtt(
        network, data=_spectral("probabilities"), expert_labels=True, inner_augmentation=()
    ),
}  # fmt: skip
KEY = jax.random.key(7)
SUBTASKS = 4


class Case:
    """A method, the real data of its subtasks, and what is compiled once for all tests."""

    def __init__(self, build, network):
        self.method = build(network)
        self.reals = [
            make_real(network, seed, counts)._replace(number=jnp.asarray(sum(counts), jnp.int32))
            for seed, counts in enumerate([(3, 4, 5), (5, 5, 2), (4, 5, 3), (2, 5, 5)])
        ]
        self.keys = jax.random.split(KEY, SUBTASKS)
        self.init = jax.jit(self.method.init)
        # One compilation for all tests, and all values: a second trace fails. (chex counts by
        # where a function is defined, which is the same place for all methods.)
        chex.clear_trace_counter()
        self.step = jax.jit(chex.assert_max_traces(self.method.step, n=1))
        self.starts = [self.init(key, real) for key, real in zip(self.keys, self.reals)]

    def run(self, subtask, steps):
        state, history = self.starts[subtask], []
        for _ in range(steps):
            state, metrics = self.step(self.keys[subtask], state, self.reals[subtask])
            history.append(metrics)
        return state, history

    def stacked(self):
        """(keys, starts, reals), each with a leading axis of subtasks."""

        def stack(trees):
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

        return self.keys, stack(self.starts), stack(self.reals)


def _param(name):
    short = name == "skeleton" or (name in registry.METHODS and name != "mgdd")
    return name if short else pytest.param(name, marks=pytest.mark.long)


@pytest.fixture(scope="module", params=map(_param, METHODS))
def case(request, tiny_network):
    name = request.param.partition("-")[0]
    spec = registry.METHODS[name if name in registry.METHODS else "d3"]
    if spec.norm != "instance":
        tiny_network = networks.create(
            "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=3, depth=1,
            norm=spec.norm, activation=jnp.tanh,
        )  # fmt: skip
    return Case(METHODS[request.param], tiny_network)


def test_signature(case):
    assert isinstance(case.method, Method)
    assert list(inspect.signature(case.method.init).parameters) == ["key", "real"]
    assert list(inspect.signature(case.method.step).parameters) == ["key", "state", "real"]
    state = case.starts[0]
    assert isinstance(state, State)
    assert state.step.dtype == jnp.int32
    assert len(state.aux) == len(case.method.objectives)
    moved = {group for objective in case.method.objectives for group in objective.updates}
    assert set(state.optimizer) == moved <= set(state.theta)
    assert len({objective.name for objective in case.method.objectives}) == len(state.aux)
    items = (case.method.synthetic.num_items, *IMAGE_SHAPE)
    batch = jax.eval_shape(case.method.synthetic.sample, state.theta, KEY)
    assert batch.images.shape == items
    assert batch.targets.shape == (items[0], NUM_CLASSES)


def test_types_are_stable(case):
    def types(tree):
        tree = jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), tree)
        return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple)), tree

    start = jax.eval_shape(case.method.init, KEY, case.reals[0])
    # A seed stands for its key.
    after, metrics = jax.eval_shape(
        lambda state, real: case.method.step(7, state, real), start, case.reals[0]
    )
    assert types(after) == types(start)
    for metric in metrics.values():
        assert metric.shape == ()


def test_one_compilation_finite_values_and_movement(case):
    state, history = case.run(0, 3)
    case.run(1, 1)
    assert case.step._cache_size() == 1
    assert state.step == 3
    chex.assert_tree_all_finite((state.theta, state.optimizer, history))
    for objective in case.method.objectives:
        for group in objective.updates:
            before, after = case.starts[0].theta[group], state.theta[group]
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before, after)
            assert any(jax.tree.leaves(moved))
    still = set(state.theta) - set(state.optimizer)
    chex.assert_trees_all_equal(
        [state.theta[g] for g in still], [case.starts[0].theta[g] for g in still]
    )


def test_resumed_equals_uninterrupted(case):
    whole, _ = case.run(0, 3)
    state, _ = case.run(0, 2)
    leaves, structure = jax.tree.flatten(state)
    stored = [np.asarray(leaf).copy() for leaf in leaves]  # what a checkpoint keeps
    restored = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in stored])
    resumed, _ = case.step(case.keys[0], restored, case.reals[0])
    chex.assert_trees_all_equal(resumed, whole)


def test_images_that_pad_a_subtask_change_nothing(case):
    """As where subtasks of unequal size are stacked: `number` says how many images are real."""
    real = case.reals[0]
    generator, first = np.random.default_rng(0), real.class_index[:, :1]
    images = jnp.asarray(generator.integers(0, 256, (40, *IMAGE_SHAPE)), jnp.uint8)
    padded = real._replace(
        images=jnp.concatenate([real.images, images]),
        labels=jnp.pad(real.labels, (0, len(images))),
        class_index=jnp.concatenate([real.class_index, first, first], axis=1),
    )

    init, step = jax.jit(case.method.init), jax.jit(case.method.step)
    for key in case.keys[:2]:
        plain = case.step(key, case.init(key, real), real)
        chex.assert_trees_all_equal(step(key, init(key, padded), padded), plain)


def _mesh():
    devices = jax.devices()[: min(2, len(jax.devices()))]
    return jax.make_mesh((len(devices),), ("subtask",), (AxisType.Auto,), devices=devices)


def test_subtasks_sharded_and_under_vmap_equal_separate_runs(case):
    # In float64: what normalization makes irrelevant (a bias before it) has rounding errors for
    # gradients, which Adam would blow up to whole steps.
    with jax.enable_x64(True):
        keys, states, reals = case.stacked()
        states, reals = to_float64((states, reals))
        spread, step = PartitionSpec("subtask"), jax.jit(case.method.step)
        together = jax.jit(
            jax.shard_map(
                jax.vmap(case.method.step), mesh=_mesh(), in_specs=spread, out_specs=spread
            )
        )(keys, states, reals)
        for subtask in range(SUBTASKS):
            arguments = jax.tree.map(lambda x, i=subtask: x[i], (keys, states, reals))
            picked = jax.tree.map(lambda x, i=subtask: x[i], together)
            chex.assert_trees_all_close(picked, step(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.long
def test_subtasks_may_be_sharded_one_after_another_and_seeds_on_the_same_data(case):
    spread = PartitionSpec("subtask")
    keys, states, reals = case.stacked()

    def turns(keys, states, reals):
        return jax.lax.map(lambda x: case.method.step(*x), (keys, states, reals))

    step = jax.shard_map(turns, mesh=_mesh(), in_specs=spread, out_specs=spread)
    assert jax.eval_shape(step, keys, states, reals)[0].step.shape == (SUBTASKS,)
    step = jax.shard_map(
        jax.vmap(case.method.step, in_axes=(0, 0, None)),
        mesh=_mesh(),
        in_specs=(spread, spread, PartitionSpec()),
        out_specs=spread,
    )
    assert jax.eval_shape(step, keys, states, case.reals[0])[0].step.shape == (SUBTASKS,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory": False, "mmd": False}, "learns nothing; keep one"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, not 0"),
        ({"max_start_epoch": 0}, "max_start_epoch must be at least 1, not 0"),
        ({"mmd_samples": 1}, "mmd_samples must be at least 2, not 1"),
        ({"student_learning_rate": 0.0}, "student_learning_rate must be positive"),
        ({"mmd_weight": 0.0}, "mmd_weight must be positive, not 0.0"),
        ({"kernel_ridge": True, "kernel_ridge_images": 0}, "_images must be at least 1, not 0"),
        ({"mmd_experts": 0}, "mmd_experts must be at least 1, not 0"),
        ({"unroll": True, "unroll_window": 101}, "from 1 to the 100 unroll_steps, not 101"),
        ({"unroll": True, "unroll_optimizer": "adam"}, "add --no-trajectory"),
        ({"unroll": True, "unroll_clip": 0.0}, "unroll_clip must be positive"),
        ({"unroll": True, "inner_batch_size": 2}, "multiple of inner_batch_size 2"),
        ({"unroll": True, "inner_batch_size": 1, "unroll_steps": 20}, "unroll_steps 20 one of"),
    ],
)
def test_d3_refuses_options_that_cannot_be(tiny_network, options, message):
    data = gaussian.create(image_shape=IMAGE_SHAPE, num_classes=3, width=8)
    with pytest.raises(InputError, match=message):
        d3(tiny_network, data, D3Options(**options), outer_steps=1)


def test_d3s_ablations_leave_their_update_out(tiny_network):
    names = [objective.name for objective in _d3(tiny_network).objectives]
    assert names == ["trajectory", "mmd"]
    assert _d3(tiny_network).objectives[1].updates == ("data", "decoder")
    assert [o.name for o in _d3(tiny_network, mmd=False).objectives] == ["trajectory"]
    assert [o.name for o in _d3(tiny_network, trajectory=False).objectives] == ["mmd"]
    made = _d3(tiny_network, unroll=True, kernel_ridge=True)
    assert [o.name for o in made.objectives] == ["trajectory", "unrolled", "kernel_ridge", "mmd"]


def test_gradient_of_d3s_unrolled_training_against_finite_differences(tiny_network, tiny_real):
    """Of latents, decoder, labels and the one learning rate, all steps in the window."""
    method = _d3(
        tiny_network, {"label_kind": "free"}, unroll=True, unroll_steps=4, unroll_window=4,
        unroll_clip=None, unroll_real_batch=5, trajectory=False, mmd=False, inner_batch_size=3,
        student_learning_rate=0.1,
    )  # fmt: skip
    (objective,) = method.objectives
    assert objective.updates == ("data", "decoder", "labels", "learning_rates")
    with jax.enable_x64(True):
        theta = random_params(lambda key: method.init(key, tiny_real).theta)
        theta = {**theta, "learning_rates": jnp.log(jnp.asarray(0.1))}
        theta, real = to_float64((theta, tiny_real))

        def loss(theta):
            sample, step = method.synthetic.sample, jnp.asarray(0, jnp.int32)
            return objective.loss(theta, sample, (), step, jax.random.key(5), real)[0]

        check_gradient(loss, theta, step=1e-6, tolerance=2e-5)


@pytest.mark.long
def test_inner_loops_learn_labels_and_the_learning_rate_in_turn(tiny_network, tiny_real):
    """Trajectory matching and unrolled training; the MMD moves neither."""
    method = _d3(
        tiny_network, {"label_kind": "logits"}, unroll=True, unroll_steps=2, unroll_window=1,
        unroll_real_batch=4,
    )  # fmt: skip
    state = jax.jit(method.init)(KEY, tiny_real)
    after, metrics = jax.jit(method.step)(KEY, state, tiny_real)
    for name in ("trajectory", "unrolled"):
        for group in ("data", "decoder", "labels", "learning_rates"):
            assert metrics[f"{name}/update_{group}"] > 0
    assert "mmd/update_labels" not in metrics
    # SGD with momentum: the second update goes on with half of the first.
    travelled = float(after.theta["learning_rates"] - state.theta["learning_rates"])
    moves = [float(metrics[f"{n}/update_learning_rates"]) for n in ("trajectory", "unrolled")]
    sums = [a * moves[0] + b * moves[1] for a in (1, -1) for b in (1, -1)]
    assert min(abs(travelled - total) for total in sums) < 1e-6
    assert after.theta["learning_rates"].shape == ()


@pytest.mark.long
@pytest.mark.parametrize("states", ["shared", "separate"])
def test_d3s_cosine_ends_with_the_run(tiny_network, tiny_real, states):
    data = gaussian.create(image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=8)
    options = D3Options(inner_steps=1, max_start_epoch=1, mmd_samples=2, optimizer_states=states)
    method = d3(tiny_network, data, options, outer_steps=2)
    state, step, moved = jax.jit(method.init)(KEY, tiny_real), jax.jit(method.step), []
    for _ in range(3):
        state, metrics = step(KEY, state, tiny_real)
        moved.append({n: float(v) for n, v in metrics.items() if "/update_d" in n})
    groups = ("data", "decoder")
    assert set(moved[0]) == {f"{n}/update_{g}" for n in ("trajectory", "mmd") for g in groups}
    assert min(moved[1].values()) > 0
    assert max(moved[2].values()) == 0  # the step after the last
