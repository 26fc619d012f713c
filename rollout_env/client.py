"""The scripted client: speaks its script's own words, whatever the therapist answers."""

from __future__ import annotations

from psychepass.schema import Identity, Script


class ScriptedClient:
    """One client in one session. `identity` names the script, so that another script is another client."""

    def __init__(self, script: Script):
        self.script = script
        self.identity = Identity(name="scripted", kind="scripted", family="scripted", weights=script.id)

    def say(self, turn: int) -> str:
        """The line of dialogue turn `turn` (1-based).

        Raises:
            IndexError: the script has no such turn.
        """
        if not 1 <= turn <= len(self.script.turns):
            raise IndexError(f"script {self.script.id} has turns 1 to {len(self.script.turns)}, not {turn}")
        return self.script.turns[turn - 1].client.trigger
