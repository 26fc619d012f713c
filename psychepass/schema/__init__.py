"""The records that stages exchange: frozen, strict, and traceable to their parents.

Two hashes identify a record. `key` covers the inputs that made it and decides what is still missing
when a stage is run again; `id` covers the content, without usage and time, and names the record.
Turn numbers are dialogue turns, counted from 1; a script turn number skips the empty turns.
"""

from psychepass.schema.base import (
    GLOBAL_DIMENSIONS,
    LOCAL_DIMENSIONS,
    SCHEMA_VERSION,
    Category,
    Dimension,
    Frozen,
    Phase,
    Record,
    Split,
    Usage,
    content_hash,
)
from psychepass.schema.clients import (
    ClientLayer,
    EvaluatorLayer,
    EventContext,
    FormativeExperience,
    Named,
    Profile,
    Script,
    ScriptDraft,
    ScriptTurn,
)
from psychepass.schema.judgements import SWAPPED, Battle, Failure, JudgeIdentity, Rating, Verdict, Vote, Winner
from psychepass.schema.sessions import ClientLine, Identity, Sampling, Session, Turn, TurnRecord
from psychepass.schema.training import Message, PreferencePair, Reward, RLPrompt, RubricRating, Side

__all__ = [
    "GLOBAL_DIMENSIONS",
    "LOCAL_DIMENSIONS",
    "SCHEMA_VERSION",
    "SWAPPED",
    "Battle",
    "Category",
    "ClientLayer",
    "ClientLine",
    "Dimension",
    "EvaluatorLayer",
    "EventContext",
    "Failure",
    "FormativeExperience",
    "Frozen",
    "Identity",
    "JudgeIdentity",
    "Message",
    "Named",
    "Phase",
    "PreferencePair",
    "Profile",
    "RLPrompt",
    "Rating",
    "Record",
    "Reward",
    "RubricRating",
    "Sampling",
    "Script",
    "ScriptDraft",
    "ScriptTurn",
    "Session",
    "Side",
    "Split",
    "Turn",
    "TurnRecord",
    "Usage",
    "Verdict",
    "Vote",
    "Winner",
    "content_hash",
]
