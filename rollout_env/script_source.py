"""Where the scripts of a stage come from: built from the shipped banks, or read from a file of stage `scripts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Profile, Script
from rollout_env.banks import Bank, shipped_banks
from rollout_env.minors import script_faults
from rollout_env.script import Form, build_script
from rollout_env.script_lint import lint


def scripts_for(
    profile_ids: Sequence[str], profiles: Mapping[str, Profile], form: Form, path: str | Path | None
) -> dict[str, Script]:
    """profile id -> script; `path` None builds them.

    Raises:
        UserError: a client without a script or with two, another form, a fault that script_lint or
            minors.script_faults finds.
    """
    if path is None:
        built = {p: build_script(profiles[p], form) for p in profile_ids}
        if faults := [fault for p in profile_ids for fault in script_faults(built[p], profiles[p])]:
            raise UserError(f"{len(faults)} faults in built scripts; the first: {faults[0]}")
        return built
    found: dict[str, Script] = {}
    for script in records.read(path, Script):
        if script.profile_id in found:
            raise UserError(f"{path}: two scripts of client {script.profile_id!r}; permitted: one")
        found[script.profile_id] = script
    missing = [p for p in profile_ids if p not in found]
    if missing:
        raise UserError(f"{path}: no script of {len(missing)} clients, {', '.join(missing[:5])} among them")
    other = next((s for p in profile_ids if (s := found[p]).form != form), None)
    if other:
        raise UserError(f"{path}: the script of {other.profile_id!r} has the form {other.form!r}, not {form!r}")
    faults = [fault for p in profile_ids for fault in lint(found[p], bank_named(found[p].bank))]
    faults += [fault for p in profile_ids for fault in script_faults(found[p], profiles[p])]
    if faults:
        raise UserError(f"{path}: {len(faults)} faults; the first: {faults[0]}")
    return {p: found[p] for p in profile_ids}


def bank_named(name: str) -> Bank:
    """The shipped bank whose needs and techniques a script draws on.

    Raises:
        UserError: there is none of this name.
    """
    banks = {b.bank: b for b in shipped_banks()}
    if name not in banks:
        raise UserError(f"bank is {name!r}; permitted: {', '.join(banks)}")
    return banks[name]
