#!/bin/bash
# D3 with one Slurm task per subtask, each a job of its own, and then the join:
#
#   DATASET=imagenet_resized/64x64 SUBTASKS=5 OUT=runs/imagenet64 experiments/launch/slurm_array.sh
#
# submits both. More options of `d3jax distill d3` may follow; with LABELS=expert the join gives the
# whole an expert's labels. A task that a signal or a lost node has stopped resumes when it is
# requeued (d3jax exits with 75).
#SBATCH --gpus=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then # called by hand
  : "${DATASET:?the data set}" "${SUBTASKS:?how many subtasks}" "${OUT:?the folder of the runs}"
  export DATASET SUBTASKS OUT
  mkdir -p "$OUT"
  array=$(sbatch --parsable --array="0-$((SUBTASKS - 1))" --output="$OUT/%a.log" "$0" "$@")
  sbatch --dependency="afterok:$array" --output="$OUT/join.log" --wrap \
    "d3jax join $OUT/*/artifact.safetensors --out $OUT/artifact.safetensors \
     --dataset $DATASET --labels ${LABELS:-hard} --experts $OUT/experts"
  exit
fi

# 75: unfinished, run me again.
d3jax distill d3 --dataset "$DATASET" --subtasks "$SUBTASKS" --subtask "$SLURM_ARRAY_TASK_ID" \
  --experts "$OUT/experts" --out "$OUT/$SLURM_ARRAY_TASK_ID" "$@" || code=$?
if [ "${code:-0}" -eq 75 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "${code:-0}"
