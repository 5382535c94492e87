import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.data import augment, warps
from d3jax.types import InputError

HEIGHT, WIDTH = 10, 12


def _image(height=HEIGHT, width=WIDTH, channels=3, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(height, width, channels)).astype(dtype)


def _images(batch=3, dtype=np.float32):
    values = np.random.default_rng(1).normal(size=(batch, HEIGHT, WIDTH, 2))
    return jnp.asarray(values, dtype)


def _bilinear(image, rows, columns):
    """The slow, obvious version: zero outside."""
    height, width, channels = image.shape
    result = np.zeros((*rows.shape, channels))
    for at in np.ndindex(rows.shape):
        top, left = int(np.floor(rows[at])), int(np.floor(columns[at]))
        for row in (top, top + 1):
            for column in (left, left + 1):
                if 0 <= row < height and 0 <= column < width:
                    weight = (1 - abs(rows[at] - row)) * (1 - abs(columns[at] - column))
                    result[at] += weight * image[row, column]
    return result


def _grid(height, width):
    return np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2,
                       indexing="ij")  # fmt: skip


def test_color_changes_means_as_its_formula_says():
    image = _image()
    same = warps.color(image, jnp.float32(0), jnp.float32(1), jnp.float32(1))
    np.testing.assert_allclose(same, image, atol=1e-6)
    brighter = warps.color(image, jnp.float32(0.3), jnp.float32(0.5), jnp.float32(0.7))
    np.testing.assert_allclose(np.mean(brighter), image.mean() + 0.3, atol=1e-6)
    grey = warps.color(image, jnp.float32(0), jnp.float32(0), jnp.float32(1))
    np.testing.assert_allclose(grey, np.broadcast_to(image.mean(-1, keepdims=True), image.shape),
                               atol=1e-6)  # fmt: skip
    contrast = warps.color(image, jnp.float32(0), jnp.float32(1), jnp.float32(0.7))
    np.testing.assert_allclose(np.std(contrast), 0.7 * image.std(), rtol=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (-1, 0), (1, -2)])
def test_crop_shifts_and_fills_with_zeros(shift):
    image = _image()
    expected = np.roll(np.pad(image, ((2, 2), (2, 2), (0, 0))), (-shift[0], -shift[1]), (0, 1))
    result = warps.crop(jnp.asarray(image), jnp.asarray(shift, jnp.int32))
    np.testing.assert_array_equal(result, expected[2:-2, 2:-2])


@pytest.mark.parametrize(
    ("centre", "area"),
    [((5, 6), 5 * 6), ((0, 0), 3 * 3), ((9, 12), 3 * 3), ((5, 0), 5 * 3)],
)
def test_cutout_hides_half_of_each_side_and_is_cut_off_at_the_border(centre, area):
    image = jnp.ones((HEIGHT, WIDTH, 1))
    result = np.asarray(warps.cutout(image, jnp.asarray(centre, jnp.int32)))
    assert (result == 0).sum() == area
    assert (result == 1).sum() == HEIGHT * WIDTH - area


def test_flip_mirrors_columns():
    image = jnp.asarray(_image())
    np.testing.assert_array_equal(warps.flip(image, jnp.asarray(True)), image[:, ::-1])
    np.testing.assert_array_equal(warps.flip(image, jnp.asarray(False)), image)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.8, 1.15), (2.0, 1.0)])
def test_scale_equals_bilinear_sampling(factors):
    image = _image()
    rows, columns = _grid(HEIGHT, WIDTH)
    expected = _bilinear(
        image, rows * factors[0] + (HEIGHT - 1) / 2, columns * factors[1] + (WIDTH - 1) / 2
    )
    result = warps.scale(jnp.asarray(image), jnp.asarray(factors, jnp.float32))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    if factors == (1.0, 1.0):
        np.testing.assert_allclose(result, image, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.2, -0.26, 1.0])
def test_rotate_equals_bilinear_sampling(angle):
    image = _image()
    rows, columns = _grid(HEIGHT, WIDTH)
    expected = _bilinear(
        image,
        np.cos(angle) * rows + np.sin(angle) * columns + (HEIGHT - 1) / 2,
        np.cos(angle) * columns - np.sin(angle) * rows + (WIDTH - 1) / 2,
    )
    result = warps.rotate(jnp.asarray(image), jnp.float32(angle))
    np.testing.assert_allclose(result, expected, atol=2e-5)
    if angle == 0:
        np.testing.assert_array_equal(result, image)


def test_rotate_by_a_right_angle_turns_counter_clockwise():
    image = _image(8, 8)
    result = warps.rotate(jnp.asarray(image), jnp.float32(np.pi / 2))
    np.testing.assert_allclose(result, np.rot90(image), atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.2, -0.26, 1.0, 3.0])
def test_rotate_has_the_transpose_that_it_claims(angle):
    with jax.enable_x64(True):
        angle = jnp.asarray(angle, jnp.float64)
        columns = jnp.eye(HEIGHT * WIDTH, dtype=jnp.float64).reshape(-1, HEIGHT, WIDTH, 1)
        rotate = jax.vmap(lambda image: warps._rotate_sample(image, angle))
        back = jax.vmap(lambda image: warps._rotate_spread(image, angle))
        matrix = np.asarray(rotate(columns)).reshape(len(columns), -1)
        transpose = np.asarray(back(columns)).reshape(len(columns), -1)
    np.testing.assert_allclose(transpose, matrix.T, atol=1e-12)


@pytest.mark.parametrize("name", augment.STRATEGIES)
def test_first_and_second_derivatives(name):
    with jax.enable_x64(True):
        key = jax.random.key(3)
        images = _images(2, np.float64)
        direction = _images(4, np.float64)[2:]

        def loss(images):
            return jnp.sum(jnp.sin(augment.augment(key, images, (name,))) ** 2)

        # Kept together in one compilation: gradient, and the Hessian times a direction by forward
        # over reverse and by reverse over reverse.
        @jax.jit
        def derivatives(images):
            gradient, product = jax.jvp(jax.grad(loss), (images,), (direction,))
            reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction))(images)
            return loss(images), gradient, product, reverse

        _, gradient, product, reverse = derivatives(images)
        step = 1e-5
        plus, minus = (derivatives(images + s * direction) for s in (step, -step))
        slope = (plus[0] - minus[0]) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-7)
        curvature = (plus[1] - minus[1]) / (2 * step)
        np.testing.assert_allclose(product, curvature, atol=1e-8)
        np.testing.assert_allclose(reverse, product, atol=1e-12)
        assert gradient.dtype == jnp.float64


@pytest.fixture(scope="module")
def transform():
    return jax.jit(
        lambda key, images, choice: augment.augment(key, images, choice=choice)
    )  # one compilation for the tests that share shapes


def test_the_same_key_gives_the_same_result_and_another_key_another(transform):
    images = _images()
    for choice in range(len(augment.STRATEGIES)):
        first = transform(jax.random.key(0), images, jnp.int32(choice))
        np.testing.assert_array_equal(
            first, transform(jax.random.key(0), images, jnp.int32(choice))
        )
        others = [transform(jax.random.key(k), images, jnp.int32(choice)) for k in range(1, 9)]
        assert any(not np.array_equal(first, other) for other in others)
        assert first.shape == images.shape
        assert first.dtype == images.dtype


def test_images_of_a_batch_get_their_own_parameters(transform):
    images = jnp.broadcast_to(_images(1), (3, HEIGHT, WIDTH, 2))
    for choice, name in enumerate(augment.STRATEGIES):
        differs = [
            not np.array_equal(result[0], result[1])
            for result in (
                transform(jax.random.key(k), images, jnp.int32(choice)) for k in range(9)
            )
        ]
        assert any(differs), name


def test_shared_gives_every_image_and_every_batch_the_parameters_of_the_first(transform):
    key = jax.random.key(4)
    one = _images(1)

    @jax.jit
    def siamese(choice):
        batch = jnp.broadcast_to(one, (5, HEIGHT, WIDTH, 2))
        return augment.augment(key, batch, choice=choice, shared=True)

    batch = jnp.broadcast_to(one, (3, HEIGHT, WIDTH, 2))
    for choice in range(len(augment.STRATEGIES)):
        result = siamese(jnp.int32(choice))
        own = transform(key, batch, jnp.int32(choice))
        for image in result:
            np.testing.assert_allclose(image, own[0], atol=1e-6)


def test_choice_is_what_draw_choice_draws_and_draws_all(transform):
    images = _images()
    key = jax.random.key(11)
    drawn = augment.augment(key, images)
    np.testing.assert_allclose(drawn, transform(key, images, augment.draw_choice(key)), atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 6000)
    counts = np.bincount(jax.vmap(augment.draw_choice)(keys), minlength=6)
    # Six equal shares of 1000, each with a standard deviation of sqrt(6000 * 5 / 36) = 29.
    assert np.abs(counts - 1000).max() < 150


def test_drawn_parameters_keep_to_their_ranges():
    keys = jax.random.split(jax.random.key(0), 2000)

    def draw(name):
        function = augment._TRANSFORMATIONS[name].draw
        return [
            np.asarray(p) for p in jax.vmap(lambda k: function(k, (32, 28, 3), jnp.float32))(keys)
        ]

    def spans(values, low, high, slack):
        assert low <= values.min() <= low + slack
        assert high - slack <= values.max() <= high

    brightness, saturation, contrast = draw("color")
    spans(brightness, -0.5, 0.5, 0.01)
    spans(saturation, 0, 2, 0.02)
    spans(contrast, 0.5, 1.5, 0.01)
    (shift,) = draw("crop")
    assert set(shift[:, 0]) == set(range(-4, 5))
    assert set(shift[:, 1]) == set(range(-4, 5))  # 28 / 8 is 3.5, rounded up
    (centre,) = draw("cutout")
    assert set(centre[:, 0]) == set(range(33))
    assert set(centre[:, 1]) == set(range(29))
    (flipped,) = draw("flip")
    assert abs(flipped.mean() - 0.5) < 0.05
    (factors,) = draw("scale")
    spans(factors, np.float32(1 / 1.2), np.float32(1.2), 0.005)
    (angle,) = draw("rotate")
    spans(np.degrees(angle), -15.0001, 15.0001, 0.1)


def test_vmapped_students_share_a_choice_as_a_branch_and_keep_their_own_parameters(transform):
    images = _images()
    keys = jax.random.split(jax.random.key(2), 3)
    students = jax.jit(
        lambda choice: jax.vmap(lambda k: augment.augment(k, images, choice=choice))(keys)
    )
    assert "stablehlo.case" in students.lower(jnp.int32(0)).as_text()
    for choice in (1, 5):
        together = students(jnp.int32(choice))
        alone = jnp.stack([transform(key, images, jnp.int32(choice)) for key in keys])
        np.testing.assert_allclose(together, alone, atol=1e-6)
        assert not np.array_equal(together[0], together[1])


def test_derivatives_within_shard_map_and_vmap():
    names = ("crop", "rotate")  # those with a transpose of their own
    mesh = jax.make_mesh((1,), ("subtask",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("subtask")
    keys, images = jax.random.split(jax.random.key(5), 2), jnp.stack([_images(), 2 * _images()])

    def gradient(key, images):
        return jax.grad(lambda x: jnp.sum(jnp.sin(augment.augment(key, x, names))))(images)

    sharded = jax.shard_map(jax.vmap(gradient), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(
        jax.jit(sharded)(keys, images), jax.jit(jax.vmap(gradient))(keys, images), atol=1e-5
    )


def test_empty_strategy_changes_nothing():
    images = _images()
    assert augment.augment(jax.random.key(0), images, ()) is images
    assert augment.draw_choice(jax.random.key(0), ()) == 0


def test_sixteen_bit_images_keep_their_dtype():
    images = _images().astype(jnp.bfloat16)
    result = augment.augment(jax.random.key(0), images, ("scale",))
    assert result.dtype == jnp.bfloat16
    expected = augment.augment(jax.random.key(0), images.astype(jnp.float32), ("scale",))
    np.testing.assert_array_equal(result, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("strategy", [("flip", "mirror"), "flip"])
def test_what_is_no_strategy_is_refused_and_the_valid_names_are_said(strategy):
    with pytest.raises(InputError, match="color, crop, cutout, flip, scale, rotate"):
        augment.augment(jax.random.key(0), _images(), strategy)
    with pytest.raises(InputError, match="color, crop"):
        augment.draw_choice(jax.random.key(0), strategy)


NUMBERS = tuple(map(str, range(10)))
THINGS = ("airplane", "automobile", "bird", "cat")


@pytest.mark.parametrize(
    ("dataset", "class_names", "flips"),
    [
        # By the data set's name, as ever.
        ("digits", NUMBERS, False), ("mnist", NUMBERS, False), ("data/usps.npz", NUMBERS, False),
        ("emnist/letters", tuple(map(str, range(37))), False), ("kmnist", ("o", "ki", "su"), False),
        ("moved_digits", (), False), ("svhn_cropped", NUMBERS, False), ("MNIST.npz", (), False),
        ("cifar10", THINGS, True), ("data/cifar10.npz", NUMBERS, True), ("CIFAR-10", NUMBERS, True),
        ("fashion_mnist.npz", NUMBERS, True), ("data/pets.npz", (), True),
        ("imagenet_resized/64x64", tuple(map(str, range(1000))), True),
        ("tiny_imagenet", ("n01443537", "n01629819"), True),
        ("tiny_imagenet_20", ("American lobster, Northern lobster", "brown bear, bruin"), True),
        # By those of the classes.
        ("my_mnist.npz", NUMBERS, False), ("images/mine", ("0", "3"), False),
        ("mine.npz", ("A", "b", "c"), False), ("mine.npz", ("zero", "One", "two"), False),
        ("mine.npz", ("0 - zero", "1 - one"), False), ("mine.npz", ("1 - zero", "0 - one"), True),
        ("mine.npz", (*NUMBERS, "10"), True), ("mine.npz", ("a", "b", "none"), True),
        ("mine.npz", THINGS, True), ("mine.npz", ("3 dogs", "4 cats"), True),
    ],
)  # fmt: skip
def test_digits_and_letters_are_not_mirrored(dataset, class_names, flips):
    strategy = augment.default_strategy(dataset, class_names)
    assert strategy == tuple(n for n in augment.STRATEGIES if flips or n != "flip")
    assert (augment.why_not_flipped(dataset, class_names) is None) == flips


@pytest.mark.parametrize("images", [jnp.zeros((2, 8, 8)), jnp.zeros((2, 8, 8, 1), jnp.uint8)])
def test_what_are_no_images_are_refused(images):
    with pytest.raises(InputError, match="floating-point images of shape"):
        augment.augment(jax.random.key(0), images)
