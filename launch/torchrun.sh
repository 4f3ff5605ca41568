#!/usr/bin/env bash
# One training on several machines that share the run's folder. On each of them:
#     NODES=2 HEAD=host-of-the-first bash launch/torchrun.sh sft RECIPE [more options of roboalign]
# GPUS: processes on each machine (default 8). PORT: a free port of HEAD (default 29500).
set -euo pipefail
exec torchrun --nnodes="${NODES:?how many machines}" --nproc-per-node="${GPUS:-8}" \
    --rdzv-backend=c10d --rdzv-endpoint="${HEAD:?the first machine}:${PORT:-29500}" --rdzv-id="${RUN_ID:-roboalign}" \
    -m roboalign "$@"
