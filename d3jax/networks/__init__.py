"""The networks of experts and students, as pure functions.

`wrap` makes one of your own Flax module; it imports NNX, when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from d3jax.networks.architectures import INITIALIZATIONS as INITIALIZATIONS
from d3jax.networks.architectures import MLP as MLP
from d3jax.networks.architectures import NAMES as NAMES
from d3jax.networks.architectures import NORMS as NORMS
from d3jax.networks.architectures import POOLINGS as POOLINGS
from d3jax.networks.architectures import PRECISIONS as PRECISIONS
from d3jax.networks.architectures import AlexCifarNet as AlexCifarNet
from d3jax.networks.architectures import ConvNet as ConvNet
from d3jax.networks.architectures import LeNet as LeNet
from d3jax.networks.architectures import ResNet18 as ResNet18
from d3jax.networks.architectures import create as create
from d3jax.networks.architectures import default_depth as default_depth
from d3jax.networks.architectures import from_module as from_module
from d3jax.networks.architectures import initial_parameters as initial_parameters
from d3jax.networks.architectures import known_options as known_options
from d3jax.networks.architectures import number_of_classes as number_of_classes
from d3jax.networks.architectures import parameter_count as parameter_count
from d3jax.networks.architectures import unraveler as unraveler
from d3jax.networks.own import load_network as load_network

if TYPE_CHECKING:
    from d3jax.networks.wrapped import wrap as wrap


def __getattr__(name: str) -> Any:
    if name == "wrap":
        from d3jax.networks.wrapped import wrap

        return wrap
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
