"""One recover step of DWA on CIFAR-10's shape, a ConvNet with batch norm, here and in PyTorch."""

from functools import cache

import jax
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import forward_flops
from benchmarks.peers.mtt import DEPTH, SHAPE, as_torch
from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.distill import objectives
from d3jax.synthetic import pixels

WEIGHT, VARIANCE, FIRST = 0.01, 11.0, 10.0  # of DWA on CIFAR


def pair(width: int, images_per_class: int) -> Pair:
    """Loss and gradient of all images under one teacher, batches of one image of each class."""
    network = networks.create(
        "convnet", image_shape=SHAPE, num_classes=CLASSES, width=width, norm="batch"
    )
    items = CLASSES * images_per_class
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=items)
    objective = objectives.statistics_matching(
        network,
        items,
        CLASSES,
        statistics_weight=WEIGHT,
        variance_weight=VARIANCE,
        first_weight=FIRST,
        updates=("data",),
    )
    real = random_real(SHAPE, network=network)
    key = jax.random.key(0)
    aux = jax.jit(objective.init)(key, real)
    theta = {"data": {"images": jax.random.normal(key, (items, *SHAPE))}}

    @jax.jit
    def step(theta, aux, key, real):
        loss = lambda theta: objective.loss(theta, data.sample, aux, 0, key, real)[0]  # noqa: E731
        return jax.value_and_grad(loss)(theta)

    compiled = cache(lambda: step.lower(theta, aux, key, real).compile())

    def ours() -> float:
        return float(compiled()(theta, aux, key, real)[0])

    weights = as_torch(networks.unraveler(network)(aux["params"][0]))
    frozen = [(tensor(mean), tensor(variance)) for mean, variance in aux["statistics"]]
    rows = np.asarray(objectives.batch_items(items, CLASSES))
    batches = [channels_first(theta["data"]["images"][row]) for row in rows]
    labels = torch.arange(CLASSES, device=device())

    def peer() -> float:
        total = 0.0
        for batch in batches:
            images = batch.clone().requires_grad_()
            logits, found = convnet(weights, images, frozen)
            distance = torch.zeros((), device=device())
            for layer, (own, target) in enumerate(zip(found, frozen, strict=True)):
                means, variances = ((a - b).norm() for a, b in zip(own, target, strict=True))
                distance = distance + (FIRST if layer == 0 else 1.0) * (
                    means + VARIANCE * variances
                )
            loss = F.cross_entropy(logits, labels) + WEIGHT * distance
            torch.autograd.grad(loss, images)
            total += float(loss.detach())
        return total

    return Pair(ours, peer, compiled, 2 * items * forward_flops(network, SHAPE))


Statistics = tuple[torch.Tensor, torch.Tensor]


def convnet(
    params: list[torch.Tensor], x: torch.Tensor, frozen: list[Statistics]
) -> tuple[torch.Tensor, list[Statistics]]:
    """ConvNet whose batch norms normalize by `frozen`: logits f[B, K], and the batch's own."""
    found = []
    for layer in range(DEPTH):
        kernel, bias, scale, shift = params[4 * layer : 4 * layer + 4]
        x = F.conv2d(x, kernel, bias, padding=1)
        found.append((x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)))
        x = F.batch_norm(x, *frozen[layer], scale, shift)
        x = F.avg_pool2d(F.relu(x), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # our order of features
    return x @ params[-2] + params[-1], found
