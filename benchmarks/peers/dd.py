"""One outer step of Dataset Distillation on MNIST's shape with LeNet, here and in PyTorch.

PyTorch's arrays are in its default layout. Given the strides of channels last, which one-channel
images may have without being copied, its steps are faster; ConvNets gain nothing by them.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.distill import objectives
from d3jax.synthetic import pixels

SHAPE, IMAGES = (28, 28, 1), 2000


def pair(steps: int, passes: int, number_of_networks: int, real_batch: int) -> Pair:
    """S distilled steps of 10 images x P passes on `number_of_networks` random LeNets."""
    network = networks.create(
        "lenet", image_shape=SHAPE, num_classes=CLASSES, initialization="xavier_normal"
    )
    items = CLASSES * steps
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=items)
    objective = objectives.unrolled(
        network,
        items,
        steps=steps,
        passes=passes,
        initialization="random",
        number_of_networks=number_of_networks,
        batch_size=real_batch,
        updates=("data", "learning_rates"),
    )
    real = random_real(SHAPE, IMAGES)
    key = jax.random.key(0)
    theta = {
        "data": {"images": jax.random.normal(key, (items, *SHAPE))},
        "learning_rates": jnp.full((steps * passes,), np.log(0.02), jnp.float32),
    }

    @jax.jit
    def step(theta, key, real):
        loss = lambda theta: objective.loss(theta, data.sample, (), 0, key, real)[0]  # noqa: E731
        return jax.value_and_grad(loss)(theta)

    compiled = cache(lambda: step.lower(theta, key, real).compile())

    def ours() -> float:
        return float(compiled()(theta, key, real)[0])

    # What the objective draws from the key, so that both see the same.
    for_starts, _, _, for_real = jax.random.split(key, 4)
    starts = [network.init(k) for k in jax.random.split(for_starts, number_of_networks)]
    batches = [
        jax.random.randint(k, (real_batch,), 0, IMAGES, jnp.int32)
        for k in jax.random.split(for_real, number_of_networks)
    ]
    weights = [_as_torch(start) for start in starts]
    seen = [channels_first(real.gather(index)) for index in batches]
    labels = [tensor(real.labels[index], np.int64) for index in batches]
    order = tensor(objectives.step_items(items, steps, passes), np.int64)
    targets = torch.arange(items, device=device()) * CLASSES // items
    learned = channels_first(theta["data"]["images"])
    logarithms = tensor(theta["learning_rates"])

    def peer() -> float:
        images = learned.clone().requires_grad_()
        rates = logarithms.clone().requires_grad_()
        total = 0.0
        # A graph for each network: one of all of them would take as many times the memory.
        for start, batch, label in zip(weights, seen, labels, strict=True):
            params = [w.clone().requires_grad_() for w in start]
            for rate, chosen in zip(rates.exp(), order, strict=True):
                loss = F.cross_entropy(lenet(params, images[chosen]), targets[chosen])
                gradients = torch.autograd.grad(loss, params, create_graph=True)
                params = [p - rate * g for p, g in zip(params, gradients, strict=True)]
            loss = F.cross_entropy(lenet(params, batch), label) / number_of_networks
            loss.backward(inputs=[images, rates])
            total += float(loss.detach())
        return total

    return Pair(ours, peer, compiled)


def lenet(params: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """LeNet-5 as `networks.LeNet` has it: f[B, C, H, W] -> logits f[B, K]."""
    first, first_bias, second, second_bias, *linear = params
    x = F.max_pool2d(F.relu(F.conv2d(images, first, first_bias, padding=2)), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, second, second_bias)), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # our order of features
    for layer in range(3):
        x = x @ linear[2 * layer] + linear[2 * layer + 1]
        x = F.relu(x) if layer < 2 else x
    return x


def _as_torch(params: Any) -> list[torch.Tensor]:
    found = []
    for name in ("Convolution_0", "Convolution_1", "Linear_0", "Linear_1", "Linear_2"):
        kernel = np.array(params[name]["kernel"])
        kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel
        found += [tensor(kernel), tensor(params[name]["bias"])]
    return found
