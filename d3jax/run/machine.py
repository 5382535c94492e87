"""What a process of a run used of its machine: device, memory, time for compilation."""

import resource
import sys
from typing import Any

import jax

# XLA's own time and that of lowering to it; tracing by JAX is not in it, since its events overlap.
_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compiled = [0.0]


def _listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    del kwargs
    if event in _COMPILING:
        _compiled[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
    """What this process has compiled for so far, since this module was imported."""
    return _compiled[0]


def used() -> dict[str, Any]:
    """The device, and the peak memory of this process, in bytes: the machine's, and the first
    device's where it has one of its own."""
    devices = jax.devices()
    stats = None if devices[0].platform == "cpu" else jax.local_devices()[0].memory_stats()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "host_peak_bytes": peak * (1 if sys.platform == "darwin" else 1024),
        "device_peak_bytes": (stats or {}).get("peak_bytes_in_use"),
    }
