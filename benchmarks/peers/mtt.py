"""One outer step of trajectory matching on CIFAR-10's shape with a ConvNet, here and in PyTorch."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import forward_flops, mtt_flops
from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.distill import objectives
from d3jax.synthetic import pixels

SHAPE, DEPTH, EXPERT_EPOCHS = (32, 32, 3), 3, 2
RATE = 0.1  # above a real one, so that weights move far enough to tell losses apart


def pair(width: int, inner_steps: int, images_per_class: int) -> Pair:
    """T steps on all images, matched to an expert's two epochs; without augmentation."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    items = CLASSES * images_per_class
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=items)
    objective = objectives.trajectory_matching(
        network,
        items,
        inner_steps=inner_steps,
        expert_epochs=EXPERT_EPOCHS,
        max_start_epoch=1,
        updates=("data", "learning_rates"),
    )
    real = random_real(SHAPE, network=network)
    assert real.trajectories is not None
    real = real._replace(trajectories=jnp.asarray(real.trajectories)[:1])
    key = jax.random.key(0)
    theta = {
        "data": {"images": jax.random.normal(key, (items, *SHAPE))},
        "learning_rates": jnp.asarray(np.log(RATE), jnp.float32),
    }

    @jax.jit
    def step(theta, key, real):
        loss = lambda theta: objective.loss(theta, data.sample, (), 0, key, real)[0]  # noqa: E731
        return jax.value_and_grad(loss)(theta)

    compiled = cache(lambda: step.lower(theta, key, real).compile())

    def ours() -> float:
        return float(compiled()(theta, key, real)[0])

    unravel = networks.unraveler(network)
    trajectories = jnp.asarray(real.trajectories)
    start, target = (as_torch(unravel(trajectories[0, t])) for t in (0, EXPERT_EPOCHS))
    learned = channels_first(theta["data"]["images"])
    labels = torch.arange(items, device=device()) * CLASSES // items
    apart = squares(start, target)

    def peer() -> float:
        images = learned.clone().requires_grad_()
        logarithm = tensor(np.log(RATE), np.float32).requires_grad_()
        params = [w.clone().requires_grad_() for w in start]
        for _ in range(inner_steps):
            loss = F.cross_entropy(convnet(params, images)[0], labels)
            gradients = torch.autograd.grad(loss, params, create_graph=True)
            params = [p - logarithm.exp() * g for p, g in zip(params, gradients, strict=True)]
        distance = squares(params, target) / apart
        torch.autograd.grad(distance, (images, logarithm))
        return float(distance.detach())

    flops = mtt_flops(forward_flops(network, SHAPE), inner_steps, items)
    return Pair(ours, peer, compiled, flops)


def squares(one: list[torch.Tensor], other: list[torch.Tensor]) -> torch.Tensor:
    """|one - other|^2 over all parameters."""
    return torch.stack([((a - b) ** 2).sum() for a, b in zip(one, other, strict=True)]).sum()


def convnet(params: list[torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ConvNet, instance norm, average pooling: f[B, C, H, W] -> logits f[B, K], f[B, F]."""
    for layer in range(DEPTH):
        kernel, bias, scale, shift = params[4 * layer : 4 * layer + 4]
        x = F.conv2d(x, kernel, bias, padding=1)
        x = F.group_norm(x, x.shape[1], scale, shift)
        x = F.avg_pool2d(F.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # our order of features
    return x @ params[-2] + params[-1], x


def as_torch(params: Any) -> list[torch.Tensor]:
    """Our ConvNet's parameters as `convnet` takes them."""
    found = []
    for layer in range(DEPTH):
        convolution, norm = params[f"Convolution_{layer}"], params[f"Normalization_{layer}"]
        kernel = np.array(convolution["kernel"]).transpose(3, 2, 0, 1)
        found += [kernel, convolution["bias"], norm["scale"], norm["bias"]]
    found += [params["Linear_0"]["kernel"], params["Linear_0"]["bias"]]
    return [tensor(array) for array in found]
