"""Networks that an artifact's steps are meant for, but were not learned with."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from d3jax import artifact
from d3jax.evaluate.recipe import recipe_of
from d3jax.experts import source as pretrained
from d3jax.host import compilation
from d3jax.host.progress import Reporter
from d3jax.keys import Stage, stage_key
from d3jax.networks import initial_parameters
from d3jax.types import InputError, Network, Real

NETWORKS = 200  # unseen ones that figures are means over, as in the paper


def weights(
    distilled: artifact.Artifact,
    network: Network,
    architecture: dict[str, Any],
    number: int,
    seed: int,
    data_dir: Path | None,
    store: Path,
    reporter: Reporter,
    source: str | None = None,
) -> Array:
    """Networks f[N, P] that an artifact's steps have not been learned with, but are meant for.

    The one fixed initialization, rebuilt from its seed (or taken from the artifact, if stored);
    fresh weights, by `seed`; or those of the pretrained networks that were kept for this. Another
    architecture than the artifact's starts from fresh weights.

    source: the data set that they were pretrained on; default as the artifact names it.

    Raises:
      InputError: the fixed weights cannot be rebuilt here, or the source data is not at hand.
    """
    header = distilled.header
    recipe = header["replay"]
    kind = recipe_of(recipe).initialization
    if kind == "random" or _weights(architecture) != _weights(header["architecture"]):
        return initial_weights(network, stage_key(seed, Stage.STUDENTS), number)
    if kind == "fixed":
        if "weights" in distilled.theta:
            return jnp.asarray(distilled.theta["weights"], jnp.float32)[None]
        fixed = fixed_weights(network, stage_key(recipe["weights"]["seed"], Stage.INITIAL))
        for name, value in checksums(fixed).items():
            if not np.isclose(value, recipe["weights"].get(name, np.nan), rtol=1e-5, atol=1e-3):
                raise InputError(
                    "this version of JAX draws other initial weights than the artifact was made "
                    "with; use the versions in its header, or distill with --store-weights"
                )
        return fixed
    trained_on = _source(distilled, data_dir, source)
    pool, _ = pretrained.train(trained_on, network, architecture, store, reporter)
    if recipe["unseen"] >= len(pool):
        raise InputError(
            f"the artifact keeps {recipe['unseen']} of {len(pool)} pretrained networks to judge "
            f"by: none is left that it was distilled with"
        )
    return pool[len(pool) - recipe["unseen"] :][:number]


def images(
    distilled: artifact.Artifact,
    architecture: dict[str, Any],
    data_dir: Path | None,
    source: str | None = None,
) -> Real | None:
    """The images that those `weights` were trained on before, None where they were on none.

    Raises:
      InputError: as `weights`.
    """
    header = distilled.header
    other = _weights(architecture) != _weights(header["architecture"])
    if other or recipe_of(header["replay"]).initialization != "pretrained":
        return None
    return _source(distilled, data_dir, source).real


def _source(
    distilled: artifact.Artifact, data_dir: Path | None, source: str | None
) -> pretrained.Source:
    """The source data that an artifact's networks were pretrained on."""
    specification = distilled.header["parametrization"]
    return pretrained.load(
        distilled.header["replay"]["source"],
        tuple(specification["image_shape"]),
        distilled.header["class_names"],
        data_dir,
        source,
    )


def _weights(architecture: dict[str, Any]) -> dict[str, Any]:
    """What an architecture's weights depend on: not on what it computes in."""
    return {name: value for name, value in architecture.items() if name != "compute"}


def initial_weights(network: Network, key: Array, number: int) -> Array:
    """Fresh parameter vectors f[N, P]."""
    draw = compilation.once(jax.vmap(partial(initial_parameters, network)))
    return draw(jax.random.split(key, number))


def fixed_weights(network: Network, key: Array) -> Array:
    """The one parameter vector f[1, P] of a fixed initialization."""
    return compilation.once(partial(initial_parameters, network))(key)[None]


def checksums(weights: Array) -> dict[str, float]:
    """Two sums that tell one draw of weights from another, on any machine."""
    values = np.asarray(weights, np.float64)
    return {"sum": float(values.sum()), "squares": float(np.square(values).sum())}
