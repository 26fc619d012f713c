#!/usr/bin/env bash
# Stage rm over the GPUs of this machine, or of several. Arguments are the stage's own:
#
#   bash launch/rm.sh configs/rm.yaml [key=value ...]
#
#   NPROC     processes on this node (default: its GPUs, at least 1)
#   LAUNCHER  torchrun (default), or deepspeed (one node)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
#             several nodes that share the run directory: call it once on each (rm.sbatch does)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { echo "usage: bash launch/rm.sh CONFIG.yaml [key=value ...]" >&2; exit 2; }

has_torch() { python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("transformers")))' 2>/dev/null; }
# it installs nothing: setup.sh makes the CPU environment, which is the wrong one beside GPUs
has_torch || { echo "rm.sh: python on PATH has no torch and transformers; activate the environment with psychepass first" >&2; exit 2; }

# a driver too old for torch's CUDA shows its GPUs and can use none: every rank would train on the CPU without a word
GPUS=$(python -c '
import sys, torch
n = torch.cuda.device_count()
if n and not torch.cuda.is_available():
    sys.exit(f"rm.sh: torch sees {n} GPUs and can use none; it is built for CUDA {torch.version.cuda}, which needs a newer driver")
print(max(1, n))
') || exit 2
NPROC=${NPROC:-$GPUS}
NNODES=${NNODES:-1}
[ "$NPROC" = 1 ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

case ${LAUNCHER:-torchrun} in
torchrun)
    nodes=(--standalone)
    [ "$NNODES" = 1 ] || nodes=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    exec python -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$NPROC" -m psychepass.cli rm "$@"
    ;;
deepspeed)
    [ "$NNODES" = 1 ] || { echo "rm.sh: LAUNCHER=deepspeed starts one node, NNODES is $NNODES; use torchrun" >&2; exit 2; }
    devices=(--num_accelerators "$NPROC")
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then  # told a number of them, it would take the node's first
        case $CUDA_VISIBLE_DEVICES in
        *[!0-9,]*)
            echo "rm.sh: CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES; LAUNCHER=deepspeed reads numbers alone; use torchrun" >&2
            exit 2
            ;;
        esac
        devices=(--include "localhost:$(cut -d, -f "1-$NPROC" <<<"$CUDA_VISIBLE_DEVICES")")
    fi
    exec deepspeed "${devices[@]}" --master_addr 127.0.0.1 --master_port "${MASTER_PORT:-29500}" \
        --no_local_rank --module psychepass.cli rm "$@"
    ;;
*)
    echo "rm.sh: LAUNCHER=$LAUNCHER; permitted: torchrun, deepspeed" >&2
    exit 2
    ;;
esac
