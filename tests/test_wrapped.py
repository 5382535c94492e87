"""A user's own module, Linen and NNX, against Flax's own calls and against NumPy."""

import re
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import check_gradient, random_params, to_float64
from flax import nnx
from jax.flatten_util import ravel_pytree

from d3jax import networks
from d3jax.networks.own import definition, load_network
from d3jax.networks.wrapped import wrap
from d3jax.types import InputError, Network

SHAPE = (6, 6, 2)


class LinenNet(nn.Module):
    running: bool | None = False
    dropout: bool = True  # off, that is

    @nn.compact
    def __call__(self, images, scale=1.0):
        x = nn.Conv(4, (3, 3))(images * scale)
        x = nn.BatchNorm(use_running_average=self.running, epsilon=1e-3)(x)
        x = nn.avg_pool(nn.tanh(x), (2, 2), (2, 2))
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=self.running, use_bias=False)(x)
        x = nn.Dropout(0.5, deterministic=self.dropout)(nn.tanh(x))
        return nn.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs, running=False, dropout=True):
        self.convs = nnx.List([nnx.Conv(2, 4, (3, 3), rngs=rngs)])
        self.norm = nnx.BatchNorm(4, use_running_average=running, epsilon=1e-3, rngs=rngs)
        self.hidden = nnx.Linear(36, 5, rngs=rngs)
        self.other = nnx.BatchNorm(5, use_running_average=running, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=dropout, rngs=rngs)
        self.classifier = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        x = nn.tanh(self.norm(self.convs[0](images)))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.other(self.hidden(x.reshape(x.shape[0], -1)))
        return self.classifier(self.dropout(nn.tanh(x)))


def as_nnx(params):
    """The parameters of a LinenNet by their names in an NnxNet."""
    return {
        "convs": {"0": params["Conv_0"]},
        "norm": params["BatchNorm_0"],
        "hidden": params["Dense_0"],
        "other": params["BatchNorm_1"],
        "classifier": params["Dense_1"],
    }


@pytest.fixture(scope="module")
def linen():
    return wrap(LinenNet(), image_shape=SHAPE)


@pytest.fixture(scope="module")
def params(linen):
    return random_params(linen.init)


@pytest.fixture(scope="module")
def both(linen, params):
    """Each kind of module: (network, the same weights)."""
    found = wrap(NnxNet, image_shape=SHAPE)
    shapes = jax.eval_shape(found.init, jax.random.key(0))
    own = as_nnx(params)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, shapes)
    return {"linen": (linen, params), "nnx": (found, own)}


def images_of(number, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, *SHAPE)), jnp.float32)


def normalized(x, statistics, scale, bias, epsilon):
    mean, variance = statistics
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def in_numpy(params, images, frozen=(None, None)):
    """(logits, features, statistics of this batch) of LinenNet in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    images = np.asarray(images, np.float64)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = np.empty((*images.shape[:3], 4))
    for i, j in np.ndindex(images.shape[1:3]):
        window = padded[:, i : i + 3, j : j + 3]
        x[:, i, j] = np.tensordot(window, params["Conv_0"]["kernel"], 3) + params["Conv_0"]["bias"]
    first = x.mean((0, 1, 2)), x.var((0, 1, 2))
    norm = params["BatchNorm_0"]
    x = np.tanh(normalized(x, frozen[0] or first, norm["scale"], norm["bias"], 1e-3))
    x = x.reshape(-1, 3, 2, 3, 2, 4).mean((2, 4)).reshape(len(x), -1)
    x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    second = x.mean(0), x.var(0)
    x = np.tanh(normalized(x, frozen[1] or second, params["BatchNorm_1"]["scale"], 0, 1e-5))
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"], x, (first, second)


def close(found, expected):
    def compare(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    jax.tree.map(compare, tuple(found), tuple(expected))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_outputs_are_those_of_numpy(kind, both, params):
    network, own = both[kind]
    images = images_of(7)
    close(jax.jit(network.forward)(own, images), in_numpy(params, images))


@pytest.fixture
def as_flax_expects():
    """Flax's own pooling needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("as_flax_expects")
def test_logits_are_those_of_flax(both, params):
    images = images_of(7)
    state = {"batch_stats": LinenNet().init(jax.random.key(0), images)["batch_stats"]}
    plain, _ = LinenNet().apply({"params": params, **state}, images, mutable=["batch_stats"])
    net = NnxNet(nnx.Rngs(0))
    nnx.replace_by_pure_dict(
        state := nnx.state(net, nnx.Param), {**as_nnx(params), "convs": {0: params["Conv_0"]}}
    )
    nnx.update(net, state)
    for network, own in both.values():
        found = network.apply(own, images)
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found, net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_frozen_statistics_make_images_independent_of_their_neighbours(kind, both, params):
    network, own = both[kind]
    forward, images = jax.jit(network.forward), images_of(7)
    _, _, frozen = in_numpy(params, images_of(9, seed=1))
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), frozen)
    together = forward(own, images, statistics=given)
    alone = forward(own, images[:2], statistics=given)
    close(together, in_numpy(params, images, frozen))  # with the statistics of this batch
    np.testing.assert_allclose(alone.logits, together.logits[:2], rtol=1e-5, atol=1e-6)
    assert np.abs(forward(own, images[:2]).logits - forward(own, images).logits[:2]).max() > 1e-2
    for wrong in (given[:1], (*given, given[0])):
        with pytest.raises(InputError, match=f"than the {len(wrong)} for which there are stat"):
            network.forward(own, images, statistics=wrong)


@pytest.mark.parametrize("make", [lambda r: LinenNet(r), lambda r: lambda rngs: NnxNet(rngs, r)])
def test_a_module_has_no_say_in_running_averages(make):
    networks = [wrap(make(running), image_shape=SHAPE) for running in (False, True)]
    params = random_params(networks[0].init)
    close(*(network.forward(params, images_of(5)) for network in networks))


def test_the_users_module_is_left_as_it_was(linen, params):
    module = LinenNet()
    linen.forward(params, images_of(2))
    assert module.running is False
    net = NnxNet(nnx.Rngs(0))
    network = wrap(net, image_shape=SHAPE)
    network.forward(network.init(jax.random.key(0)), images_of(2))
    assert type(net.hidden) is nnx.Linear
    np.testing.assert_array_equal(net.norm.mean[...], 0)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_gradients_and_their_gradients(kind, both):
    network, own = both[kind]
    with jax.enable_x64(True):
        own, images = to_float64((own, images_of(4)))

        def loss(params, images):
            logits, features, _ = network.forward(params, images)
            return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]) + jnp.mean(features**3)

        def gradient_norm(params, images):
            gradient, _ = ravel_pytree(jax.grad(loss)(params, images))
            return jnp.sum(gradient**2)

        tree = {"params": own, "images": images}
        for function in (loss, gradient_norm):
            check_gradient(lambda tree, f=function: f(tree["params"], tree["images"]), tree)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_seeds_train_together_as_they_do_alone(kind, both):
    network, _ = both[kind]
    images, targets = images_of(6), jnp.eye(3)[jnp.arange(6) % 3]

    def loss(params):
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(network.apply(params, images)), 1))

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient), value

    keys = jax.random.split(jax.random.key(1), 3)
    trained, losses = jax.jit(
        jax.vmap(lambda key: jax.lax.scan(step, network.init(key), None, length=3))
    )(keys)
    assert len({round(float(value), 6) for value in losses[:, 0]}) == 3  # each starts elsewhere
    assert (losses[:, -1] < losses[:, 0]).all()
    for number, key in enumerate(keys):
        params = network.init(key)
        for _ in range(3):
            params, _ = jax.jit(step)(params, None)
        own = jax.tree.map(lambda x, n=number: x[n], trained)
        np.testing.assert_allclose(ravel_pytree(own)[0], ravel_pytree(params)[0], atol=1e-5)
    vector, _ = ravel_pytree(params)
    jax.tree.map(np.testing.assert_array_equal, networks.unraveler(network)(vector), params)


@pytest.mark.usefixtures("as_flax_expects")
def test_weights_are_drawn_as_flax_draws_them(both):
    key, images = jax.random.key(3), jnp.zeros((1, *SHAPE))
    own = LinenNet().init(key, images)["params"]
    jax.tree.map(np.testing.assert_array_equal, both["linen"][0].init(key), own)
    found = both["nnx"][0].init(key)["hidden"]["kernel"]
    np.testing.assert_array_equal(found, NnxNet(nnx.Rngs(key)).hidden.kernel[...])


def test_an_instance_gives_its_own_weights_for_every_key():
    net = NnxNet(nnx.Rngs(0))
    network = wrap(net, image_shape=SHAPE)
    stacked = jax.vmap(network.init)(jax.random.split(jax.random.key(5), 2))
    for number in range(2):
        found = stacked["classifier"]["kernel"][number]
        np.testing.assert_array_equal(found, net.classifier.kernel[...])


@pytest.mark.parametrize(
    ("module", "name"),
    [(LinenNet(), "Dense_0"), (NnxNet, "hidden"), (NnxNet, "convs.0"), (LinenNet(), "Conv_0")],
)
def test_features_are_the_output_of_the_layer_that_is_named(module, name, params):
    own = params if isinstance(module, nn.Module) else as_nnx(params)
    network, images = wrap(module, image_shape=SHAPE, features=name), images_of(3)
    found = network.forward(own, images)
    if name in ("Dense_0", "hidden"):  # before batch norm and tanh
        kernel = params["Dense_1"]["kernel"]
        _, _, (_, statistics) = in_numpy(params, images)
        x = np.asarray(found.features)
        close((x.mean(0), x.var(0)), statistics)
        x = np.tanh(normalized(x, statistics, params["BatchNorm_1"]["scale"], 0, 1e-5))
        expected = x @ kernel + params["Dense_1"]["bias"]
        np.testing.assert_allclose(found.logits, expected, rtol=1e-4, atol=1e-5)
    else:
        _, _, (statistics, _) = in_numpy(params, images)
        x = np.asarray(found.features).reshape(-1, 4)
        close((x.mean(0), x.var(0)), statistics)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_bfloat16_computes_coarsely_and_keeps_float32(kind, both):
    fine, own = both[kind]
    coarse = wrap(LinenNet() if kind == "linen" else NnxNet, image_shape=SHAPE, compute="bfloat16")
    images = images_of(8)
    float32 = {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(coarse.init(jax.random.key(0)))} == float32
    found, expected = coarse.forward(own, images), fine.forward(own, images)
    assert {x.dtype for x in jax.tree.leaves(found)} == float32
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_the_example_of_the_docstring_runs():
    code = re.search(r"```python\n(.*?)```", networks.wrap.__doc__, re.DOTALL)
    names = {"nn": nn, "jax": jax, "wrap": wrap, "images": jnp.ones((5, 28, 28, 1))}
    exec(textwrap.dedent(code[1]), names)
    assert (names["logits"].shape, names["features"].shape) == ((5, 10), (5, 14 * 14 * 16))


# What is refused


def flax_module(body, **attributes):
    """A Linen module whose call is `body`."""
    return type("Odd", (nn.Module,), {"__call__": nn.compact(body), **attributes})()


def flat(x):
    return x.reshape(x.shape[0], -1)


class OddNnx(nnx.Module):
    """An NNX module of one linear layer, with something more."""

    def __init__(self, rngs, more=None):
        self.out, self.rngs = nnx.Linear(72, 3, rngs=rngs), rngs
        if more is not None:
            self.more = more

    def __call__(self, images):
        return self.out(flat(images))


class Drawing(OddNnx):
    def __call__(self, images):
        return self.out(flat(images)) + jax.random.normal(self.rngs(), (3,))


class InnerNnx(OddNnx):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, images):
        return super().__call__(nnx.remat(lambda norm, x: norm(x))(self.norm, images))


class Tuple(OddNnx):
    def __call__(self, images):
        return super().__call__(images), images


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


class Cached(nn.Module):
    @nn.compact
    def __call__(self, images):
        self.variable("cache", "mean", jnp.zeros, (3,))
        return nn.Dense(3)(flat(images))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.SpectralNorm(nn.Dense(3))(flat(images), update_stats=False)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (3, {}, "a network is a Flax module, or a callable .* not a int"),
        (LinenNet, {}, "not the class LinenNet"),
        (lambda rngs: [], {}, "makes a list of its rngs, not an NNX module"),
        (lambda: None, {}, "cannot be called with images of shape 6x6x2 alone: TypeError"),
        (LinenNet(), {"compute": "int8"}, "unknown compute 'int8'; known: float32, bfloat16"),
        (LinenNet(), {"features": "Dense_7"}, "has no layer 'Dense_7' .* it calls Conv_0, Batch"),
        (NnxNet, {"features": "head"}, "has no layer 'head' .* it calls convs/0, norm, hidden"),
        (LinenNet(dropout=False), {}, "dropout that is on.* give it deterministic=True or a rate"),
        (lambda r: NnxNet(r, dropout=False), {}, "dropout that is on"),
        (flax_module(lambda self, x: x.sum(1)), {}, r"gives float32\[2, 6, 2\] for 2 images"),
        (flax_module(lambda self, x: nn.Dense(3)(x)), {}, r"gives float32\[2, 6, 6, 3\] for 2 im"),
        (Tuple, {}, r"gives a tuple for 2 images, not logits f\[B, K\]"),
        (flax_module(lambda self, x: nn.Conv(3, (6, 6), padding="VALID")(x)[:, 0, 0]), {},
         "calls no dense layer whose input could be its features; .* of Conv_0, as features="),
        (flax_module(lambda self, x: nn.Dense(3)(x).mean((1, 2))), {},
         r"calls last is no classifier of vectors: it gives \[2, 6, 6, 3\]; .* of Dense_0"),
        (flax_module(lambda self, x: flat(x) * nn.Dense(1)(flat(x))), {},
         r"calls last is no classifier of vectors: it gives \[2, 1\]"),
        (lambda rngs: OddNnx(rngs), {"image_shape": (5, 5, 1)}, "images of shape 5x5x1 alone: "),
        (flax_module(lambda self, x, train: nn.Dense(3)(flat(x))), {}, "TypeError: .*'train'"),
        (flax_module(lambda self, x: nn.Dense(3)(flat(x + self.make_rng("noise")[0]))), {},
         "alone: "),
        (Cached(), {}, "keeps state besides its parameters, cache/mean;"),
        (Spectral(), {}, "keeps state besides its parameters, batch_stats/SpectralNorm_0/"),
        (lambda r: OddNnx(r, nnx.Variable(jnp.ones(3))), {}, "keeps state .* parameters, more;"),
        (Drawing, {}, "draws random numbers in its call"),
        (flax_module(lambda self, x: nn.Dense(3)(flat(nn.remat(Inner)()(x)))), {},
         "calls batch norm inside a transformation such as remat or scan"),
        (flax_module(lambda self, x: nn.remat(nn.Dense)(3)(flat(x))), {},
         "calls the layer that gives its features inside a transformation"),
        (InnerNnx, {}, "calls batch norm inside a transformation"),
        (flax_module(lambda self, x: nn.Dense(3)(flat(
            nn.BatchNorm(use_running_average=True)(x, mask=jnp.ones(x.shape, bool))))), {},
         "gives batch norm a mask"),
    ],
)  # fmt: skip
def test_what_cannot_be_wrapped_is_refused_in_a_sentence(module, options, message):
    with pytest.raises(InputError, match=message) as caught:
        wrap(module, **{"image_shape": SHAPE, **options})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# By name


@pytest.fixture
def module_of(tmp_path, monkeypatch):
    """Writes a module of networks into the current folder."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(text, name="own_networks"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_network_by_name_is_its_functions(module_of, params):
    module_of(
        """
        import flax.linen as nn
        from d3jax import networks
        from test_wrapped import LinenNet, NnxNet

        def linen(image_shape, num_classes):
            assert (image_shape, num_classes) == ((6, 6, 2), 3)
            return LinenNet()

        def nnx(image_shape, num_classes):
            return NnxNet

        def made(image_shape, num_classes):
            return networks.create("mlp", image_shape=image_shape, num_classes=num_classes, width=7)
        """
    )
    before, images = list(sys.path), images_of(3)
    for name, own in (("linen", params), ("nnx", as_nnx(params))):
        network = load_network(f"own_networks:{name}", image_shape=SHAPE, num_classes=3)
        close(network.forward(own, images), in_numpy(params, images))
    made = load_network("own_networks:made", image_shape=SHAPE, num_classes=3)
    assert isinstance(made, Network)
    assert networks.parameter_count(jax.eval_shape(made.init, jax.random.key(0))) == (
        (72 + 1) * 7 + (7 + 1) * 7 + (7 + 1) * 3
    )
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "own_networks:", "is named package.module:function, not 'own_networks:'"),
        ("", ":small", "is named package.module:function"),
        ("", "own_networks:a:b", "is named package.module:function"),
        ("", "own networks:a", "is named package.module:function"),
        ("", "not_there:small", "there is no module not_there for .*, neither installed nor in "),
        ("", "json.nonesuch:small", "there is no module json.nonesuch"),
        ("", "own_networks:small", "the module own_networks has no function small"),
        ("small = 3", "own_networks:small", "has no function small"),
        ("import not_there", "own_networks:small",
         "own_networks cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("1 / 0", "own_networks:small", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def small(", "own_networks:small", "cannot be imported: SyntaxError"),
        ("def small(): pass", "own_networks:small", "own_networks:small fails: TypeError: .*argum"),
        ("def small(**_): raise KeyError('a\\nb')", "own_networks:small", "fails: KeyError"),
        ("def small(**_): return {}", "own_networks:small", "gives a dict, not a Flax module or a"),
        ("def small(**_): pass", "own_networks:small", "gives None, not a Flax module"),
        ("from test_wrapped import LinenNet\ndef small(**_): return LinenNet",
         "own_networks:small", "gives the class LinenNet, not a Flax module"),
        ("from test_wrapped import LinenNet\ndef small(**_): return LinenNet()",
         "own_networks:small", "the network own_networks:small has 3 logits for 4 classes"),
        ("from test_wrapped import NnxNet, nnx\ndef small(**_): return NnxNet(nnx.Rngs(0))",
         "own_networks:small", "an NNX module with its weights drawn, the same for every student"),
        ("from d3jax import Network\n"
         "def small(**_): return Network(lambda key: key, lambda params, images: images)",
         "own_networks:small", r"gives float32\[2, 6, 6, 2\], not Outputs of logits"),
    ],
)  # fmt: skip
def test_a_name_of_no_network_is_refused_in_a_sentence(text, name, message, module_of):
    module_of(text)
    before = list(sys.path)
    with pytest.raises(InputError, match=message) as caught:
        load_network(name, image_shape=SHAPE, num_classes=4)
    assert "\n" not in str(caught.value)
    assert sys.path == before


def test_a_network_that_is_made_has_its_own_precision(module_of):
    module_of(
        """
        from d3jax import networks

        def small(**options):
            return networks.create("mlp", **options)
        """
    )
    with pytest.raises(InputError, match="leave out --compute"):
        load_network("own_networks:small", image_shape=SHAPE, num_classes=3, compute="bfloat16")


def test_a_definition_changes_with_what_is_computed():
    def small(slope, start=nn.initializers.ones):
        body = lambda self, x: nn.Dense(3, kernel_init=start)(flat(slope * x))  # noqa: E731
        return definition(wrap(flax_module(body), image_shape=SHAPE), SHAPE)

    assert small(2.0) == small(2.0)
    assert len({small(2.0), small(3.0), small(2.0, nn.initializers.zeros)}) == 3
    assert definition(wrap(NnxNet, image_shape=SHAPE), SHAPE) == definition(
        wrap(lambda rngs: NnxNet(rngs), image_shape=SHAPE), SHAPE
    )
