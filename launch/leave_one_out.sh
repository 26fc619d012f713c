#!/usr/bin/env bash
# Is the reward model more than a detector of who speaks? Train it again without each therapist, and test it on that one.
#
#   bash launch/leave_one_out.sh configs/rm.yaml runs/mine [therapist ...] [key=value ...]
#
# The run has been through rm-eval. A therapist's models of the same weights are left out with it, so one of each
# family is enough (default: every therapist). What is left where it was killed goes on; `psychepass report` then shows
# the accuracies. Each model is one training run by launch/rm.sh: NPROC and LAUNCHER are that script's; one node.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { echo "usage: bash launch/leave_one_out.sh CONFIG.yaml RUN [therapist ...] [key=value ...]" >&2; exit 2; }
[ "${NNODES:-1}" = 1 ] || { echo "leave_one_out.sh: NNODES is $NNODES; permitted: 1" >&2; exit 2; }
config=$1 run=$2
shift 2
metrics=$run/reward_model/metrics.json
[ -f "$metrics" ] || { echo "leave_one_out.sh: $metrics: no such file; run psychepass rm-eval on $run first" >&2; exit 2; }

names=() changes=()
for word in "$@"; do case $word in *=*) changes+=("$word") ;; *) names+=("$word") ;; esac; done
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(python -c 'import json, sys; print(*json.load(open(sys.argv[1]))["pairs_with"], sep="\n")' "$metrics")

for name in "${names[@]}"; do
    apart=$run/leave_one_out/$(printf %s "$name" | tr -c 'A-Za-z0-9._-' _)
    mkdir -p "$apart"
    for file in pairs.jsonl sessions.jsonl; do ln -sfn "$(realpath "$run/$file")" "$apart/$file"; done
    bash launch/rm.sh "$config" ${changes[@]+"${changes[@]}"} "run=$apart" "leave_out=$name"
    python -m psychepass.cli rm-eval configs/rm-eval.yaml "run=$apart"
done
