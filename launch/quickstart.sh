#!/usr/bin/env bash
# The whole loop on one machine: from client profiles to an aligned policy and its before/after.
# Each line is one stage; a stage that has ended does nothing, so this can be killed and called again.
#
#   bash launch/quickstart.sh [run directory]        (default: runs/quickstart)
set -euo pipefail
. "$(dirname "$0")/setup.sh"

run=${1:-runs/quickstart}
stage() { psychepass "$1" "configs/quickstart/$1.yaml" run="$run"; }

# 1. Clients follow their scripts; six therapists answer.                       -> sessions.jsonl
stage simulate

# 2. Sessions of the same client meet in a Swiss tournament before a judge.     -> battles.jsonl, ratings.json
stage tournament

# 3. Verdicts become preference pairs, base-policy turns become RL prompts.     -> pairs.jsonl, prompts.parquet
stage data

# 4. A Bradley-Terry reward model learns the pairs; test clients measure it.    -> reward_model/
stage rm
stage rm-eval

# 5. The reward model answers over HTTP while GRPO aligns the policy.           -> grpo/, policy/
psychepass serve-rm configs/quickstart/serve-rm.yaml run="$run" &
scorer=$!
trap 'kill $scorer 2>/dev/null; wait $scorer 2>/dev/null || true' EXIT
stage grpo

# 6. Base and aligned policy meet clients that nothing before has seen.         -> heldout/
stage heldout

# 7. Everything on one page.                                                    -> report.html, figures/
stage report

echo "report: $run/report.html"
