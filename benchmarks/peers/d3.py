"""D3's outer step on CIFAR-10's shape with a ConvNet, both updates, here and in PyTorch."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.flops import d3_flops, decoder_flops, forward_flops
from benchmarks.peers.mtt import EXPERT_EPOCHS, RATE, SHAPE, as_torch, convnet, squares
from benchmarks.peers.pair import Pair, channels_first, device, tensor
from benchmarks.world import CLASSES, random_real
from d3jax import losses, networks
from d3jax.methods.d3 import PAPER, D3Options, d3
from d3jax.synthetic import gaussian

LATENT, STAGE, STAGES = 64, 64, 4
# Adam's first step goes by the gradient's sign, so that a real rate would turn rounding into a
# difference of the second loss.
DECODER_RATE = 1e-6


def pair(width: int, inner_steps: int, samples: int) -> Pair:
    """Trajectory matching over T steps on 10 latents, then the MMD of `samples` images a class."""
    network = networks.create("convnet", image_shape=SHAPE, num_classes=CLASSES, width=width)
    synthetic = gaussian.create(
        image_shape=SHAPE, num_classes=CLASSES, latent_size=LATENT, decoder="small", width=STAGE
    )
    options = D3Options(
        inner_steps=inner_steps,
        expert_epochs=EXPERT_EPOCHS,
        max_start_epoch=1,
        mmd_samples=samples,
        student_learning_rate=RATE,
        mmd_augmentation=PAPER.mmd_augmentation,
        latent_optimizer=PAPER.latent_optimizer,
        latent_learning_rate=PAPER.latent_learning_rate,
        decoder_learning_rate=DECODER_RATE,
        schedule=PAPER.schedule,
    )
    method = d3(network, synthetic, options, 1)
    real = random_real(SHAPE, network=network)
    assert real.trajectories is not None
    real = real._replace(trajectories=jnp.asarray(real.trajectories)[:1])
    key = jax.random.key(0)
    state = method.init(key, real)
    compiled = cache(lambda: jax.jit(method.step).lower(key, state, real).compile())

    def ours() -> float:
        _, metrics = compiled()(key, state, real)
        return float(metrics["trajectory/distance"] + metrics["mmd/loss"])

    unravel = networks.unraveler(network)
    trajectory = jnp.asarray(real.trajectories)[0]
    start, target, final = (as_torch(unravel(trajectory[t])) for t in (0, EXPERT_EPOCHS, -1))
    apart = squares(start, target)
    data = state.theta["data"]
    latents = [tensor(data[name]) for name in ("mean", "log_variance")]
    decoder = _decoder(state.theta["decoder"])
    classes = torch.arange(CLASSES, device=device())

    # What the objectives draw from the key, so that both see the same.
    of_trajectory, of_mmd = (jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(2))
    step_keys = jax.random.split(jax.random.split(of_trajectory, 4)[3], inner_steps)
    inner_noise = [_noise(jax.random.split(k)[0], CLASSES) for k in step_keys]
    _, _, for_sample, for_real = jax.random.split(of_mmd, 4)
    mmd_noise = _noise(for_sample, CLASSES * samples)
    photographs = channels_first(real.gather(real.sample_classes(for_real, samples).reshape(-1)))

    def peer() -> float:
        mean, log_variance = (x.clone().requires_grad_() for x in latents)
        weights = [w.clone().requires_grad_() for w in decoder]
        logarithm = tensor(np.log(RATE), np.float32).requires_grad_()
        by_latents = torch.optim.SGD(
            [mean, log_variance], options.latent_learning_rate, momentum=0.5
        )
        by_decoder = torch.optim.Adam(
            weights, options.decoder_learning_rate, weight_decay=options.decoder_weight_decay
        )
        by_rate = torch.optim.SGD([logarithm], options.learning_rate_learning_rate, momentum=0.5)

        def images(index: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            return decode(weights, mean[index] + (log_variance[index] / 2).exp() * noise)

        params = [w.clone().requires_grad_() for w in start]
        for noise in inner_noise:
            loss = F.cross_entropy(convnet(params, images(classes, noise))[0], classes)
            gradients = torch.autograd.grad(loss, params, create_graph=True)
            params = [p - logarithm.exp() * g for p, g in zip(params, gradients, strict=True)]
        distance = squares(params, target) / apart
        distance.backward()
        for optimizer in (by_latents, by_decoder, by_rate):
            optimizer.step()
            optimizer.zero_grad()

        with torch.no_grad():
            real_features = convnet(final, photographs)[1]
        decoded = images(classes.repeat_interleave(samples), mmd_noise)
        features = convnet(final, decoded)[1]
        pairs = zip(features.split(samples), real_features.split(samples), strict=True)
        mmd = torch.stack([_mmd2(x, y) for x, y in pairs]).sum()
        mmd.backward()
        for optimizer in (by_latents, by_decoder):
            optimizer.step()
        return float((distance + mmd).detach())

    forward, decoded = forward_flops(network, SHAPE), decoder_flops(synthetic, state.theta)
    flops = d3_flops(forward, decoded, inner_steps, CLASSES, CLASSES * samples)
    return Pair(ours, peer, compiled, flops)


def _noise(key: jax.Array, items: int) -> torch.Tensor:
    return tensor(jax.random.normal(key, (items, LATENT), jnp.float32))


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
    return [tensor(array) for array in found]


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        widths = tensor(losses.BANDWIDTHS, np.float32)[:, None, None]
        return torch.exp(-squared.clamp(min=0) / (2 * widths**2)).sum(0)

    def within(a: torch.Tensor) -> torch.Tensor:
        similar = kernel(a, a)
        return (similar.sum() - similar.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()
