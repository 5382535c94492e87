"""A run's folder: claimed by one configuration, refused to any other."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from d3jax import artifact, data
from d3jax.experts.store import fingerprint
from d3jax.host import files
from d3jax.host.progress import Reporter
from d3jax.keys import DRAWS
from d3jax.networks.own import identified
from d3jax.run.options import JUDGING, Run, plain
from d3jax.types import InputError, Network

# What changes no number (`together` the last bits), and may differ between the runs of one folder.
_FREE = (
    *("out", "experts", "chunk", "checkpoint_minutes", "tensorboard", "data.data_dir", "together"),
    *("profile", "compilation_cache", "dry_run", "data.skip_unreadable"),
)


def configuration(options: Run) -> dict[str, Any]:
    """The options as YAML and JSON hold them, without those of one process among several."""
    return {name: value for name, value in plain(options).items() if name != "processes"}


@contextmanager
def claim(
    out: Path, options: Run, dataset: data.Dataset, network: Network, reporter: Reporter
) -> Iterator[None]:
    """Writes config.yaml, or refuses a folder that holds another configuration's run.

    It says so where the run was begun with other versions of the packages that numbers depend on.

    Where what follows is refused itself (too little disk, say), a new claim is taken back, unless
    something was made in the folder by then: that is of this configuration.
    """
    before = {path.name for path in out.iterdir()} if out.is_dir() else set()
    new = _claim(out, options, dataset, network, reporter)
    try:
        yield
    except InputError:
        ours = {"config.yaml", ".lock"}
        if new and {path.name for path in out.iterdir()} <= ours | before:
            for name in ours:
                (out / name).unlink(missing_ok=True)
            with suppress(OSError):  # others' files are in it
                out.rmdir()
        raise


def _claim(
    out: Path, options: Run, dataset: data.Dataset, network: Network, reporter: Reporter
) -> bool:
    """Whether the folder was claimed by nobody before."""
    values = {
        "method": options.spec.name,
        "draws": DRAWS,
        "versions": artifact.versions(),
        **configuration(options),
        "architecture": identified(plain(options.architecture), network, dataset.image_shape),
        "images": fingerprint(dataset.train_images, dataset.train_labels),
        "judged_on": fingerprint(
            *(dataset.validation_images, dataset.validation_labels),
            *(dataset.test_images, dataset.test_labels),
        ),
        **_contents(options),
    }
    path = out / "config.yaml"
    if path.exists():
        try:
            there = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            there = None
        if not isinstance(there, dict):
            raise InputError(f"{path} is not a configuration; choose another --out")
        if there.get("draws") != DRAWS:
            raise InputError(
                f"{out} holds a run of another version of d3jax, which draws other random numbers; "
                f"finish it with that version, or choose another --out"
            )
        begun = there.pop("versions", None)
        if begun != (now := values.pop("versions")):
            reporter.say(
                f"{out} was begun with {_told(begun)}, this is {_told(now)}: what is computed now "
                f"may differ from an uninterrupted run in last bits, or in draws"
            )
        # Experts of later turns may start from students; else students only judge.
        free = "student." if options.spec.starts is None else "student.students"
        ours, theirs = flat(values), flat(there)
        for name in sorted(set(ours) | set(theirs)):
            judging = name in ("baselines", *JUDGING) or name.startswith(free)
            if ours.get(name) != theirs.get(name) and not judging:
                shared = f" (its experts serve there too: --experts {out / 'experts'})"
                raise InputError(
                    f"{out} holds a run with {name} = {theirs.get(name)}, this one has "
                    f"{ours.get(name)}; choose another --out"
                    f"{shared if (out / 'experts').exists() else ''} or the same options"
                )
        return False
    foreign = sorted(out.glob("subtask-*/artifact.safetensors"))
    if foreign and getattr(options, "subtasks", None) is not None:
        raise InputError(
            f"{foreign[0]} is of a run of its own; choose another --out (`d3jax join` joins such "
            f"artifacts)"
        )
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, yaml.safe_dump(values, sort_keys=False))
    return True


def _contents(options: Run) -> dict[str, str]:
    """Hashes of the artifacts that a method's own options name, if any."""
    own = options.method
    named = {
        field.name: artifact.located(value)
        for field in dataclasses.fields(own)
        if isinstance(value := getattr(own, field.name), Path)
    }
    return {
        f"{options.spec.name}.{name}'s contents": fingerprint(
            np.frombuffer(path.read_bytes(), np.uint8)
        )
        for name, path in named.items()
    }


def _told(versions: Any) -> str:
    known = versions if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in known.items()) or "versions unknown"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted names, without what changes no number."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif prefix + name not in _FREE:
            found[prefix + name] = value
    return found
