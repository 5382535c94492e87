#!/bin/bash
# D3 with its subtasks over the chips of a Cloud TPU pod slice, one process on each of its hosts:
#
#   TPU=my-slice ZONE=us-central2-b DATASET=imagenet_resized/64x64 SUBTASKS=5 \
#     OUT=/mnt/shared/imagenet64 experiments/launch/tpu_pod.sh
#
# d3jax is installed on every host (pip install 'd3jax' 'jax[tpu]'), and OUT and the data lie where
# all hosts see them (Filestore, or a bucket that is mounted). More options of `d3jax distill d3` may
# follow. Exit status 75: run it again, and it goes on.
set -euo pipefail
: "${TPU:?the slice}" "${ZONE:?its zone}" "${DATASET:?the data set}" "${SUBTASKS:?how many subtasks}"
: "${OUT:?the folder of the run}"

printf -v command '%q ' d3jax distill d3 --distributed --dataset "$DATASET" \
  --subtasks "$SUBTASKS" --out "$OUT" "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
