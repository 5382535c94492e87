"""What a process of a run used of its machine: device and memory."""

import resource
import sys
from typing import Any

import jax


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
