"""What a run says, when it begins, of how images are augmented in it."""

from d3jax.data import Dataset
from d3jax.data.augment import STRATEGIES, default_strategy, why_not_flipped
from d3jax.run.options import Matching, Run, Studied


def used(options: Run, dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Who sees augmented images in a run, all defaults filled in, and the kinds of each."""
    found, spec = {}, options.spec
    reads = None if spec.experts is None else spec.experts(options, dataset, 0)
    if reads is not None:
        who = "experts" if isinstance(options, Matching) else "expert"
        who = who if reads.source is None else "source networks"
        found[who] = strategy(reads.experts.augmentation)
    if hasattr(options.method, "inner_augmentation"):
        found["inner steps"] = strategy(options.method.inner_augmentation)
    if getattr(options.method, "mmd", False):
        found["MMD"] = strategy(options.method.mmd_augmentation)
    if isinstance(options, Studied):
        views = options.student.seen()
        found["students"] = strategy(options.student.augmentation)
        if views is not None:
            kinds = (f"{options.student.views} views", "flip" if views.flip else "", views.mix)
            found["students"] = tuple(kind for kind in kinds if kind not in ("", "none"))
    return found


def strategy(given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The kinds that an option stands for; of None, all."""
    return STRATEGIES if given is None else given


def told(strategies: dict[str, tuple[str, ...]], dataset: Dataset) -> str:
    """One line of who sees which kinds, and why none is mirrored, where the default says so."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for who, kinds in strategies.items():
        groups.setdefault(kinds, []).append(who)
    parts = [f"{' and '.join(who)} {', '.join(kinds) or 'none'}" for kinds, who in groups.items()]
    line = f"augmentation: {'; '.join(parts) or 'none'}"
    reason = why_not_flipped(dataset.name, dataset.class_names)
    by_default = default_strategy(dataset.name, dataset.class_names) in groups
    return f"{line}; no flip: {reason}" if reason and by_default else line
