"""What `d3jax distill NAME --help` begins with: the flags that matter most."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise

from d3jax.methods.registry import METHODS
from d3jax.run.options import Architecture, Data, Run, command
from d3jax.synthetic.options import Parametrization


def summary(name: str) -> str:
    """The flags of a method's run that matter most, in groups; the rest of the help says all."""
    spec, kind = METHODS[name], command(name)
    sizes = {
        "gaussian": ("latents_per_class", "latent_size", "decoder_width"),
        "pixels": ("images_per_class",),
        "spectral": ("spectra_per_class", "rank"),
    }
    counted = spec.items(spec.options(), 10) is not None
    own = [f.name for f in dataclasses.fields(spec.options)][:4]
    shown: dict[str, list[tuple[type, str]]] = {
        "data": [(Data, "dataset"), (Data, "train_limit"), (Data, "validation")],
        "method": [(spec.options, field) for field in own],
        "size of the result": [(Parametrization, "kind"), (Parametrization, "labels")],
        "run": [(Run, "outer_steps"), (kind, "out"), (Architecture, "width"), (Run, "seed")],
    }
    if not counted:
        stored = [(Parametrization, f) for f in ("budget", *sizes[spec.parametrization])]
        shown["size of the result"][1:1] = stored
    lines = []
    for group, flags in shown.items():
        lines.append(f"{group}:")
        for holder, option in flags:
            flag = "--" + ("parametrization" if option == "kind" else option.replace("_", "-"))
            said = _docs(holder).get(option, "not described").split(". ")[0].rstrip(".")
            default = getattr(holder(), option)
            said += "" if default is None else f" (default: {default})"
            lines += textwrap.wrap(
                said, 98, initial_indent=f"  {flag:20}", subsequent_indent=" " * 22
            )
    return "\n".join(lines)


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
