"""Compilation: whether XLA is at it, for how long so far, and less of it for what runs once."""

import os
from collections.abc import Callable
from typing import Any

import jax

# XLA's own time and that of lowering to it; tracing by JAX is not in it, since its events overlap.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_LEVEL = "xla_backend_optimization_level"
_seconds, _between = 0.0, False


def seconds() -> float:
    """All compilation since this module was imported."""
    return _seconds


def now() -> bool:
    """Whether XLA is at work: a program is lowered, and not compiled yet."""
    return _between


def once(function: Callable[..., Any]) -> Any:
    """`jax.jit` for what runs once or twice, such as drawing initial weights.

    On a CPU it is compiled at LLVM's first level, which takes a fraction of the seconds where much
    is drawn at random, and changes no number. XLA_FLAGS that name a level are followed.
    """
    named = _LEVEL in os.environ.get("XLA_FLAGS", "")
    quick = jax.default_backend() == "cpu" and not named
    return jax.jit(function, compiler_options={_LEVEL: 1} if quick else None)


def _heard(event: str, duration_secs: float, **_: Any) -> None:
    """JAX calls it for all that it has measured."""
    global _seconds, _between
    if event in (_LOWERED, _COMPILED):
        _seconds, _between = _seconds + duration_secs, event == _LOWERED


jax.monitoring.register_event_duration_secs_listener(_heard)
