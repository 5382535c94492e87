"""How synthetic data is parametrized: one file each, rebuilt from a plain specification.

A specification is a JSON object with a `kind`; it goes into the artifact's header as it is.
"""

import json
from functools import lru_cache
from typing import Any

from d3jax.synthetic import gaussian, generated, joined, pixels, spectral
from d3jax.types import InputError, Synthetic, check_known


def _joined(*, parts: list[dict[str, Any]], **options: Any) -> Synthetic:
    plain = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
    if not plain or any(part.get("kind") == "joined" for part in parts):
        raise InputError("what is joined is a list of parametrizations, none of them joined itself")
    return joined.create([create(part) for part in parts], **options)


KINDS = {
    "gaussian": gaussian.create,
    "pixels": pixels.create,
    "spectral": spectral.create,
    "generated": generated.create,
    "joined": _joined,  # of the parts' specifications
}


def create(specification: dict[str, Any]) -> Synthetic:
    """The parametrization that `specification` describes.

    Raises:
      InputError: no or an unknown kind, or options that the kind does not have or cannot be.
    """
    try:
        text = json.dumps(specification, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"the parametrization is not a plain specification: {error}") from None
    return _create(text)


@lru_cache(maxsize=32)  # the same functions for the same specification: nothing compiles twice
def _create(text: str) -> Synthetic:
    options = json.loads(text)
    kind = options.pop("kind", None)
    check_known("parametrization", kind, KINDS)
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise InputError(f"the options of parametrization {kind} do not fit: {error}") from None
