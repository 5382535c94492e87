"""D3's outer step on CIFAR-10's shape with a ConvNet, both updates, here and in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers.dd import Pair
from benchmarks.peers.mtt import DEPTH, EXPERT_EPOCHS, RATE, SHAPE, as_torch, convnet, squares
from benchmarks.world import CLASSES, random_real
from d3jax import losses, networks
from d3jax.methods.d3 import PAPER, Options, d3
from d3jax.synthetic import gaussian

LATENT, STAGE, STAGES = 64, 64, 4
NARROW = -60.0  # a log-variance so small that the noise drawn for a latent does not show


def pair(width: int, inner_steps: int, samples: int) -> Pair:
    """Trajectory matching over T steps on 10 latents, then the MMD of `samples` images a class.

    Both sides draw noise and real images, of which all of a class are alike, so that both see the
    same whatever they draw.
    """
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    synthetic = gaussian.create(
        image_shape=SHAPE, num_classes=CLASSES, latent_size=LATENT, decoder="small", width=STAGE
    )
    options = Options(
        inner_steps=inner_steps,
        expert_epochs=EXPERT_EPOCHS,
        max_start_epoch=1,
        mmd_samples=samples,
        student_learning_rate=RATE,
        latent_optimizer=PAPER.latent_optimizer,
        latent_learning_rate=PAPER.latent_learning_rate,
        decoder_learning_rate=PAPER.decoder_learning_rate,
        schedule=PAPER.schedule,
    )
    method = d3(network, synthetic, options, 1)
    real = random_real(SHAPE, network=network)
    assert real.trajectories is not None
    real = real._replace(
        trajectories=jnp.asarray(real.trajectories)[:1],
        images=real.images[real.class_index[:, 0]][real.labels],
    )
    key = jax.random.key(0)
    state = method.init(key, real)
    means = state.theta["data"]["mean"]
    state.theta["data"]["log_variance"] = jnp.full_like(means, NARROW)
    step = jax.jit(method.step)

    def ours() -> float:
        _, metrics = jax.block_until_ready(step(key, state, real))
        return float(metrics["trajectory/distance"] + metrics["mmd/loss"])

    unravel = networks.unraveler(network)
    trajectory = jnp.asarray(real.trajectories)[0]
    start, target, final = (as_torch(unravel(trajectory[t])) for t in (0, EXPERT_EPOCHS, -1))
    apart = squares(start, target)
    latents = [torch.from_numpy(np.array(means)), torch.full(means.shape, NARROW)]
    decoder = _decoder(state.theta["decoder"])
    normalized = np.array(real.gather(real.class_index[:, :samples].reshape(-1)))
    photographs = torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())
    classes = torch.arange(CLASSES)

    def peer() -> float:
        mean, log_variance = (x.clone().requires_grad_() for x in latents)
        weights = [w.clone().requires_grad_() for w in decoder]
        logarithm = torch.tensor(float(np.log(RATE)), requires_grad=True)
        by_latents = torch.optim.SGD(
            [mean, log_variance], options.latent_learning_rate, momentum=0.5
        )
        by_decoder = torch.optim.Adam(
            weights, options.decoder_learning_rate, weight_decay=options.decoder_weight_decay
        )
        by_rate = torch.optim.SGD([logarithm], options.learning_rate_learning_rate, momentum=0.5)

        def images(index: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(len(index), LATENT)
            return decode(weights, mean[index] + (log_variance[index] / 2).exp() * noise)

        params = [w.clone().requires_grad_() for w in start]
        for _ in range(inner_steps):
            loss = F.cross_entropy(convnet(params, images(classes))[0], classes)
            gradients = torch.autograd.grad(loss, params, create_graph=True)
            params = [p - logarithm.exp() * g for p, g in zip(params, gradients, strict=True)]
        distance = squares(params, target) / apart
        distance.backward()
        for optimizer in (by_latents, by_decoder, by_rate):
            optimizer.step()
            optimizer.zero_grad()

        with torch.no_grad():
            real_features = convnet(final, photographs)[1]
        features = convnet(final, images(classes.repeat_interleave(samples)))[1]
        pairs = zip(features.split(samples), real_features.split(samples), strict=True)
        mmd = torch.stack([_mmd2(x, y) for x, y in pairs]).sum()
        mmd.backward()
        for optimizer in (by_latents, by_decoder):
            optimizer.step()
        return float((distance + mmd).detach())

    return Pair(ours, peer)


def decode(weights: list[torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """The small decoder: f[B, z] -> f[B, C, H, W]."""
    x = (z @ weights[0] + weights[1]).reshape(-1, 2, 2, STAGE).permute(0, 3, 1, 2)
    for stage in range(STAGES):
        kernel, bias, scale, shift = weights[2 + 4 * stage : 6 + 4 * stage]
        x = F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
        x = F.batch_norm(x, None, None, scale, shift, training=True)
        x = F.leaky_relu(x, 0.01)
    return torch.tanh(F.conv2d(x, weights[-2], weights[-1], padding=1))


def _decoder(params: Any) -> list[torch.Tensor]:
    found = [params["Linear_0"]["kernel"], params["Linear_0"]["bias"]]
    for stage in range(STAGES):
        upsampling, norm = params[f"Upsampling_{stage}"], params[f"Normalization_{stage}"]
        kernel = np.array(upsampling["kernel"]).transpose(2, 3, 0, 1)
        found += [kernel, upsampling["bias"], norm["scale"], norm["bias"]]
    last = params["Convolution_0"]
    found += [np.array(last["kernel"]).transpose(3, 2, 0, 1), last["bias"]]
    return [torch.from_numpy(np.array(array).copy()) for array in found]


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        return sum(torch.exp(-squared.clamp(min=0) / (2 * s**2)) for s in losses.BANDWIDTHS)

    def within(a: torch.Tensor) -> torch.Tensor:
        similar = kernel(a, a)
        return (similar.sum() - similar.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()
