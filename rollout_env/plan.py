"""Which sessions are to be held: every client with the therapists it meets, once a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from psychepass.errors import UserError
from psychepass.schema import Identity, Profile, Sampling, Script, Session, content_hash
from psychepass.splits import Split
from psychepass.weights import resolve, weights_hash
from psychepass.words import language_of
from rollout_env.client import ClientEntry, LLMClient, ScriptedClient
from rollout_env.therapist import TherapistEntry, identify, system_prompt


@dataclass(frozen=True)
class Plan:
    """A session to be held. `played_by` with `profile`: a model plays the client; else the script speaks."""

    script: Script
    split: Split
    therapist: Identity
    system: str
    sampling: Sampling
    target_words: int
    seed: int
    played_by: ClientEntry | None = None
    profile: Profile | None = None

    @cached_property
    def client(self) -> ScriptedClient | LLMClient:
        if self.played_by is None or self.profile is None:
            return ScriptedClient(self.script)
        return LLMClient(self.played_by, self.profile, self.script)

    @cached_property
    def key(self) -> str:
        """The key that the session will have."""
        inputs = {
            "profile_id": self.script.profile_id,
            "script_id": self.script.id,
            "therapist": self.therapist.model_dump(mode="json"),
            "client": self.client.identity.model_dump(mode="json"),
            "target_words": self.target_words,
            "seed": self.seed,
        }
        return content_hash({k: inputs[k] for k in Session.KEY_FIELDS})


def plan_sessions(
    scripts: Sequence[Script],
    therapists: Sequence[TherapistEntry],
    seeds: Sequence[int],
    split_of: Mapping[str, Split],
    target_words: int,
    sampling: Sampling,
    meets: Mapping[Split, Sequence[str]] | None,
    heldout: bool,
    client: ClientEntry | None = None,
    profiles: Mapping[str, Profile] | None = None,
) -> list[Plan]:
    """Arguments and errors as in `rollout_env.session.simulate`."""
    entries = {e.name: e for e in therapists}
    if len(entries) < len(therapists):
        raise UserError(f"two therapists have one name: {sorted(e.name for e in therapists)}")
    unknown = sorted({n for names in (meets or {}).values() for n in names} - set(entries))
    if unknown:
        raise UserError(f"meets names {', '.join(unknown)}; permitted: {', '.join(entries)}")
    if client and client.endpoint:
        unknown = sorted({s.profile_id for s in scripts} - set(profiles or {}))
        if unknown:
            raise UserError(f"an LLM client plays profiles, and there is none of {', '.join(unknown)}")
    met = set(entries) if meets is None else {n for names in meets.values() for n in names}
    needed = {e.weights for e in therapists if e.weights and e.name in met}  # others would be fetched for nothing
    hashes = {w: weights_hash(resolve(w)) for w in needed}
    identities = {e.name: identify(e, hashes.get(e.weights or "", ""), target_words, sampling) for e in therapists}
    systems = {e.name: system_prompt(e.prompt, target_words) if e.prompt else "" for e in therapists}
    plans = []
    for script in scripts:
        split = split_of.get(script.profile_id)
        if split is None or (split == "heldout") != heldout:
            wanted = "heldout" if heldout else "train, test or dev"
            raise UserError(f"client {script.profile_id!r} is of the set {split!r}; permitted here: {wanted}")
        for name in entries if meets is None else meets.get(split, ()):
            entry = entries[name]
            if entry.kind == "rules" and language_of(t.client.trigger for t in script.turns) != "en":
                raise UserError(
                    f"therapist {name!r} is made of rules that read English only, and client {script.profile_id!r} "
                    f"speaks Chinese; permitted for this client: kind local or endpoint"
                )
            plans += [
                Plan(
                    script=script,
                    split=split,
                    therapist=identities[entry.name],
                    system=systems[entry.name],
                    sampling=entry.sampling or sampling,
                    target_words=target_words,
                    seed=seed,
                    played_by=client if client and client.endpoint else None,
                    profile=(profiles or {}).get(script.profile_id),
                )
                for seed in seeds
            ]
    return plans
