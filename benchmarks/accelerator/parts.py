"""Products, convolutions place by place, and the training of experts and students."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.case import PRECISIONS, RATES, Case, Size, mebibytes, seconds_of, share
from benchmarks.flops import forward_flops
from benchmarks.outer_steps import lowered_by
from benchmarks.suite import Row
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.evaluate import Protocol, begun, epochs_function
from d3jax.experts import fresh_parameters
from d3jax.experts.epoch import epoch_function
from d3jax.networks import convolution
from d3jax.networks.convolution import convolution as convolve
from d3jax.synthetic import pixels

LOWERINGS: tuple[convolution.Lowering, ...] = ("lax", "patches", "rows", "winograd")


def products(size: Size) -> list[Case]:
    """The machine's rate, in each precision: what the other rows are fractions of."""
    return [
        Case("products", f"{precision}, {size.product}", partial(_product, precision, size), 3.0, 0)
        for precision in PRECISIONS
    ]


def _product(precision: str, size: Size) -> Row:
    half = precision == "bfloat16"
    dtype = jnp.bfloat16 if half else jnp.float32
    one, other = (
        jax.random.normal(key, (size.product, size.product), dtype)
        for key in jax.random.split(jax.random.key(0))
    )
    with jax.default_matmul_precision("default" if half else precision):
        product = jax.jit(jnp.matmul).lower(one, other).compile()
    seconds = seconds_of(lambda: product(one, other), size.steady)
    RATES[precision] = 2 * size.product**3 / seconds
    return {"tflops": RATES[precision] / 1e12}


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A function for such arguments, and the seconds that it took to compile."""
    lowered = jax.jit(function).lower(*arguments)
    begun = time.monotonic()
    program = lowered.compile()
    return program, time.monotonic() - begun


def convolutions(size: Size) -> list[Case]:
    """Every lowering at every place."""
    side, width = size.image_shape[0] // 2, size.width
    networks_, images = (4, 64) if size.steady else (2, 4)
    # (what runs, batch shape, kernel shape)
    places: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...]]] = {
        f"3x3, {width} to {width}, T=10 inner steps": (
            _inner_loop, (10, side, side, width), (3, 3, width, width)
        ),
        f"3x3, {width} to {width}, {networks_} networks": (
            _networks, (networks_, images, side, side, width), (networks_, 3, 3, width, width)
        ),
        f"3x3, 3 to {width}, {networks_} networks": (
            _networks, (networks_, images, 2 * side, 2 * side, 3), (networks_, 3, 3, 3, width)
        ),
        f"5x5, {width // 2} to {width // 2}, T=10 inner steps": (
            _inner_loop, (10, side, side, width // 2), (5, 5, width // 2, width // 2)
        ),
        f"5x5, {width // 2} to {width // 2}, {networks_} networks": (
            _networks,
            (networks_, images, side, side, width // 2), (networks_, 5, 5, width // 2, width // 2),
        ),
        "decoder's upsampling, 4x4": (
            _upsampling, (images, side, side, width // 2), (4, 4, width // 2, width // 4)
        ),
    }  # fmt: skip
    return [
        Case(
            "convolutions",
            f"{place}, {lowering}",
            partial(_place, function, batch, kernel, lowering, size),
            5.0,
            2,
        )
        for place, (function, batch, kernel) in places.items()
        for lowering in LOWERINGS
    ]


def _value(images: jax.Array, kernel: jax.Array, lowering: convolution.Lowering) -> jax.Array:
    return jnp.mean(jnp.square(jnp.tanh(convolve(images, kernel, lowering=lowering))))


def _inner_loop(images: jax.Array, kernel: jax.Array, lowering: convolution.Lowering) -> jax.Array:
    """The meta-gradient in the images of steps that train the kernel."""

    def trained(images: jax.Array) -> jax.Array:
        def once(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
            gradient = jax.grad(lambda k: _value(images, k, lowering))(kernel)
            return kernel - jnp.asarray(0.1, kernel.dtype) * gradient, None

        return jnp.sum(jnp.square(jax.lax.scan(jax.checkpoint(once), kernel, length=10)[0]))

    return jax.grad(trained)(images)


def _networks(images: jax.Array, kernels: jax.Array, lowering: convolution.Lowering) -> jax.Array:
    """Gradients of several networks' kernels, side by side."""
    return jax.vmap(jax.grad(lambda k, x: _value(x, k, lowering)))(kernels, images)


def _upsampling(images: jax.Array, kernel: jax.Array, lowering: convolution.Lowering) -> Any:
    """Gradients of the decoder's layer in images and kernel."""

    def value(images: jax.Array, kernel: jax.Array) -> jax.Array:
        out = convolution.upsampling_convolution(images, kernel, lowering=lowering)
        return jnp.mean(jnp.square(jnp.tanh(out)))

    return jax.grad(value, (0, 1))(images, kernel)


def _place(
    function: Callable[..., Any],
    batch: tuple[int, ...],
    kernel: tuple[int, ...],
    lowering: convolution.Lowering,
    size: Size,
) -> Row:
    for_images, for_kernel = jax.random.split(jax.random.key(0))
    images = jax.random.normal(for_images, batch, jnp.float32)
    weights = jax.random.normal(for_kernel, kernel, jnp.float32)
    weights = weights * jnp.asarray(0.05, jnp.float32)
    program, compiling = compiled(lambda x, k: function(x, k, lowering), images, weights)
    seconds = seconds_of(lambda: program(images, weights), size.steady / 3)
    pixels_ = batch[-4] * batch[-3] * batch[-2] * (4 if function is _upsampling else 1)
    taps = (4 if function is _upsampling else kernel[-4] ** 2) * kernel[-2] * kernel[-1]
    several = kernel[0] if len(kernel) == 5 else 1
    passes = {_inner_loop: 6 * 10, _networks: 2, _upsampling: 3}[function]
    flops = 2.0 * several * pixels_ * taps * passes
    return {"compile_seconds": compiling, "ms": 1e3 * seconds, **share(flops, seconds)}


def training(size: Size) -> list[Case]:
    """Experts side by side, by other convolutions too; students on few and on many images."""
    found = [
        Case(
            "training",
            f"experts, {number} at once, {lowering or 'the default'}",
            partial(_experts, number, lowering, size),
            10.0,
            2 if lowering is None else 4,
        )
        for number in size.experts
        for lowering in (None, *LOWERINGS[1:])
        if lowering is None or number == size.experts[1]
    ]
    return found + [
        Case(
            "training",
            f"5 students, {images} images",
            partial(_students, 5, images, size),
            15.0,
            2,
        )
        for images in size.students
    ]


def _convnet(size: Size) -> Any:
    return networks.create(
        "convnet", image_shape=size.image_shape, num_classes=CLASSES, width=size.width
    )


def _experts(number: int, lowering: convolution.Lowering | None, size: Size) -> Row:
    network, real = _convnet(size), random_real(size.image_shape, size.expert_images)
    keys = jax.random.split(jax.random.key(0), number)
    params = jax.jit(jax.vmap(fresh_parameters(network)))(keys)
    batch = min(256, size.expert_images)
    with lowered_by(lowering):
        program, compiling = compiled(epoch_function(network, (), batch, 0.01), params, keys, real)
    seconds = seconds_of(lambda: program(params, keys, real)[1], size.steady)
    images = number * (size.expert_images // batch) * batch
    return {
        "compile_seconds": compiling,
        "images_per_second": images / seconds,
        "mib": mebibytes(program),
        **share(3 * images * forward_flops(network, size.image_shape), seconds),
    }


def _students(number: int, images: int, size: Size) -> Row:
    network = _convnet(size)
    data = pixels.create(image_shape=size.image_shape, num_classes=CLASSES, num_items=images)
    protocol = Protocol(students=number, epochs=size.student_epochs)
    keys = jax.random.split(jax.random.key(0), number)
    params = jax.jit(jax.vmap(fresh_parameters(network)))(keys)
    shape = (images, *size.image_shape)
    theta = {"data": {"images": jax.random.normal(jax.random.key(1), shape, jnp.float32)}}
    rate = jnp.full((number,), 0.01, jnp.float32)
    carry = begun(protocol, params)
    begin, few = jnp.asarray(0, jnp.int32), jnp.asarray(min(20, protocol.epochs), jnp.int32)
    train = epochs_function(network, data, protocol)
    program, compiling = compiled(train, carry, theta, keys, rate, begin, few)
    seconds = seconds_of(lambda: program(carry, theta, keys, rate, begin, few)[0], size.steady)
    seconds /= int(few)
    return {
        "compile_seconds": compiling,
        "images_per_second": number * images / seconds,
        "seconds_300_epochs": 300 * seconds,
        "mib": mebibytes(program),
        **share(3 * number * images * forward_flops(network, size.image_shape), seconds),
    }
