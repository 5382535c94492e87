"""Real data: a data set by name or path, its normalization, and what of it goes to the device."""

from d3jax.data.arrays import Dataset as Dataset
from d3jax.data.arrays import held_out as held_out
from d3jax.data.arrays import host_arrays as host_arrays
from d3jax.data.arrays import load as load
from d3jax.data.arrays import padded as padded
from d3jax.data.arrays import resize as resize
from d3jax.data.normalization import Normalization as Normalization
from d3jax.data.normalization import histogram as histogram
