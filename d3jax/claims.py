"""A run's folder: claimed by one configuration, refused to any other."""

from pathlib import Path
from typing import Any

import yaml

from d3jax import config, data, files
from d3jax.config import Run
from d3jax.snapshots import fingerprint
from d3jax.types import InputError

# What may differ between the runs of one folder: it changes no number (`together` the last bits).
_FREE = (
    *("out", "experts", "chunk", "checkpoint_minutes", "tensorboard", "data_dir", "together"),
    *("profile", "compilation_cache"),
)


def claim(out: Path, method: str, options: Run, dataset: data.Dataset) -> None:
    """Writes config.yaml, or refuses a folder that holds another configuration's run."""
    values = {
        "method": method,
        **{name: value for name, value in config.plain(options).items() if name != "processes"},
        "images": fingerprint(dataset.train_images, dataset.train_labels),
    }
    path = out / "config.yaml"
    if path.exists():
        try:
            there = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            there = None
        if not isinstance(there, dict):
            raise InputError(f"{path} is not a configuration; choose another --out")
        ours, theirs = _flat(values), _flat(there)
        for name in sorted(set(ours) | set(theirs)):
            if ours.get(name) != theirs.get(name):
                raise InputError(
                    f"{out} holds a run with {name} = {theirs.get(name)}, this one has "
                    f"{ours.get(name)}; choose another --out or the same options"
                )
        return
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif name not in _FREE:
            flat[prefix + name] = value
    return flat
