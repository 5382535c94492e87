"""Subtasks as one program: a leading axis of equal ones, sharded over the devices of a mesh.

On a device they run one after another, which equals running each alone, or together under vmap. No
device needs anything of another while a chunk of outer steps runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from d3jax import distill
from d3jax.distill import Chunk
from d3jax.stages import Stage, stage_key
from d3jax.types import Method, PyTree, Real, State

AXIS = "subtask"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of one axis over `devices`, default all of all processes."""
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), (AxisType.Auto,), devices=chosen)


def spread(function: Callable[..., Any], mesh: Mesh, *, together: bool = False) -> Callable:
    """`function` of one subtask's arguments as one of [slots, ...] arguments, sharded over `mesh`.

    together: under vmap on each device, faster on accelerators and equal to rounding; default one
      after another.
    """

    def local(*arguments: Any) -> Any:
        if together:
            return jax.vmap(function)(*arguments)
        return jax.lax.map(lambda one: function(*one), arguments)

    over = PartitionSpec(AXIS)
    # What a loop inside starts from (zeros) is the same everywhere, what it becomes is not.
    return jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over, check_vma=False)


class Slots(NamedTuple):
    """Subtasks of one shape in the rows of sharded arrays, as many for each device.

    Where they do not divide the devices, the last rows repeat the last subtask, and do nothing.
    """

    subtasks: tuple[int, ...]  # their numbers
    mesh: Mesh

    @property
    def number(self) -> int:
        """The rows."""
        devices = self.mesh.size
        return -(-len(self.subtasks) // devices) * devices

    def subtask(self, slot: int) -> int:
        """The subtask in a row."""
        return self.subtasks[min(slot, len(self.subtasks) - 1)]

    def local(self) -> list[int]:
        """The rows that this process holds."""
        each = self.number // self.mesh.size
        owners = [device.process_index for device in self.mesh.devices.ravel()]
        return [s for s in range(self.number) if owners[s // each] == jax.process_index()]

    def sharding(self) -> NamedSharding:
        """Rows over devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def stack(self, make: Callable[[int], PyTree]) -> PyTree:
        """[slots, ...] arrays out of what `make` says of each subtask; only of this process's own.

        `make` gives NumPy arrays, of equal shapes for all.
        """
        made: dict[int, PyTree] = {}
        for slot in self.local():
            subtask = self.subtask(slot)
            if subtask not in made:
                made[subtask] = make(subtask)
        rows = [made[self.subtask(slot)] for slot in self.local()]

        def joined(*leaves: np.ndarray) -> Array:
            shape = (self.number, *np.shape(leaves[0]))
            return jax.make_array_from_process_local_data(self.sharding(), np.stack(leaves), shape)

        return jax.tree.map(joined, *rows)

    def numbers(self) -> Array:
        """The subtasks' numbers i32[slots]."""
        return self.stack(lambda subtask: np.asarray(subtask, np.int32))

    def live(self, steps: int) -> Array:
        """i32[slots]: `steps` for each subtask, none for a row that only fills up."""
        flags = np.arange(self.number) < len(self.subtasks)
        values = (steps * flags).astype(np.int32)
        return jax.make_array_from_callback(values.shape, self.sharding(), lambda i: values[i])

    def kept(self, tree: PyTree) -> PyTree:
        """The rows of subtasks alone, [subtasks, ...], on every device: what a checkpoint holds,
        so that a run goes on with another number of devices."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        number = len(self.subtasks)
        return jax.jit(
            lambda tree: jax.tree.map(lambda x: x[:number], tree), out_shardings=everywhere
        )(tree)

    def filled(self, tree: PyTree) -> PyTree:
        """The rows [slots, ...] again of what `kept` gave."""
        index = jnp.minimum(jnp.arange(self.number), len(self.subtasks) - 1)
        return jax.jit(
            lambda tree: jax.tree.map(lambda x: x[index], tree), out_shardings=self.sharding()
        )(tree)


class Program(NamedTuple):
    """A method over the subtasks of some slots, compiled."""

    slots: Slots
    start: Callable[[], State]
    advance: Callable[[State, int], Chunk]  # (state, which is consumed; steps, at most a chunk)
    compiled_text: Callable[[], str]  # of `advance`


def program(
    method: Method, slots: Slots, real: Real, seed: int, chunk: int, *, together: bool = False
) -> Program:
    """`method` for each subtask, with keys that follow from its number.

    Args:
      method: of one subtask.
      slots: the subtasks.
      real: [slots, ...] of each.
      seed: of the run.
      chunk: most outer steps per dispatch.
      together: see `spread`.
    """

    def keys(number: Array) -> tuple[Array, Array]:
        for_start, for_steps = jax.random.split(stage_key(seed, Stage.DISTILL, number))
        return for_start, for_steps

    def start(number: Array, real: Real) -> State:
        return method.init(keys(number)[0], real)

    one_chunk = distill.chunk_function(method, chunk)

    def advance(number: Array, state: State, real: Real, steps: Array) -> Chunk:
        return one_chunk(keys(number)[1], state, real, steps)

    numbers = slots.numbers()
    compiled = jax.jit(spread(advance, slots.mesh, together=together), donate_argnums=1)
    started = jax.jit(spread(start, slots.mesh, together=together))

    def compiled_text() -> str:
        state = jax.eval_shape(started, numbers, real)
        return compiled.lower(numbers, state, real, slots.live(chunk)).compile().as_text() or ""

    return Program(
        slots,
        lambda: started(numbers, real),
        lambda state, steps: compiled(numbers, state, real, slots.live(steps)),
        compiled_text,
    )


def everywhere(tree: PyTree) -> PyTree:
    """Sharded arrays as whole NumPy arrays in every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)
