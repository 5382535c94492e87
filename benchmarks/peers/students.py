"""Training of students on distilled images with a ConvNet, all at once here, one by one there."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import forward_flops
from benchmarks.peers.mtt import SHAPE, as_torch, convnet
from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES
from d3jax import losses, networks
from d3jax.evaluate import Protocol, begun, epochs_function
from d3jax.experts import fresh_parameters
from d3jax.synthetic import pixels

RATE = 0.01
COMPARED = 5  # epochs after which losses are compared: later, rounding has been trained on


def pair(width: int, students: int, epochs: int, images: int) -> Pair:
    """`students` trained for `epochs` on so many images, at most 256 a step; no augmentation."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    data = pixels.create(image_shape=SHAPE, num_classes=CLASSES, num_items=images)
    protocol = Protocol(students=students, epochs=epochs, augmentation=())
    keys = jax.random.split(jax.random.key(0), students)
    params = jax.vmap(fresh_parameters(network))(keys)
    theta = {"data": {"images": jax.random.normal(jax.random.key(1), (images, *SHAPE))}}
    rate = jnp.full((students,), RATE, jnp.float32)
    begin = jnp.asarray(0, jnp.int32)
    unravel = networks.unraveler(network)

    def arguments(end: int) -> tuple[Any, ...]:
        carry = begun(protocol, params)
        return carry, theta, keys, rate, begin, jnp.asarray(end, jnp.int32)

    train = jax.jit(epochs_function(network, data, protocol))
    compiled = cache(lambda: train.lower(*arguments(epochs)).compile())

    def ours(end: int = epochs) -> jax.Array:
        return compiled()(*arguments(end))[0]

    learned = channels_first(theta["data"]["images"])
    targets = torch.arange(images, device=device()) * CLASSES // images
    starts = [as_torch(unravel(start)) for start in params]
    size = min(protocol.batch_size, images)

    def drawn(key: jax.Array, epoch: jax.Array) -> jax.Array:
        """What an epoch draws from its key, so that both see the same."""
        for_order, _ = jax.random.split(jax.random.fold_in(key, epoch))
        return jax.random.permutation(for_order, images)

    many = jax.vmap(jax.vmap(drawn, (None, 0)), (0, None))
    orders = tensor(many(keys, jnp.arange(epochs)), np.int64)

    def eager(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(convnet(weights, x)[0], y)

    def peer(
        end: int = epochs, loss_of: Callable[..., torch.Tensor] = eager
    ) -> list[list[torch.Tensor]]:
        trained = []
        for start, order in zip(starts, orders, strict=True):
            weights = [w.clone().requires_grad_() for w in start]
            optimizer = torch.optim.SGD(
                weights, RATE, momentum=protocol.momentum, weight_decay=protocol.weight_decay
            )
            for epoch in range(end):
                if 2 * epoch >= epochs + epochs % 2:
                    optimizer.param_groups[0]["lr"] = RATE * protocol.decay
                for index in order[epoch].split(size):
                    loss = loss_of(weights, learned[index], targets[index])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            trained.append([w.detach() for w in weights])
        return trained

    def our_loss(params: jax.Array) -> float:
        one_hot = jax.nn.one_hot(jnp.arange(images) * CLASSES // images, CLASSES)
        logits = jax.vmap(lambda p: network.apply(unravel(p), theta["data"]["images"]))(params)
        return float(jnp.mean(jax.vmap(lambda x: losses.cross_entropy(x, one_hot))(logits)))

    def peer_loss(trained: list[list[torch.Tensor]]) -> float:
        found = [F.cross_entropy(convnet(w, learned)[0], targets) for w in trained]
        return float(torch.stack(found).mean())

    return Pair(
        ours,
        peer,
        compiled,
        3 * students * epochs * images * forward_flops(network, SHAPE),
        lambda: (our_loss(ours(COMPARED)), peer_loss(peer(COMPARED))),
        lambda: peer(loss_of=torch.compile(eager)),
    )
