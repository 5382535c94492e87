"""One outer step of FRePo on CIFAR-10's shape, a ConvNet without norm, here and in PyTorch."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import forward_flops
from benchmarks.peers.mtt import DEPTH, SHAPE
from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import networks
from d3jax.methods.frepo import FRePoOptions, frepo
from d3jax.synthetic import pixels

RIDGE = 1e-6  # as `losses.solve_ridge` has it; so is its least value below


def pair(width: int, images_per_class: int, real_batch: int) -> Pair:
    """Features, ridge regression, a step of LAMB on data and labels, one of Adam on the network."""
    network = networks.create(
        "convnet", image_shape=SHAPE, num_classes=CLASSES, width=width, norm="none"
    )
    items = CLASSES * images_per_class
    data = pixels.create(
        image_shape=SHAPE, num_classes=CLASSES, num_items=items, label_kind="values"
    )
    options = FRePoOptions(pool=1, real_batch=real_batch, flip=True)
    method = frepo(network, data, options, 1000)
    real = random_real(SHAPE, 2 * real_batch)
    key = jax.random.key(0)
    state = jax.jit(method.init)(key, real)
    step = jax.jit(method.step)
    compiled = cache(lambda: step.lower(key, state, real).compile())

    def ours() -> float:
        return float(compiled()(key, state, real)[1]["ridge/loss"])

    # The keys of `compose`'s first step and first objective, and of FRePo's loss.
    drawn = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 0), 0))[1]
    index = real.sample(drawn, real_batch)
    others, classes = channels_first(real.gather(index)), np.asarray(real.labels[index])
    true = F.one_hot(tensor(classes, np.int64), CLASSES) - 1 / CLASSES
    learned = channels_first(state.theta["data"]["images"]), tensor(state.theta["labels"])
    weights = as_torch(networks.unraveler(network)(jnp.asarray(state.aux[0].current)))

    def peer() -> float:
        both = [x.clone().requires_grad_() for x in learned]
        images, labels = both
        params = [w.clone().requires_grad_() for w in weights]
        targets = labels - labels.mean(1, keepdim=True)
        with torch.no_grad():
            of_others = features(params, others)
        frozen = [w.detach() for w in params]
        own = features(frozen, torch.cat([images, images.flip(3)]))
        gram = own @ own.T
        least = max(RIDGE, 4 * len(gram) * torch.finfo(gram.dtype).eps)
        ridge = least / len(gram) * gram.trace() * torch.eye(len(gram), device=device())
        factor = torch.linalg.cholesky(gram + ridge)
        solved = torch.cholesky_solve(torch.cat([targets, targets]), factor)
        predicted = of_others @ (own.T @ solved)
        loss = 0.5 * ((predicted - true) ** 2).sum(1).mean()
        highest = labels.topk(2).values
        margin = -(highest[:, 0] - highest[:, 1]).clamp(max=1 / CLASSES).mean()
        gradients = torch.autograd.grad(loss + margin, both)
        with torch.no_grad():
            after = [lamb(x, g, options.data_learning_rate) for x, g in zip(both, gradients)]
        images, targets = after[0], after[1] - after[1].mean(1, keepdim=True)
        adam = torch.optim.Adam(params, options.network_learning_rate)
        logits = features(params, images) @ params[-2] + params[-1]
        (0.5 * ((logits - targets) ** 2).sum(1).mean()).backward()
        adam.step()
        return float(loss.detach())

    # Passes: one of real images, two of distilled and mirrored ones, three to train the network.
    flops = (real_batch + 7 * items) * forward_flops(network, SHAPE)
    return Pair(ours, peer, compiled, flops)


def features(params: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """f[B, F] before the last layer of a ConvNet without norm, average pooling."""
    for layer in range(DEPTH):
        kernel, bias = params[2 * layer : 2 * layer + 2]
        x = F.avg_pool2d(F.relu(F.conv2d(x, kernel, bias, padding=1)), 2)
    return x.permute(0, 2, 3, 1).flatten(1)  # our order of features


def lamb(x: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
    """After a first step: Adam's, scaled to the rate times the array's own length."""
    change = gradient / (gradient.abs() + 1e-6)
    return x - rate * x.norm() / change.norm() * change


def as_torch(params: dict) -> list[torch.Tensor]:
    """Our ConvNet's parameters as `features` takes them, and the last layer's."""
    found = []
    for layer in range(DEPTH):
        convolution = params[f"Convolution_{layer}"]
        found += [np.array(convolution["kernel"]).transpose(3, 2, 0, 1), convolution["bias"]]
    found += [params["Linear_0"]["kernel"], params["Linear_0"]["bias"]]
    return [tensor(array) for array in found]
