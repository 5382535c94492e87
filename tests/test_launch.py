"""d3jax.host.launch: a run in several processes, and what becomes of it when one goes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from d3jax.distill import metrics
from d3jax.host.launch import Processes
from d3jax.types import InputError

WAITING = re.compile(
    r"\d\d:\d\d:\d\d waiting for \d processes to meet at localhost:\d+, at most 300 s\n"
)
RUN = (
    *("distill", "mtt", "--train-limit", "200", "--test-limit", "50", "--network", "mlp"),
    *("--width", "4", "--expert.count", "1", "--expert.epochs", "2", "--inner-steps", "2"),
    *("--max-start-epoch", "1", "--student.students", "2", "--student.epochs", "2"),
    *("--student.augmentation", "flip", "--inner-augmentation", "flip", "--baselines", "random"),
    *("--outer-steps", "12000", "--chunk", "50", "--storage", "float32"),
    *("--subtasks", "2", "--checkpoint-minutes", "0.02"),
)


def start(folder, *more, devices=1):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, "-m", "d3jax", *RUN, "--out", str(folder), *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_several(folder, number, *more):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(folder, "--coordinator", address, "--num-processes", str(number), "--process-id",
              str(i), *more)
        for i in range(number)
    ]  # fmt: skip


def finish(processes, seconds=300):
    """(status, output, errors) of each."""
    said = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, said, strict=True)]


def when_saved(folder, processes):
    """Waits until a run has a checkpoint of its outer steps."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        if [f for f in folder.glob("checkpoints/*/*") if f.name.isdigit()]:
            return
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def worker(process):
    """The process below a supervising parent."""
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        return int(file.read().split()[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The artifact of an uninterrupted run of one process with two devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    ((status, _, errors),) = finish([start(folder, devices=2)])
    assert (status, errors) == (0, "")
    return (folder / "artifact.safetensors").read_bytes()


@pytest.mark.long
def test_a_process_is_lost_and_the_run_goes_on(alone, tmp_path):
    """Two processes, of which one is killed; then two again, to the bytes of an undisturbed one."""
    folder = tmp_path / "run"
    both = start_several(folder, 2)
    when_saved(folder, both)
    os.kill(worker(both[1]), signal.SIGKILL)
    killed = time.monotonic()
    survivor, victim = finish(both, 60)
    assert time.monotonic() - killed < 60
    again = "d3jax: run the same command again, in every process, to go on\n"
    assert survivor[0] == victim[0] == 75
    lost = "d3jax: another process of this run was lost; what was saved is whole\n"
    assert survivor[2] == lost + again, survivor[2]
    assert WAITING.fullmatch(victim[1])
    assert (
        victim[2] == "d3jax: this process was killed (by the system, if memory ran out)\n" + again
    )
    assert not (folder / "report.json").exists()
    first, second = finish(start_several(folder, 2))
    assert (first[0], first[2]) == (0, "")
    assert (second[0], second[2]) == (0, "")
    assert WAITING.fullmatch(second[1])
    assert "resuming at outer step" in first[1]
    assert (folder / "artifact.safetensors").read_bytes() == alone
    for number in range(2):
        rows = metrics.read(folder / f"subtask-{number}" / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, 12001))


@pytest.mark.slow
def test_four_processes_stop_and_one_goes_on(tmp_path):
    """Asked to stop, all do, and one process says so; a run of four devices takes it over."""
    folders = [tmp_path / name for name in ("undisturbed", "run")]
    ((status, _, errors),) = finish([start(folders[0], "--subtasks", "4", devices=4)])
    assert (status, errors) == (0, "")
    four = start_several(folders[1], 4, "--subtasks", "4")
    when_saved(folders[1], four)
    four[2].send_signal(signal.SIGTERM)
    ended = finish(four, 60)
    assert [status for status, _, _ in ended] == [75] * 4
    assert ended[0][2] == "d3jax: interrupted, all is saved: resume with the same command\n"
    assert all(WAITING.fullmatch(said) for _, said, _ in ended[1:])
    assert [errors for *_, errors in ended[1:]] == ["", "d3jax: stopping after this chunk\n", ""]
    ((status, said, errors),) = finish([start(folders[1], "--subtasks", "4", devices=4)])
    assert (status, errors) == (0, "")
    assert "resuming at outer step" in said
    one, other = ((folder / "artifact.safetensors").read_bytes() for folder in folders)
    assert one == other


@pytest.mark.slow
def test_a_wait_for_the_others_is_said_and_heeds_signals(tmp_path):
    address = ("--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "1")
    with start(tmp_path / "run", *address) as process:
        assert WAITING.fullmatch(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 75
        assert process.stderr.read().startswith("d3jax: interrupted before the processes")


@pytest.mark.slow
def test_what_is_refused_is_said_once(tmp_path):
    ended = finish(start_several(tmp_path / "run", 2, "--subtasks", "11"))
    assert [status for status, _, _ in ended] == [2, 2]
    assert "can be cut into 1 to 10 subtasks, not 11" in ended[0][2]
    assert WAITING.fullmatch(ended[1][1])
    assert ended[1][2] == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Processes(distributed=True, num_processes=2), "not both"),
        (Processes(coordinator="a:1"), "go together"),
        (Processes(False, "a", 2, 0), "HOST:PORT"),
        (Processes(False, "a:1", 2, 2), "process_id must be from 0 to 1, not 2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    assert options.several
    with pytest.raises(InputError, match=message):
        options.check()


def test_one_process_is_not_several():
    Processes().check()
    assert not Processes().several
