"""Subtasks as one program: a leading axis of equal ones, sharded over the devices of a mesh.

On a device they run one after another, which equals running each alone, or together under vmap. No
device needs anything of another while a chunk of outer steps runs.

Over several devices XLA may rewrite a division by a scalar (as Adam's, of D3's latents) as it does
not on one: then a run differs in the last bit from one on one device, but not from the same subtask
alone, nor from another number of processes, over as many devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from d3jax import distill, experts
from d3jax.distill import Chunk, Program
from d3jax.experts.epoch import epoch_function
from d3jax.host import compilation
from d3jax.host.processes import everywhere
from d3jax.keys import Stage, stage_key
from d3jax.types import InputError, Method, Network, PyTree, Real, State

AXIS = "subtask"
DEVICE = "device"


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


def with_own_aux(method: Method, number: int) -> Method:
    """`method` on `number` devices, each with an `aux` of its own; all else of its state is one.

    method: averages what moves theta over the mesh axis `DEVICE` (`compose`'s axis), and draws with
      that axis' index what shall differ. Its state's `aux` gets a leading axis of devices.

    Raises:
      InputError: there are not so many devices.
    """
    if not 1 <= number <= len(jax.devices()):
        raise InputError(f"there are {len(jax.devices())} devices, not {number}")
    mesh = jax.make_mesh((number,), (DEVICE,), (AxisType.Auto,), devices=jax.devices()[:number])
    one = PartitionSpec()
    states = State(one, one, PartitionSpec(DEVICE), one)  # type: ignore[arg-type]

    def init(key: Array, real: Real) -> State:
        state = method.init(key, real)
        return state._replace(aux=jax.tree.map(lambda x: x[None], state.aux))

    def step(key: Array, state: State, real: Real) -> tuple[State, dict[str, Array]]:
        own = state._replace(aux=jax.tree.map(lambda x: x[0], state.aux))
        after, metrics = method.step(key, own, real)
        return after._replace(aux=jax.tree.map(lambda x: x[None], after.aux)), metrics

    def over(function: Callable[..., Any], given: Any, made: Any) -> Callable[..., Any]:
        # Gradients are averaged by the method, not summed by what knows of axes.
        return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)

    return method._replace(
        init=over(init, (one, one), states), step=over(step, (one, states, one), (states, one))
    )


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
        """The rows that this process holds, padding rows (which repeat the last subtask) too."""
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

    def live(self, value: int) -> Array:
        """i32[slots]: `value` for each subtask, zero for a padding row."""
        values = np.where(np.arange(self.number) < len(self.subtasks), value, 0).astype(np.int32)
        return jax.make_array_from_callback(values.shape, self.sharding(), lambda i: values[i])

    def same(self, value: Any) -> Array:
        """`value` in each row."""
        value = np.asarray(value)
        shape = (self.number, *value.shape)
        whole = np.broadcast_to(value, shape)
        return jax.make_array_from_callback(shape, self.sharding(), lambda i: whole[i])

    def owned(self) -> tuple[int, ...]:
        """The subtasks that are this process's own."""
        return tuple(self.subtask(slot) for slot in self.local() if slot < len(self.subtasks))

    def own(self, array: Array) -> dict[int, np.ndarray]:
        """The rows of a [slots, ...] array that are this process's own, by subtask."""
        found = {}
        for shard in array.addressable_shards:
            first = shard.index[0].start or 0
            for slot, value in enumerate(np.asarray(shard.data), first):
                if slot < len(self.subtasks):
                    found[self.subtask(slot)] = value
        return found

    def rows(self, tree: PyTree) -> PyTree:
        """The rows of subtasks of sharded arrays, as NumPy arrays in every process."""
        return jax.tree.map(lambda x: x[: len(self.subtasks)], everywhere(tree))


def program(
    method: Method, slots: Slots, real: Real, seed: int, chunk: int, *, together: bool = False
) -> Program:
    """`method` for each subtask, with keys that follow from its number, for `distill.drive`.

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

    steps = distill.chunk_function(method, chunk)

    def advance(number: Array, state: State, real: Real, until: Array) -> Chunk:
        return steps(keys(number)[1], state, real, jnp.clip(until - state.step, 0, chunk))

    numbers = slots.numbers()
    started = compilation.once(spread(start, slots.mesh, together=together))
    return Program(
        start=lambda: started(numbers, real),
        function=jax.jit(spread(advance, slots.mesh, together=together), donate_argnums=1),
        arguments=lambda state, until: (numbers, state, real, slots.live(until)),
        rows=slots.rows,
        strict=False,
    )


def training(
    network: Network,
    options: experts.Options,
    slots: Slots,
    real: Real,
    seed: int,
    *,
    together: bool = False,
) -> experts.Training:
    """The experts of each subtask, for `experts.train_side_by_side`.

    Args:
      network: what they are.
      options: see `experts.Options`; batch size and learning rate must be given, since padding
        hides how many images there are.
      slots: the subtasks.
      real: [slots, ...] of each, with `number`.
      seed: of the run.
      together: see `spread`.
    """
    assert options.batch_size is not None
    assert options.learning_rate is not None
    one_epoch = epoch_function(
        *(network, experts.kinds(options), options.batch_size, options.learning_rate),
        experts.descent(options),
    )
    one_fresh = experts.fresh_parameters(network)

    def fresh(number: Array, members: Array) -> Array:
        root = stage_key(seed, Stage.EXPERTS, number)
        return experts.at_rest(jax.vmap(one_fresh)(experts.keys_of(root, members)), options)

    def epoch(
        number: Array, state: Array, members: Array, real: Real, which: Array
    ) -> tuple[Array, Array]:
        """The epoch of that number; none in a padding row, where the number is 0."""

        def train(state: Array) -> tuple[Array, Array]:
            root = stage_key(seed, Stage.EXPERTS, number)
            return one_epoch(state, experts.keys_of(root, members, which), real, which)

        def nothing(state: Array) -> tuple[Array, Array]:
            return state, jnp.zeros(state.shape[:1], state.dtype)

        return jax.lax.cond(which > 0, train, nothing, state)

    numbers = slots.numbers()
    freshly = compilation.once(spread(fresh, slots.mesh, together=together))
    epochs = jax.jit(spread(epoch, slots.mesh, together=together), donate_argnums=1)
    return experts.Training(
        fresh=lambda members: freshly(numbers, slots.same(members)),
        epoch=lambda state, members, which: epochs(
            numbers, state, slots.same(members), real, slots.live(which)
        ),
        load=slots.stack,
        own=slots.own,
        rows=slots.rows,
        owned=slots.owned(),
        subtasks=len(slots.subtasks),
    )
