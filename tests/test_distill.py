"""d3jax.distill: the outer loop on a quadratic whose trajectory is known."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import distill
from d3jax.distill import metrics
from d3jax.host import processes
from d3jax.host.files import DiskFull
from d3jax.host.progress import Diverged, Interrupted, Reporter
from d3jax.run import profile
from d3jax.types import Method, State

TARGET = np.array([1.0, -2.0, 3.0], np.float32)
STEPS = 20


def quadratic(noise=0.0, fails_at=None, theta_fails_at=None):
    """x <- x - 0.1 (x - TARGET + noise): from 0, x_t = TARGET (1 - 0.9^t) without noise.

    The metric is |x|^2 after the step; step number `fails_at` (from 1) makes it NaN.
    """

    def init(key, real):
        del key, real
        momentum = jnp.zeros(3, jnp.float32)
        return State(
            {"data": jnp.zeros(3, jnp.float32)}, {"data": momentum}, (), jnp.asarray(0, jnp.int32)
        )

    def step(key, state, real):
        del real
        draw = jax.random.normal(jax.random.fold_in(key, state.step), (3,), jnp.float32)
        x = state.theta["data"]
        x = x - 0.1 * (x - jnp.asarray(TARGET) + noise * draw)
        number = state.step + 1
        square = jnp.sum(x * x)
        if fails_at is not None:
            square = jnp.where(number == fails_at, jnp.float32(np.nan), square)
        if theta_fails_at is not None:
            x = jnp.where(number == theta_fails_at, jnp.float32(np.inf), x)
        moved = {"data": state.optimizer["data"] + draw}
        return State({"data": x}, moved, state.aux, number), {"square": square}

    return Method(init, step, lambda state, key: state.theta, None, ())


def run(directory, method=None, steps=STEPS, **options):
    method = quadratic(noise=1.0) if method is None else method
    return distill.run(
        method, jax.random.key(3), None, steps=steps, directory=directory, reporter=Reporter(),
        **options,
    )  # fmt: skip


def rows(directory):
    """The whole file, every line a row."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def squares(directory):
    return [(row["step"], row["square"]) for row in rows(directory)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its last state and its metrics."""
    directory = tmp_path_factory.mktemp("whole")
    state = run(directory)
    return state, squares(directory)


def same(state, other):
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def kill_at(step):
    """Sends SIGTERM to this process when the rows of `step` come by."""

    def observe(rows):
        if any(row["step"] == step for row in rows):
            os.kill(os.getpid(), signal.SIGTERM)

    return observe


def test_closed_form(tmp_path):
    state = run(tmp_path, quadratic())
    np.testing.assert_allclose(state.theta["data"], TARGET * (1 - 0.9**STEPS), rtol=1e-5)
    expected = [(t, 14 * (1 - 0.9**t) ** 2) for t in range(1, STEPS + 1)]
    np.testing.assert_allclose(squares(tmp_path), expected, rtol=1e-5)
    assert int(state.step) == STEPS
    for clock in ("seconds", "cpu_seconds"):
        seconds = [row[clock] for row in rows(tmp_path)]
        assert seconds == sorted(seconds)
        assert seconds[0] >= 0


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_change_no_number(chunk, whole, tmp_path):
    seen = []
    state = run(tmp_path, chunk=chunk, observe=seen.extend)
    same(state, whole[0])
    assert squares(tmp_path) == whole[1]
    assert seen == rows(tmp_path)


def test_resumed_equals_uninterrupted(whole, tmp_path, capsys):
    with pytest.raises(Interrupted):
        run(tmp_path, chunk=7, observe=kill_at(3))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(Interrupted):
        run(tmp_path, chunk=3, observe=kill_at(13))
    assert "resuming at outer step 7" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 13
    state = run(tmp_path)
    same(state, whole[0])
    assert squares(tmp_path) == whole[1]
    for clock in ("seconds", "cpu_seconds"):  # the second run goes on where the first was
        seconds = [row[clock] for row in rows(tmp_path)]
        assert seconds == sorted(seconds)


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    broken = quadratic()._replace(step=None)
    same(run(tmp_path, broken), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_signal_in_the_last_chunk_is_heeded_too(whole, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, observe=kill_at(STEPS))
    same(run(tmp_path), whole[0])


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted):
        run(tmp_path, observe=kill_at(5))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(
    ("where", "named"), [({"fails_at": 14}, "square"), ({"theta_fails_at": 14}, "the state")],
    ids=["metrics", "theta"],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [5, 14, 13, 1])
def test_divergence(where, named, chunk, whole, tmp_path):
    method = quadratic(1.0, **where)
    with pytest.raises(Diverged, match=rf"outer step 14 is not finite \({named}\)"):
        run(tmp_path, method, chunk=chunk)
    assert squares(tmp_path) == whole[1][:13]
    # The state before is saved: without the fault the run goes on from there.
    same(run(tmp_path), whole[0])
    assert squares(tmp_path) == whole[1]


def test_a_full_disk_keeps_the_last_whole_checkpoint(whole, tmp_path, monkeypatch):
    run(tmp_path, steps=10)
    said = "Failed to write 498052 bytes to file 7: No space left on device [os_error_code='28']"

    def fail(*_, **__):
        raise ValueError(said)  # as tensorstore does

    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.save", fail)
        with pytest.raises(DiskFull) as caught:
            run(tmp_path)
    # Two vectors of three float32 and the step.
    path = tmp_path / "checkpoints" / "20"
    assert str(caught.value).startswith(f"the disk is full: {path} needs 28 bytes; ")
    same(run(tmp_path), whole[0])


def test_divergence_at_once_and_again(tmp_path):
    for _ in range(2):
        with pytest.raises(Diverged, match="outer step 1 "):
            run(tmp_path, quadratic(fails_at=1))
        assert rows(tmp_path) == []


def interrupted_twice(directory):
    """Checkpoints of steps 5 and 10."""
    for step in (5, 10):
        with pytest.raises(Interrupted):
            run(directory, chunk=5, observe=kill_at(step))
    assert sorted(f.name for f in (directory / "checkpoints").iterdir()) == ["10", "5"]


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:7])


def gut(folder):
    shutil.rmtree(folder / "default")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def unmanifested(folder):
    for path in folder.rglob("manifest.ocdbt"):
        path.unlink()


@pytest.mark.parametrize("damage", [truncate, gut, empty, unmanifested])
def test_a_damaged_checkpoint_is_passed_over(damage, whole, tmp_path, capsys):
    interrupted_twice(tmp_path)
    damage(tmp_path / "checkpoints" / "10")
    state = run(tmp_path)
    out = capsys.readouterr().out
    assert "resuming at outer step 5" in out
    assert "resuming at outer step 10" not in out
    same(state, whole[0])
    assert squares(tmp_path) == whole[1]


def test_a_checkpoint_that_another_process_cannot_read_is_passed_over(
    whole, tmp_path, capsys, monkeypatch
):
    """All processes go back together, or they would go on from different steps."""
    interrupted_twice(tmp_path)
    asked, ours = [], processes.any_of

    def any_of(*flags):
        asked.append(flags)
        return (True,) if len(asked) == 1 else ours(*flags)

    monkeypatch.setattr(processes, "any_of", any_of)
    state = run(tmp_path)
    assert asked[:2] == [(False,), (False,)]
    out = capsys.readouterr().out
    assert "another process cannot read it" in out
    assert "resuming at outer step 5" in out
    same(state, whole[0])


def test_all_checkpoints_damaged(whole, tmp_path):
    interrupted_twice(tmp_path)
    for step in ("5", "10"):
        truncate(tmp_path / "checkpoints" / step)
    same(run(tmp_path), whole[0])
    for step in ("5", "10"):  # what keeps them from being read may pass
        assert any((tmp_path / f"unreadable-{step}-1").iterdir())
    assert squares(tmp_path) == whole[1]


@pytest.mark.parametrize(
    "tail", ['{"step": 11, "seco', '{"step": 11, "seconds": 0.1, "square": 1.0}\n', "\0" * 9]
)
def test_metrics_are_repaired(tail, whole, tmp_path):
    interrupted_twice(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + tail)
    assert len(metrics.read(path)) == (11 if tail.endswith("\n") else 10)
    run(tmp_path)
    assert squares(tmp_path) == whole[1]


def test_metrics_that_are_not_there(tmp_path):
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_checkpoints_in_between(tmp_path):
    run(tmp_path, chunk=4, checkpoint_minutes=0.0)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["16", "20"]


def test_a_step_that_changes_its_states_types_is_refused(tmp_path):
    def step(key, state, real):
        state, metrics = quadratic().step(key, state, real)
        return state._replace(theta={"data": state.theta["data"][:2]}), metrics

    with pytest.raises(AssertionError, match="shape"):
        run(tmp_path, quadratic()._replace(step=step))


def test_the_chunk_is_compiled_once(tmp_path):
    traced = []
    method = quadratic()

    def step(key, state, real):
        traced.append(1)
        return method.step(key, state, real)

    run(tmp_path, method._replace(step=step), chunk=8)
    # Once for the metrics' shapes, once in the loop.
    assert len(traced) <= 3


def test_a_profile_is_of_one_chunk(whole, tmp_path):
    state = run(tmp_path / "run", chunk=5, profile=tmp_path / "profile")
    same(state, whole[0])
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = {
        event.name
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    }
    assert any("advance" in name for name in events)  # the compiled chunk
    found = profile.kernels(trace)
    assert found[0].seconds >= found[-1].seconds >= 0
    assert {kernel.name for kernel in found} <= events
    assert sum(kernel.calls for kernel in found) > 5


def test_a_kernel_is_not_counted_within_another():
    """A loop of 10 ns with two products of 3 ns, a copy of 1 in one of them; then a copy of 2."""
    events = [
        (1.0, 3.0, "product"), (0.0, 10.0, "loop"), (5.0, 3.0, "product"), (6.0, 1.0, "copy"),
        (10.0, 2.0, "copy"),
    ]  # fmt: skip
    own = sorted(profile._own_times(events))
    assert own == [("copy", 1.0), ("copy", 2.0), ("loop", 4.0), ("product", 2.0), ("product", 3.0)]


def test_the_progress_line_leaves_out_the_norms_of_updates():
    rows = [{"step": 1, "a/loss": 1.0, "a/update_data": 5.0}, {"step": 1, "a/loss": 3.0}]
    assert metrics.note(rows) == "a/loss 2"
