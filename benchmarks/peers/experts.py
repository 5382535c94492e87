"""Training of experts on real images with a ConvNet, all at once here, one by one in PyTorch."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import forward_flops
from benchmarks.peers.mtt import SHAPE, as_torch, convnet
from benchmarks.peers.pair import Pair, channels_first, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.experts import fresh_parameters
from d3jax.experts.epoch import epoch_function

BATCH, RATE = 256, 0.01


def pair(width: int, experts: int, images: int) -> Pair:
    """An epoch of so many experts on so many images, 256 a step; without augmentation."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    real = random_real(SHAPE, images)
    keys = jax.random.split(jax.random.key(0), experts)
    params = jax.vmap(fresh_parameters(network))(keys)

    epoch = jax.jit(epoch_function(network, (), BATCH, RATE))
    compiled = cache(lambda: epoch.lower(params, keys, real).compile())

    def ours() -> float:
        return float(jnp.mean(compiled()(params, keys, real)[1]))

    # What an epoch draws from its keys, so that both see the same.
    steps = images // BATCH
    orders = [
        tensor(jax.random.permutation(jax.random.fold_in(key, 0), images), np.int64) for key in keys
    ]
    unravel = networks.unraveler(network)
    starts = [as_torch(unravel(start)) for start in params]
    photographs = channels_first(real.gather(jnp.arange(images)))
    labels = tensor(real.labels, np.int64)

    def eager(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(convnet(weights, x)[0], y)

    def peer(loss_of: Callable[..., torch.Tensor] = eager) -> float:
        total = 0.0
        for start, order in zip(starts, orders, strict=True):
            weights = [w.clone().requires_grad_() for w in start]
            optimizer = torch.optim.SGD(weights, RATE)
            for index in order[: steps * BATCH].split(BATCH):
                loss = loss_of(weights, photographs[index], labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
        return total / steps / experts

    flops = 3 * experts * steps * BATCH * forward_flops(network, SHAPE)
    return Pair(ours, peer, compiled, flops, peer_compiled=lambda: peer(torch.compile(eager)))
