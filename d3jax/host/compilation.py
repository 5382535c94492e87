"""What XLA compiles in this process: whether it does now, and for how long so far."""

from typing import Any

import jax

# XLA's own time and that of lowering to it; tracing by JAX is not in it, since its events overlap.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_seconds, _between = 0.0, False


def seconds() -> float:
    """All compilation since this module was imported."""
    return _seconds


def now() -> bool:
    """Whether XLA is at work: a program is lowered, and not compiled yet."""
    return _between


def _heard(event: str, duration_secs: float, **_: Any) -> None:
    """JAX calls it for all that it has measured."""
    global _seconds, _between
    if event in (_LOWERED, _COMPILED):
        _seconds, _between = _seconds + duration_secs, event == _LOWERED


jax.monitoring.register_event_duration_secs_listener(_heard)
