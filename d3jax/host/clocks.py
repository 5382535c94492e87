"""How long work took in all its runs: on the wall, and in CPU seconds of this process's threads."""

import time
from collections.abc import Iterable, Mapping

Spent = dict[str, float]  # seconds by the clock's name
NAMES = ("seconds", "cpu_seconds")


def now() -> Spent:
    """What each clock shows; only differences mean something."""
    return {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}


def since(begun: Mapping[str, float], before: Mapping[str, float] | None = None) -> Spent:
    """Seconds since `begun`, and those that earlier runs had spent before it."""
    earlier = nothing() if before is None else before
    return {name: shown - begun[name] + earlier[name] for name, shown in now().items()}


def of(record: Mapping[str, float]) -> Spent:
    """The clocks of a record that was written; 0 of those that it does not have."""
    return {name: float(record.get(name, 0.0)) for name in NAMES}


def nothing() -> Spent:
    """No time at all."""
    return dict.fromkeys(NAMES, 0.0)


def total(spent: Iterable[Mapping[str, float]]) -> Spent:
    """The sum of several."""
    listed = list(spent)
    return {name: sum(each[name] for each in listed) for name in NAMES}
