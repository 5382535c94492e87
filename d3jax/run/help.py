"""What `--help` says: first the flags that matter most, then all of them."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Set
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any

import tyro
from rich.filesize import decimal
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from d3jax.host.terminal import listed
from d3jax.methods.registry import METHODS
from d3jax.run.options import Architecture, Data, Inlined, Run, command
from d3jax.synthetic.options import Parametrization

_SIZES = {
    "gaussian": ("latents_per_class", "latent_size", "decoder_width"),
    "pixels": ("images_per_class",),
    "spectral": ("spectra_per_class", "rank"),
    "generated": ("images_per_class", "generator_width"),
}

# Options that device memory grows with
_MEMORY = ("mmd_samples", "mmd_classes", "inner_batch_size", "real_batch", "networks", "width",
           "at_once", "students")  # fmt: skip


def summary(name: str, kind: str) -> str:
    """The flags of a method's run that matter most, in groups; the rest of the help says all.

    kind: of the parametrization.
    """
    spec, run = METHODS[name], command(name)
    counted = spec.items(spec.options(), 10) is not None
    own = [f.name for f in dataclasses.fields(spec.options)][:4]
    shown: dict[str, list[tuple[type, str]]] = {
        "data": [(Data, "dataset"), (Data, "train_limit"), (Data, "validation")],
        "method": [(spec.options, field) for field in own],
        "size of the result": [(Parametrization, "kind"), (Parametrization, "labels")],
        "run": [(Run, "outer_steps"), (run, "out"), (Architecture, "width"), (Run, "seed")],
    }
    if not counted:
        stored = [(Parametrization, f) for f in ("budget", *_SIZES[kind])]
        shown["size of the result"][1:1] = stored
    groups = {}
    for group, flags in shown.items():
        texts = groups[group] = {}
        for holder, option in flags:
            flag = "--" + ("parametrization" if option == "kind" else option.replace("_", "-"))
            said = _docs(holder).get(option, "not described").split(". ")[0].rstrip(".")
            default = getattr(holder(), option)
            texts[flag] = said + ("" if default is None else f" (default: {default})")
    for preset in spec.presets:
        groups["method"][f"--preset {preset}"] = "Its options as there; flags that are given win"
    return "\n".join(f"{group}:\n{listed(texts)}" for group, texts in groups.items())


def out_of_memory(error: Exception, options: Any) -> str:
    """What would need less memory, the device's or the machine's, of the flags of a command."""
    asked = re.search(r"allocat\w+ ([\d.]+) ?([kMGT]?i?[Bb]\w*)", str(error))
    size = ""
    if asked:
        in_bytes = asked[2] == "bytes"
        size = f": {decimal(int(asked[1])) if in_bytes else ' '.join(asked.groups())} are not free"
    flags = dict(_named(options))
    less = ", ".join(flags[name] for name in _MEMORY if name in flags)
    hint = f"; smaller {less} need less" if less else ""
    short_of = "memory" if isinstance(error, MemoryError) else "device memory"
    return f"out of {short_of}{size}{hint}; `d3jax plan` says how much a run takes"


def _named(options: Any, prefix: str = "--") -> Iterator[tuple[str, str]]:
    """Each option of a dataclass, and of those in it, and its flag."""
    types = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            inlined = Inlined in typing.get_args(types[field.name])
            yield from _named(value, prefix if inlined else f"{prefix}{field.name}.")
        else:
            yield field.name, prefix + field.name.replace("_", "-")


def rules(left_out: Set[str] = frozenset()) -> ConstructorRegistry:
    """How tyro makes flags of options: without `None` or a second default where the text has one.

    left_out: fields of a parametrization that the help does not show.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(partial(_flags, left_out=left_out))
    return registry


def _flags(info: StructTypeInfo, left_out: Set[str]) -> StructConstructorSpec | None:
    if not dataclasses.is_dataclass(info.type):
        return None
    kind: Any = info.type
    types, docs = typing.get_type_hints(kind, include_extras=True), _docs(kind)
    fields = []
    for field in dataclasses.fields(kind):
        default = _default(field, info.default)
        said = docs.get(field.name)
        flag: Any = types[field.name]
        if default is None:
            flag = Annotated[flag, tyro.conf.DisallowNone]
        if default is None or (said and ("; default" in said or "(default" in said)):
            flag = Annotated[flag, tyro.conf.arg(help_behavior_hint="")]
        if issubclass(kind, Parametrization) and field.name in left_out:
            flag = Annotated[flag, tyro.conf.Suppress]
        fields.append(StructFieldSpec(field.name, flag, default, said))
    return StructConstructorSpec(kind, tuple(fields))


def _default(field: dataclasses.Field[Any], given: Any) -> Any:
    """A field's default: that of `given`, where that is an instance."""
    if dataclasses.is_dataclass(given):
        return getattr(given, field.name)
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


@cache
def _docs(kind: type) -> dict[str, str]:
    """The docstring of each field of a dataclass, in a line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # made, not written
            continue
        for one, after in pairwise(getattr(tree.body[0], "body", [])):
            said = after.value if isinstance(after, ast.Expr) else None
            text = said.value if isinstance(said, ast.Constant) else None
            if isinstance(one, ast.AnnAssign) and isinstance(text, str):
                found[ast.unparse(one.target)] = " ".join(text.split())
    return found
