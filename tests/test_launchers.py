"""experiments/launch: what the scripts would run, with stand-ins for the programs of a cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from d3jax import cli
from d3jax.host.launch import Processes
from d3jax.run import commands

LAUNCH = Path(__file__).parent.parent / "experiments" / "launch"
TOLD = {"DATASET": "digits", "SUBTASKS": "5", "OUT": "out"}


@pytest.fixture
def cluster(tmp_path):
    """Runs a script in an empty folder; gives its status and what it called, a line each."""
    for name, does in {
        "d3jax": 'exit "${STATUS:-0}"',
        "srun": 'exec "$@"',
        "sbatch": "echo 17",
        "scontrol": "",
        "gcloud": "",
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho {name} "$@" >> "$CALLS"\n{does}\n')
        program.chmod(0o755)

    def run(script, *arguments, **told):
        calls = tmp_path / "calls"
        calls.write_text("")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "CALLS": str(calls), **TOLD, **told}
        command = ["bash", str(LAUNCH / script), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        return done.returncode, calls.read_text().splitlines()

    return run


def parsed(line):
    """The run that a line `d3jax distill ...` describes."""
    program, *arguments = line.split()
    assert program == "d3jax"
    return cli.parse(arguments)[1]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_the_array_job_submits_itself_and_the_join(cluster):
    status, (first, second) = cluster("slurm_array.sh", "--outer-steps", "7", LABELS="expert")
    assert status == 0
    assert re.match(r"sbatch --parsable --array=0-4 .*slurm_array.sh --outer-steps 7$", first)
    assert "--dependency=afterok:17" in second
    arguments = second.partition("--wrap d3jax ")[2].split()
    _, join = cli.parse(arguments)
    assert isinstance(join, commands.Join)
    assert (join.labels, join.out) == ("expert", Path("out/artifact.safetensors"))


def test_a_task_of_the_array(cluster):
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "17"}
    status, (line,) = cluster("slurm_array.sh", "--outer-steps", "7", **task)
    run = parsed(line)
    assert (status, run.subtasks, run.subtask, run.outer_steps) == (0, "5", 3, 7)
    status, lines = cluster("slurm_array.sh", STATUS="75", **task)
    assert (status, lines[1:]) == (75, ["scontrol requeue 17_3"])
    assert cluster("slurm_array.sh", STATUS="2", **task)[0] == 2


def test_one_job_over_nodes(cluster):
    status, (srun, line) = cluster("slurm_job.sh", "--outer-steps", "7", SLURM_JOB_ID="17")
    run = parsed(line)
    assert (status, run.subtasks, run.subtask, run.outer_steps) == (0, "5", None, 7)
    assert (run.processes, run.parametrization.labels) == (Processes(True), None)
    assert srun == f"srun {line}"
    status, lines = cluster("slurm_job.sh", STATUS="75", SLURM_JOB_ID="17")
    assert (status, lines[2:]) == (75, ["scontrol requeue 17"])


def test_a_tpu_pod(cluster):
    status, (line,) = cluster("tpu_pod.sh", "--outer-steps", "7", TPU="slice", ZONE="zone")
    assert status == 0
    where, _, command = line.partition(" --command=")
    assert where == "gcloud compute tpus tpu-vm ssh slice --zone=zone --worker=all"
    run = parsed(command)
    assert (run.processes, run.subtasks, run.outer_steps) == (Processes(True), "5", 7)
    assert cluster("tpu_pod.sh", TPU="slice")[0] == 1


def test_a_jobset():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    runs = []
    for index in range(pods["completions"]):
        command = " ".join(container["command"]).replace("$(JOB_COMPLETION_INDEX)", str(index))
        runs.append(parsed(command).processes)
        runs[-1].check()
    port = container["ports"][0]["containerPort"]
    name = jobset["metadata"]["name"]  # of the service too: HOST is JOBSET-JOB-0-0.JOBSET
    assert runs[0].coordinator == f"{name}-{job['name']}-0-0.{name}:{port}"
    assert {run.num_processes for run in runs} == {pods["completions"]} == {pods["parallelism"]}
    assert [run.process_id for run in runs] == list(range(5))
