"""How much work a dispatch has: outer steps, subtasks; and what XLA's flags make of a step."""

import os
from functools import partial
from typing import Any

import jax

from benchmarks.accelerator.case import DRY, FULL, Case, Size, mebibytes, seconds_of
from benchmarks.accelerator.parts import compiled
from benchmarks.accelerator.steps import advance, make, outer_step
from benchmarks.compile_vs_throughput import compiled_chunk
from benchmarks.suite import Row, elsewhere

SUBTASKS, STEPS = 4, 5
FLAGS = {
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "loops in command buffers": "--xla_gpu_enable_command_buffer="
    "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL",
    "no autotuning": "--xla_gpu_autotune_level=0",
}


def chunks(size: Size) -> list[Case]:
    """Outer steps a dispatch: one program, which is told how many."""
    several = sorted({1, max(1, size.chunk // 10), size.chunk})
    work = f"MTT, {', '.join(map(str, several))} outer steps a dispatch"
    return [Case("dispatch", work, partial(_chunks, several, size), 20.0, 2)]


def _chunks(several: list[int], size: Size) -> Row:
    method, real = make("MTT", size, size.images_per_class[0], size.inner_steps[0])
    key = jax.random.key(0)
    last = [jax.jit(method.init)(key, real)]
    program, cold = compiled_chunk(method, size.chunk, key, last[0], real)
    found: Row = {"compile_seconds": cold["compile"], "mib": mebibytes(program)}
    for number in several:
        call = partial(advance, program, key, last, real, number)
        found[f"steps_per_second_{number}"] = number / seconds_of(call, size.steady)
    found["steps_per_second"] = found[f"steps_per_second_{several[-1]}"]
    return found


def subtasks(size: Size) -> list[Case]:
    """Subtasks on one device, one after another and together."""
    return [
        Case(
            "dispatch", f"{SUBTASKS} subtasks of MTT {form}", partial(_subtasks, form, size), 20, 2
        )
        for form in ("one after another", "together")
    ]


def _subtasks(form: str, size: Size) -> Row:
    method, real = make("MTT", size, size.images_per_class[0], size.inner_steps[0])
    keys = jax.random.split(jax.random.key(0), SUBTASKS)
    states = jax.jit(jax.vmap(method.init, (0, None)))(keys, real)

    def steps(key: Any, state: Any, real: Any) -> Any:
        return jax.lax.fori_loop(0, STEPS, lambda _, s: method.step(key, s, real)[0], state)

    def several(keys: Any, states: Any, real: Any) -> Any:
        if form == "together":
            return jax.vmap(steps, (0, 0, None))(keys, states, real)
        return jax.lax.map(lambda x: steps(x[0], x[1], real), (keys, states))

    program, compiling = compiled(several, keys, states, real)
    seconds = seconds_of(lambda: program(keys, states, real).step, size.steady)
    return {
        "compile_seconds": compiling,
        "steps_per_second": SUBTASKS * STEPS / seconds,
        "mib": mebibytes(program),
    }


def flags(size: Size) -> list[Case]:
    """MTT's step under XLA's flags, in new processes."""
    return [
        Case("flags", f"MTT, {name}", partial(_flagged, flag, size), 35.0, 4)
        for name, flag in FLAGS.items()
    ]


def _flagged(flag: str, size: Size) -> Row:
    accelerated = jax.default_backend() != "cpu"
    others = os.environ.get("XLA_FLAGS", "")
    return elsewhere(
        f"accelerator.smallest({size == DRY})",
        XLA_FLAGS=f"{others} {flag}",
        JAX_PLATFORMS="" if accelerated else "cpu",
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
    )


def smallest(dry: bool) -> Row:
    """MTT's smallest outer step, in this process."""
    size = DRY if dry else FULL
    row = outer_step("MTT", size, size.images_per_class[0], size.inner_steps[0], "tensorfloat32")
    return {name: row[name] for name in ("compile_seconds", "steps_per_second")}
