"""Networks of the user's own, by a name package.module:function; `wrapped` makes them.

Apart from it, so that commands without one do not wait for NNX to be imported.
"""

from typing import Any

from d3jax.types import Network


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
    from d3jax.networks.wrapped import definition

    return {**architecture, "definition": definition(network, image_shape)}
