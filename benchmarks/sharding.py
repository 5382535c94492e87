"""One outer step of four subtasks by vmap, shard_map and pmap, over 1, 2 and 4 CPU devices.

MTT's step (CIFAR-10's shape, ConvNet depth 3, width 32, T = 10, one image per class); subtasks of
one device run under vmap or, where it says so, one after another (`lax.map`). Each row is a process
of its own with so many CPU devices. On a machine of two cores devices share them: what can be read
off is what each form costs beside plain vmap, not what more hardware gains. `subtasks` measures
what a whole run does over devices and processes.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from benchmarks.outer_steps import trajectory
from benchmarks.suite import Cases, Row, Table, bars, elsewhere

SUBTASKS, STEPS = 4, 5
FORMS = ("vmap", "shard_map", "shard_map, one after another", "pmap")


def measure(form: str, devices: int, rounds: int) -> Row:
    """Seconds of an outer step of all subtasks, over this process's devices."""
    method, real = trajectory("mtt")
    keys = jax.random.split(jax.random.key(0), SUBTASKS)

    def steps(key: Any, state: Any, real: Any) -> Any:
        """Some steps of one subtask."""
        return jax.lax.fori_loop(0, STEPS, lambda _, s: method.step(key, s, real)[0], state)

    def several(keys: Any, states: Any, reals: Any) -> Any:
        if "one after another" in form:
            return jax.lax.map(lambda x: steps(*x), (keys, states, reals))
        return jax.vmap(steps)(keys, states, reals)

    states = jax.jit(jax.vmap(method.init, (0, None)))(keys, real)
    reals = jax.tree.map(lambda x: jnp.stack([x] * SUBTASKS), real)
    whole = (keys, states, reals)
    if form == "vmap":
        function = jax.jit(several)
    elif form == "pmap":
        whole = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), whole)
        function = jax.pmap(several)
    else:
        mesh = jax.make_mesh((devices,), ("subtasks",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("subtasks")
        whole = jax.device_put(whole, NamedSharding(mesh, spec))
        function = jax.jit(jax.shard_map(several, mesh=mesh, in_specs=spec, out_specs=spec))
    begun = time.monotonic()
    end = jax.block_until_ready(function(*whole))
    first = time.monotonic() - begun
    wall, cpu = time.monotonic(), time.process_time()
    for _ in range(rounds):
        jax.block_until_ready(function(*whole))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    total = sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(end.theta))
    return {
        "form": form,
        "devices": devices,
        "wall_seconds": wall / rounds / STEPS,
        "cpu_seconds": cpu / rounds / STEPS,
        "first_call_seconds": first,
        "sum_of_theta": float(total),
    }


def row(form: str, devices: int, rounds: int) -> Row:
    """As `measure`, in a new process with so many devices."""
    arguments = f"{form!r}, {devices}, {rounds}"
    return elsewhere(f"sharding.measure({arguments})", JAX_NUM_CPU_DEVICES=str(devices))


def cases(quick: bool) -> Cases:
    """vmap on one device, the others on 1, 2 and 4; quick: 1 and 2."""
    found: Cases = {"vmap, 1 device": partial(row, "vmap", 1, 1 if quick else 3)}
    for form in FORMS[1:]:
        for devices in (1, 2) if quick else (1, 2, 4):
            name = f"{form}, {devices} device{'s' if devices > 1 else ''}"
            found[name] = partial(row, form, devices, 1 if quick else 3)
    return found


def table(rows: list[Row]) -> Table:
    """Seconds of a step of all four."""
    return ["4 subtasks by", "wall s", "CPU s", "first call s", "sum of theta"], [
        [
            row["work"],
            f"{row['wall_seconds']:.3f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['first_call_seconds']:.1f}",
            f"{row['sum_of_theta']:.2f}",
        ]
        for row in rows
    ]


def plot(rows: list[Row]) -> Figure:
    """Wall seconds."""
    return bars([r["work"] for r in rows], [r["wall_seconds"] for r in rows], "wall seconds")
