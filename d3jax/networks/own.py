"""Networks of the user's own, by a name package.module:function.

`wrapped`, which makes them, is imported where one is loaded, so that commands without one do not
wait for NNX.
"""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3jax.types import InputError, Network


def load_network(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    compute: str = "float32",
) -> Network:
    """The network that a function of the user's makes: `--network package.module:function`.

    The function is called as `function(image_shape=(H, W, C), num_classes=K)`, and gives a Flax
    module as `wrap` takes it (of NNX a callable, since several networks are drawn), or a
    `types.Network`. Modules are found where Python finds them, and in the current folder.

    Importing runs code: `name` must come from the user, never from a file that was given to them.

    Raises:
      InputError: there is no such module or function, it fails, or gives something else.
    """
    from flax import linen as nn
    from flax import nnx

    from d3jax.networks import wrapped

    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise InputError(f"a network of your own is named package.module:function, not {name!r}")
    function = getattr(_imported(module_name, name), function_name, None)
    if not callable(function):
        raise InputError(f"the module {module_name} has no function {function_name}")
    try:
        made: Any = function(image_shape=tuple(image_shape), num_classes=num_classes)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} fails: {wrapped.quoted(error)}") from error
    if isinstance(made, nnx.Module):
        raise InputError(
            f"{name} gives an NNX module with its weights drawn, the same for every student; let "
            f"it give a function of rngs that makes one"
        )
    if isinstance(made, Network):
        if compute != "float32":
            raise InputError(
                f"{name} gives a Network, which has a precision of its own; leave out --compute"
            )
        network = made
    elif isinstance(made, nn.Module) or wrapped.makes_modules(made):
        network = wrapped.wrap(made, image_shape=image_shape, compute=compute)
    else:
        raise InputError(
            f"{name} gives {wrapped.shown(made)}, not a Flax module or a d3jax Network"
        )
    found = wrapped.checked_classes(network, image_shape, f"the network {name}")
    if found != num_classes:
        raise InputError(f"the network {name} has {found} logits for {num_classes} classes")
    return network


def is_own(network: Any) -> bool:
    """Whether this is the name of a function of the user's that makes a network."""
    return isinstance(network, str) and ":" in network


def identified(
    architecture: dict[str, Any], network: Network, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The fields of a network's configuration, and of one's own what its code computes.

    So that what is stored of it (experts, a run's folder) is not taken for that of the code as it
    was before a change. `network` is what the fields describe.
    """
    if not is_own(architecture.get("network")):
        return architecture
    return {**architecture, "definition": definition(network, image_shape)}


@lru_cache(maxsize=32)
def definition(network: Network, image_shape: tuple[int, int, int]) -> str:
    """A hash of what `network` computes, for what is stored of a network that d3jax has not made.

    It changes where the code changes what is computed, and with JAX's way to write it down.
    """
    key = jax.random.key(0)
    params = jax.eval_shape(network.init, key)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    found = hashlib.sha256()
    for program in (
        jax.make_jaxpr(network.init)(key),
        jax.make_jaxpr(network.forward)(params, images),
    ):
        found.update(re.sub(r"0x[0-9a-f]+", "", str(program)).encode())
        for constant in program.consts:
            is_key = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
            array = jax.random.key_data(constant) if is_key else constant
            found.update(np.asarray(array).tobytes())
    return found.hexdigest()[:16]


def _imported(module: str, name: str) -> Any:
    from d3jax.networks import wrapped

    try:
        with _current_folder():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{module} cannot be imported: {wrapped.quoted(error)}") from error
        raise InputError(
            f"there is no module {error.name} for the network {name}, neither installed nor in "
            f"the folder {os.getcwd()}"
        ) from None
    except Exception as error:
        raise InputError(f"{module} cannot be imported: {wrapped.quoted(error)}") from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Python finds modules in the current folder too, first."""
    folder = os.getcwd()
    importlib.invalidate_caches()  # a file may be a moment old
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
