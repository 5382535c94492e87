"""D3 on MNIST: accuracy against stored floats, and the ablations."""

import dataclasses
import sys

from d3jax.config import Architecture, Data, DistillD3, Parametrization
from d3jax.experts import Options as ExpertOptions
from d3jax.methods.d3 import Options
from experiments import runner

STRATEGY = ("color", "crop", "cutout", "scale", "rotate")  # digits must not be mirrored

# Floats of 1, 3 and 10 images per class are 7840, 23520 and 78400.
BUDGETS = {
    "1": Parametrization(latents_per_class=4, latent_size=32, decoder_width=16),
    "3": Parametrization(latents_per_class=12, latent_size=32, decoder_width=32),
    "10": Parametrization(latents_per_class=13, latent_size=64, decoder_width=64),
}
