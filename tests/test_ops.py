import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from d3jax.networks import convolution, norms, pools
from d3jax.networks.convolution import convolution as convolve


def _random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def _values_and_derivatives(convolve):
    """Values, gradients and the Hessian times a direction, of a smooth function of the output."""

    def function(images, kernel):
        return jnp.sum(jnp.tanh(convolve(images, kernel)))

    def slope(arguments, direction):
        return jax.jvp(jax.grad(function, (0, 1)), arguments, direction)[1]

    @jax.jit
    def evaluate(arguments, direction):
        gradient = jax.grad(function, (0, 1))(*arguments)
        return convolve(*arguments), gradient, slope(arguments, direction)

    return evaluate


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (1, 1, None), (1, 2, 0), (3, 1, None), (3, 1, 3), (3, 2, None), (5, 1, 0), (5, 1, None),
        (5, 2, None),
    ],
)  # fmt: skip
def test_convolution_and_two_derivatives_equal_those_of_xla(size, stride, padding):
    arguments = (_random(2, 7, 8, 3), _random(size, size, 3, 4))
    direction = (_random(2, 7, 8, 3, seed=1), _random(size, size, 3, 4, seed=1))
    sides = (size - 1) // 2 if padding is None else padding

    def reference(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (stride, stride), [(sides, sides)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    expected = _values_and_derivatives(reference)(arguments, direction)
    winograd = ("winograd",) if size > 1 and stride == 1 else ()
    for lowering in ("patches", "rows", "banded", "lax", *winograd):

        def lowered(images, kernel, lowering=lowering):
            return convolve(images, kernel, stride=stride, padding=padding, lowering=lowering)

        actual = _values_and_derivatives(lowered)(arguments, direction)
        # Sums of inputs, of the size of the largest, round where an output is small.
        part = 5e-5 if lowering == "winograd" else 0
        jax.tree.map(
            lambda a, b, part=part: np.testing.assert_allclose(
                a, b, 2e-4, max(2e-4, part * np.abs(b).max())
            ),
            actual,
            expected,
        )


def test_convolution_of_one_output_is_the_sum_that_it_should_be():
    images, kernel = _random(1, 3, 3, 2), _random(3, 3, 2, 1)
    for lowering in ("patches", "rows", "banded", "lax", "winograd"):
        out = convolve(images, kernel, padding=0, lowering=lowering)
        assert out.shape == (1, 1, 1, 1)
        np.testing.assert_allclose(out[0, 0, 0, 0], np.sum(images[0] * kernel[..., 0]), rtol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_winograds_tiles_of_few_rows(size, rows):
    images, kernel = _random(2, rows, 4, 3), _random(size, size, 3, 2)
    expected = convolve(images, kernel, lowering="lax")
    found = convolve(images, kernel, lowering="winograd")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lowering", ["patches", "winograd"])
def test_convolution_over_several_weights_by_vmap(lowering):
    images, kernels = _random(3, 2, 5, 5, 2), _random(3, 3, 3, 2, 4)
    batched = jax.vmap(lambda x, k: convolve(x, k, lowering=lowering))(images, kernels)
    for i in range(3):
        alone = convolve(images[i], kernels[i], lowering="lax")
        np.testing.assert_allclose(batched[i], alone, rtol=1e-4, atol=1e-5)


def test_convolution_refuses_an_unknown_lowering():
    with pytest.raises(ValueError, match="known: winograd, patches, rows, banded, lax"):
        convolve(_random(1, 3, 3, 1), _random(3, 3, 1, 1), lowering="fourier")
    with pytest.raises(ValueError, match="for stride 1 and kernels of 3 or 5 pixels, not 1 and 7"):
        convolve(_random(1, 7, 7, 1), _random(7, 7, 1, 1), lowering="winograd")


@pytest.mark.parametrize(
    ("shape", "stride", "dtype", "products"),
    [
        ((3, 3, 5, 17), 1, np.float32, 6),
        ((5, 5, 5, 17), 1, np.float32, 8),
        ((3, 3, 5, 17), 2, np.float32, 1),  # patches
        ((3, 3, 5, 17), 1, jnp.bfloat16, 1),
        ((3, 3, 4, 17), 1, np.float32, 2),  # banded: one makes the matrix
        ((3, 3, 5, 16), 1, np.float32, 2),
    ],
)
def test_how_a_cpu_convolves(shape, stride, dtype, products):
    images, kernel = jnp.ones((2, 8, 8, shape[2]), dtype), jnp.ones(shape, dtype)
    program = jax.make_jaxpr(lambda x, k: convolve(x, k, stride=stride))(images, kernel)
    assert str(program).count("dot_general") == products


@pytest.mark.parametrize("size", [3, 5])
def test_winograd_in_float32_is_as_exact_as_patches(size):
    images, kernel = _random(2, 16, 16, 64), _random(size, size, 64, 16)
    exact = 0
    padded = np.pad(images, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0))).astype(np.float64)
    for i, j in np.ndindex(size, size):
        exact += padded[:, i : i + 16, j : j + 16] @ np.float64(kernel[i, j])
    worst = {
        lowering: np.abs(convolve(images, kernel, lowering=lowering) - exact).max()
        for lowering in ("patches", "winograd")
    }
    assert worst["winograd"] < 4 * worst["patches"] < 4e-5 * np.abs(exact).max()


def _scatter(images, kernel):
    """PyTorch's ConvTranspose2d(stride 2, padding 1): input i adds tap t to output 2i - 1 + t."""
    batch, height, width, _ = images.shape
    out = np.zeros((batch, 2 * height, 2 * width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        for s, t in np.ndindex(*kernel.shape[:2]):
            row, column = 2 * i - 1 + s, 2 * j - 1 + t
            if 0 <= row < 2 * height and 0 <= column < 2 * width:
                out[:, row, column] += images[:, i, j] @ kernel[s, t]
    return out


@pytest.mark.parametrize("size", [3, 4])
def test_upsampling_convolution_scatters_as_pytorch_does(size):
    arguments = (_random(2, 3, 4, 3), _random(size, size, 3, 5))
    direction = (_random(2, 3, 4, 3, seed=1), _random(size, size, 3, 5, seed=1))
    results = []
    for lowering in ("winograd", "patches", "rows", "banded", "lax"):

        def upsample(images, kernel, lowering=lowering):
            return convolution.upsampling_convolution(images, kernel, lowering=lowering)

        results.append(_values_and_derivatives(upsample)(arguments, direction))
        np.testing.assert_allclose(results[-1][0], _scatter(*arguments), rtol=1e-4, atol=1e-5)
    for result in results[:-1]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), result, results[-1]
        )


def test_average_pool_is_the_mean_of_blocks_without_odd_edges():
    images = _random(2, 5, 6, 3)
    expected = np.empty((2, 2, 3, 3))
    for i, j in np.ndindex(2, 3):
        expected[:, i, j] = images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    np.testing.assert_allclose(pools.average_pool(images), expected, rtol=1e-5, atol=1e-6)
    halves = pools.average_pool(images.astype(jnp.bfloat16))
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_allclose(halves.astype(jnp.float32), expected, rtol=0.02, atol=0.02)

    # Of sum(mean ** 3) / 3: each pixel has a quarter of its block's mean squared, and a second
    # derivative along v of half the mean times v's mean; none at an odd edge.
    def gradient(images):
        return jax.grad(lambda x: (pools.average_pool(x) ** 3).sum() / 3)(images)

    def spread(means):
        return np.pad(means.repeat(2, 1).repeat(2, 2), ((0, 0), (0, 1), (0, 0), (0, 0)))

    along, means = jnp.ones_like(images).at[:, :2].set(3.0), np.ones((2, 2, 3, 3))
    means[:, 0] = 3
    actual, second = jax.jvp(gradient, (images,), (along,))
    np.testing.assert_allclose(actual, spread(expected**2 / 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, spread(expected * means / 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "padding", "height"), [(2, 0, 7), (3, 0, 7), (3, 1, 7), (3, 1, 8)]
)
def test_max_pool_is_the_maximum_of_windows_of_stride_two(window, padding, height):
    images = _random(2, height, 8, 3)
    rows, columns = ((n + 2 * padding - window) // 2 + 1 for n in (height, 8))
    expected = np.full((2, rows, columns, 3), -np.inf)
    gradient = np.zeros(images.shape)
    # Without ties each output sends its one unit of gradient to one input.
    for b, i, j, c in np.ndindex(expected.shape):
        seen = [
            (images[b, y, x, c], y, x)
            for y in range(2 * i - padding, 2 * i - padding + window)
            for x in range(2 * j - padding, 2 * j - padding + window)
            if 0 <= y < height and 0 <= x < 8
        ]
        expected[b, i, j, c], y, x = max(seen)
        gradient[b, y, x, c] += 1
    np.testing.assert_array_equal(pools.max_pool(images, window, padding=padding), expected)
    actual = jax.grad(lambda x: pools.max_pool(x, window, padding=padding).sum())(images)
    np.testing.assert_array_equal(actual, gradient)


def test_max_pool_shares_a_tie_and_differentiates_twice():
    def cubes(images):
        return (pools.max_pool(images) ** 3).sum()

    # Three of the four pixels tie: each has a third of 3 * 2**2, and with x = 2 everywhere the
    # second derivative along v is 6 * 2 * (mean of v over the three), shared again.
    image = jnp.asarray([[2.0, 2.0], [1.0, 2.0]])[None, :, :, None]
    direction = jnp.asarray([[3.0, 0.0], [5.0, 6.0]])[None, :, :, None]
    slope, curvature = jax.jvp(jax.grad(cubes), (image,), (direction,))
    np.testing.assert_allclose(slope.ravel(), [4, 4, 0, 4], rtol=1e-6)
    np.testing.assert_allclose(curvature.ravel(), [12, 12, 0, 12], rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_normalizes_each_group_of_each_image(groups):
    images, scale, bias = _random(2, 4, 3, 6) * 3 + 1, _random(6), _random(6, seed=1)
    expected = np.empty_like(images)
    channels = 6 // groups
    for b, g in np.ndindex(2, groups):
        part = images[b, :, :, g * channels : (g + 1) * channels].astype(np.float64)
        normal = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
        expected[b, :, :, g * channels : (g + 1) * channels] = normal
    actual = norms.group_norm(images, scale, bias, groups)
    np.testing.assert_allclose(actual, expected * scale + bias, rtol=1e-4, atol=1e-5)


def test_group_norm_refuses_groups_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels cannot be split into 4 groups"):
        norms.group_norm(_random(1, 2, 2, 6), np.ones(6), np.zeros(6), 4)


def test_batch_norm_uses_the_batch_or_what_it_is_given():
    images, scale, bias = _random(4, 3, 2, 5) * 3 + 1, _random(5), _random(5, seed=1)
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    given = _random(5, seed=2), np.square(_random(5, seed=3))
    for statistics, (by, squared) in ((None, (mean, variance)), (given, given)):
        actual, own = norms.batch_norm(images, scale, bias, statistics)
        expected = (images - by) / np.sqrt(squared + 1e-5) * scale + bias
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own[0], mean, rtol=1e-5)
        np.testing.assert_allclose(own[1], variance, rtol=1e-5)


def test_local_response_norm_is_pytorchs():
    images = _random(2, 2, 3, 7) * 10
    size, alpha, beta, k = 4, 0.3, 0.75, 2.0
    expected = np.empty_like(images)
    for c in range(7):
        window = images[..., max(0, c - 2) : c + 2]  # size // 2 back, (size - 1) // 2 ahead
        base = k + alpha / size * np.square(window).sum(-1)
        expected[..., c] = images[..., c] / base**beta
    actual = norms.local_response_norm(images, size, alpha, beta, k)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_blocks_of_images_change_neither_values_nor_gradients(block):
    images, weights = _random(5, 4, 4, 2), _random(5, 4, 4, 2, seed=1)

    def function(images):
        x = jnp.tanh(images - images.mean((1, 2), keepdims=True))
        return {"maps": x, "sums": x.sum((1, 2, 3))}

    def loss(images, block):
        out = convolution.map_blocks(function, images, block)
        return jnp.sum(out["maps"] * weights) + jnp.sum(jnp.square(out["sums"])), out

    def evaluate(block):
        return jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(images, block)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        evaluate(block), evaluate(None),
    )  # fmt: skip
