"""What a long run shows and how signals end it: d3jax.host.progress and d3jax.host.interrupt."""

import io
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from d3jax import cli
from d3jax.host import compilation, interrupt, progress
from d3jax.host.progress import Reporter, Stage

NOTES = "mmd/loss 0.1234  trajectory/distance 0.5678  trajectory/learning_rate 0.01"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("width", "notes"), [(50, 0), (60, 1), (80, 1), (120, 3)])
def test_count_rate_and_time_left_come_before_what_the_width_leaves(width, notes, clock):
    stage = Stage("outer steps", 5000, 1000)
    clock[0] += 200
    stage.update(2000, NOTES)
    line = stage.line(width)
    assert line.startswith("outer steps 2000/5000, 5/s, 10:00 left")
    assert line.count("/") - 2 == notes
    assert len(line) <= width
    assert stage.line().endswith(NOTES)


def test_compilation_is_in_no_rate(clock):
    stage = Stage("expert epochs", 10)
    compilation._heard("/jax/core/compile/jaxpr_to_mlir_module_duration", 1.0)
    assert "compiling" in stage.line()
    clock[0] += 64
    compilation._heard("/jax/core/compile/backend_compile_duration", 59.0)
    stage.update(1)
    assert stage.line() == "expert epochs 1/10, 4 s each, 36 s left"
    clock[0] += 36
    stage.update(10)
    assert stage.line() == "expert epochs 10/10, 4 s each, 1:40"


@pytest.mark.parametrize("flags", ["", "--xla_backend_optimization_level=0"])
def test_what_runs_once_is_compiled_to_the_same_draws(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    quick = compilation.once(lambda key: jax.random.randint(key, (5,), 0, 100))
    expected = jax.random.randint(jax.random.key(7), (5,), 0, 100)
    assert quick(jax.random.key(7)).tolist() == expected.tolist()


def test_jax_tells_of_its_compilations():
    before = compilation.seconds()
    jax.jit(lambda x: x * 3 + 2)(jnp.ones(7)).block_until_ready()
    assert compilation.seconds() > before
    assert not compilation.now()


@pytest.mark.parametrize(
    ("each", "said"), [(1e-4, "10,000/s"), (0.03, "33.3/s"), (1.0, "1/s"), (7.26, "7.26 s each")]
)
def test_rates(each, said):
    assert progress._rate(each) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-2, "under 1 s"),
        (12.4, "12 s"),
        (125, "2:05"),
        (3725, "1:02:05"),
        (9e4, "1 day, 1:00:00"),
    ],
)
def test_times(seconds, said):
    assert progress._lasting(seconds) == said


def test_lines_of_a_log_have_the_time_of_day(monkeypatch):
    monkeypatch.setattr(progress, "_LONG", 0.01)
    out = io.StringIO()
    reporter = Reporter(Console(file=out))
    reporter.say("begun")
    with reporter.working("compiling the outer step"):
        time.sleep(0.1)
    with reporter.stage("outer steps", 2) as stage:
        stage.update(2)
    lines = out.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[9:] for line in lines[:2]] == ["begun", "compiling the outer step ..."]
    assert lines[2][9:].startswith("compiling the outer step took ")
    assert lines[3][9:].startswith("outer steps 2/2, ")
    Reporter(Console(file=(plain := io.StringIO())), times=False).say("a result")
    assert plain.getvalue() == "a result\n"


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_of_ascii_shows_a_stage_in_ascii(width):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    reporter = Reporter(console)
    with reporter.working("compiling the outer step"):
        pass
    with reporter.stage("outer steps", 5000) as stage:
        stage.update(2500, NOTES)
    shown = re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", raw.getvalue().decode()).replace("\r", "\n")
    (line,) = {line.rstrip() for line in shown.splitlines() if "2500/5000" in line}
    assert ("------" in line) == (width == 80)
    assert max(map(len, shown.splitlines())) <= width
    assert not re.match(r"\d\d:", line)


# Signals

DEAF = """
import hashlib
from d3jax.host.interrupt import answered, interruption
with answered(), interruption("after this chunk"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA: no handler of Python's runs
"""


def test_a_signal_is_answered_while_no_handler_can_run():
    with subprocess.Popen(
        [sys.executable, "-c", DEAF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline()
        assert said == "d3jax: stopping after this chunk; again: at once\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 75
        assert process.stderr.read() == "d3jax: interrupted; what was saved is whole\n"


def test_a_signal_during_imports_ends_quietly(monkeypatch, capsys):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(interrupt.os, "_exit", leave)
    monkeypatch.setattr(cli, "parse", lambda given: signal.raise_signal(signal.SIGINT))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as caught:
        cli.main(["distill", "d3"])
    assert caught.value.code == 75
    assert capsys.readouterr().err == "d3jax: interrupted\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
