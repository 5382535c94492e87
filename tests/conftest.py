import os
from importlib.metadata import version

# Tests compile more than they compute; processes that they start inherit this. Kernels by LLVM
# alone, in one module, take a fourth of the time; a later jaxlib ends at a flag that it has not.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        *(
            ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
            if version("jaxlib").startswith("0.10.")
            else ()
        ),
    )
)

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 4)  # before the backend starts: meshes on a CPU

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

from d3jax import networks  # noqa: E402
from d3jax.types import Real  # noqa: E402

IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 3


# Files with the longest tests: begun first, so that neither process waits for the other at the end.
LONG = (
    "test_registry",
    "test_accelerator",
    "test_launch",
    "test_joining",
    "test_cli",
    "test_methods",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)  # stable


@pytest.fixture(scope="session")
def tiny_network():
    """A smooth student: its derivatives agree with finite differences."""
    return networks.create(
        "convnet", image_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES, width=3, depth=1,
        activation=jnp.tanh,
    )  # fmt: skip


def random_params(init, seed=0):
    """What `init` would make, in shape and size, without compiling it."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(generator.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(0)))


def make_real(network, seed, counts=(3, 4, 5), experts=2, epochs=3):
    """Random images of `len(counts)` unequal classes, and random walks as expert trajectories."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    longest = max(counts)
    index = np.zeros((len(counts), longest), np.int32)
    for k in range(len(counts)):
        positions = np.flatnonzero(labels == k)
        index[k] = positions[0]
        index[k, : len(positions)] = positions
    starts = np.stack(
        [ravel_pytree(random_params(network.init, seed + e))[0] for e in range(experts)]
    )
    walks = generator.normal(size=(experts, epochs + 1, starts.shape[1])) * 0.1
    walks[:, 0] = starts
    return Real(
        images=jnp.asarray(generator.integers(0, 256, (len(labels), *IMAGE_SHAPE)), jnp.uint8),
        labels=jnp.asarray(labels, jnp.int32),
        class_index=jnp.asarray(index),
        class_counts=jnp.asarray(counts, jnp.int32),
        mean=jnp.asarray([0.4], jnp.float32),
        sd=jnp.asarray([0.3], jnp.float32),
        trajectories=jnp.asarray(np.cumsum(walks, 1), jnp.float32),
    )


def to_float64(tree):
    """Floats of a pytree in float64; to be called within `jax.enable_x64(True)`."""

    def cast(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def directional_difference(function, tree, direction, step):
    """(f(x + s d) - f(x - s d)) / 2s."""

    def moved(by):
        return jax.tree.map(lambda x, d: x + by * d, tree, direction)

    return float(function(moved(step)) - function(moved(-step))) / (2 * step)


def check_gradient(function, tree, seed=0, step=1e-5, tolerance=1e-6, absent=()):
    """The gradient of `function` in each group of the dict `tree` against central differences.

    Along one random direction a group; every group has to matter, but those in `absent`.
    """
    both = jax.jit(jax.value_and_grad(function))  # one compilation for all
    gradient = both(tree)[1]
    generator = np.random.default_rng(seed)
    still = jax.tree.map(jnp.zeros_like, tree)
    for group in sorted(set(tree) - set(absent)):
        random = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape)), tree[group])
        moves = {**still, group: random}
        expected = directional_difference(lambda x: both(x)[0], tree, moves, step)
        products = jax.tree.map(jnp.vdot, gradient[group], random)
        actual = sum(float(product) for product in jax.tree.leaves(products))
        assert abs(expected) > 1e-8, f"{group}: nothing to compare"
        np.testing.assert_allclose(actual, expected, rtol=tolerance, err_msg=group)
    for group in absent:
        jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradient[group])


@pytest.fixture(scope="session")
def tiny_real(tiny_network):
    return make_real(tiny_network, 0)
