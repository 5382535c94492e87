"""The same work, here and in PyTorch."""

from collections.abc import Callable
from typing import Any, NamedTuple


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
