#!/bin/bash
# D3 with its subtasks over the GPUs of several nodes, one process for each GPU, as one Slurm job:
#
#   DATASET=imagenet_resized/64x64 SUBTASKS=5 OUT=runs/imagenet64 \
#     sbatch --ntasks=5 --gpus-per-task=1 experiments/launch/slurm_job.sh
#
# OUT lies where all nodes see it. More options of `d3jax distill d3` may follow. JAX learns from
# Slurm who the others are. When a node is lost the other processes end with 75, and so they do when
# Slurm takes the job away: it is requeued then, and goes on.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail
: "${DATASET:?the data set}" "${SUBTASKS:?how many subtasks}" "${OUT:?the folder of the run}"

srun d3jax distill d3 --distributed --dataset "$DATASET" --subtasks "$SUBTASKS" --out "$OUT" \
  "$@" || code=$?
if [ "${code:-0}" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "${code:-0}"
