"""The same work, here and in PyTorch."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from d3jax.types import InputError


class Pair(NamedTuple):
    """Two functions of nothing, each of which does the whole work.

    Both return the loss, unless `losses` says how to compare them.
    """

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    compiled: Callable[[], Any]  # ours, compiled when first asked for
    flops: float | None = None  # of the work's products, none counted twice
    losses: Callable[[], tuple[float, float]] | None = None  # ours and the peer's
    peer_compiled: Callable[[], Any] | None = None  # the peer by torch.compile, where that works


@cache
def device() -> torch.device:
    """What JAX computes on.

    Raises:
      InputError: PyTorch has no such device.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return torch.device("cpu")
    if backend != "gpu" or not torch.cuda.is_available():
        raise InputError(
            f"PyTorch has no device here like JAX's ({backend}); to compare both on the CPU set "
            "JAX_PLATFORMS=cpu"
        )
    return torch.device("cuda")


def tensor(array: Any, dtype: Any = None) -> torch.Tensor:
    """A copy of an array on that device."""
    return torch.tensor(np.array(array, dtype), device=device())


def channels_first(images: Any) -> torch.Tensor:
    """Images [B, H, W, C] as PyTorch's [B, C, H, W], contiguous, its default layout."""
    return tensor(np.array(images).transpose(0, 3, 1, 2).copy())
