"""`psychepass STAGE CONFIG [key=value …] [--dry-run]`: the stage's module is imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from psychepass.errors import Unfinished, UserError
from psychepass.leaving import leave_with

AGAIN = 75  # EX_TEMPFAIL of sysexits.h
DRY_RUN = "--dry-run"
STAGES = {
    "profiles": ("rollout_env.profile_pipeline", "seeds become fictional clients: profiles.jsonl, splits.yaml"),
    "scripts": ("rollout_env.generate_scripts", "a model writes the clients' scripts, beside the built ones"),
    "simulate": ("rollout_env.simulate", "clients meet therapists: sessions.jsonl"),
    "tournament": ("tournament.run", "sessions meet in a Swiss tournament: battles.jsonl, ratings.json"),
    "analysis": ("tournament.analysis", "what the battles say beside the ratings: tables and figures"),
    "audit": ("tournament.audit", "the judge beside human raters: blinded rating sheets out, agreement in"),
    "data": ("training.build", "battles become preference pairs and RL prompts"),
    "import-pairs": ("training.imported", "or: pairs from a file of chosen and rejected conversations"),
    "rm": ("reward_model.train", "train the Bradley-Terry reward model on the pairs"),
    "rm-eval": ("reward_model.evaluate", "its accuracy on test clients, beside baselines"),
    "serve-rm": ("reward_model.serve", "answer groups of replies with rewards over HTTP"),
    "score": ("reward_model.score", "the same for the rows of a file"),
    "best-of-n": ("tournament.best_of_n", "its best of n replies against a random one, under the tournament's judge"),
    "grpo": ("rl.train", "align the policy with GRPO on verl"),
    "heldout": ("tournament.heldout", "base against aligned policy on held-out clients"),
    "report": ("psychepass.report", "one HTML page over a run's files"),
}


def usage() -> str:
    rows = "\n".join(f"  {name:<13} {what}" for name, (_, what) in STAGES.items())
    return (
        "usage: psychepass STAGE CONFIG.yaml [key=value ...] [--dry-run]\n\n"
        f"stages:\n{rows}\n\n"
        "--dry-run prints calls, tokens and cost by model, and asks nothing (stages that call models)\n\n"
        "Research software; does not replace a clinician."
    )


def main(argv: list[str] | None = None) -> int:
    """Run one stage. Exit 0: done; 2: something the user can mend, said in one sentence; 75: endpoints did not answer,
    and the same call, made later, goes on."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    stage, *rest = args
    if stage not in STAGES:
        print(f"psychepass: unknown stage {stage!r}; permitted: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    module_name, what = STAGES[stage]
    if not rest or rest[0] in ("-h", "--help"):
        print(f"usage: psychepass {stage} CONFIG.yaml [key=value ...]\n{what}; see {module_name} and configs/")
        return 0 if rest else 2
    try:
        _run(importlib.import_module(module_name), rest[0], rest[1:])
    except UserError as e:
        print(f"psychepass {stage}: {e}", file=sys.stderr)
        return AGAIN if isinstance(e, Unfinished) else 2
    except KeyboardInterrupt:
        print(f"psychepass {stage}: interrupted; call it again to go on", file=sys.stderr)
        return 130
    return 0


def _run(module: ModuleType, config_path: str, options: list[str]) -> None:
    overrides = [o for o in options if o != DRY_RUN]
    if len(overrides) == len(options):
        module.main(config_path, overrides)
    elif hasattr(module, "dry_run"):
        module.dry_run(config_path, overrides)
    else:
        raise UserError(f"{DRY_RUN}: this stage calls no model; call it without")


if __name__ == "__main__":
    leave_with(main)
