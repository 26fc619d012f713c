"""Stage `profiles` over a made-up server: seeds, configs, and what the server answers, as its tests set them up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from rollout_env.profiles import TOPICS
from tests.fault_server import MODEL, digest

# three seeds of our own a language: plain troubles of adults, with identifiers of people who do not exist
ENGLISH = (
    "My name is Rowena Castellan and I keep quarrelling with my brother Jennifer's husband. Reach me at r@example.org.",
    "Since I was moved to nights at the warehouse I sleep badly and snap at everyone, even at Mr. Abernathy.",
    "I am 34 and I said no to a wedding again. Call (212) 555-0187 if you must. I feel left out of my own family.",
)
CHINESE = (
    "我叫李建华，最近总是担心工作，晚上睡不着，打电话13812345678也没人理我。",
    "王老师说我太敏感，可是我和姐姐一说话就吵架，心里很难受。",
    "搬到上海以后我没有朋友，周末一个人在家，不知道怎么开始和别人聊天。",
)
PLACES = ("a bakery", "a tram depot", "a small library", "a plant nursery", "a print shop", "an evening school")
THINGS = (
    "clay",
    "rowing",
    "old maps",
    "chess",
    "bees",
    "choirs",
    "radios",
    "quilts",
    "kites",
    "ferns",
    "soup",
    "drums",
)


def draft(body: dict[str, Any], **change: Any) -> dict[str, Any]:
    """An answer to the expansion prompt, fixed by its words; every draft has words of its own."""
    prompt = body["messages"][0]["content"]
    drawn = digest(prompt)
    zh = "来访者：" in prompt
    age = re.search(r"(?:, age |年龄 )(\d+)", prompt)
    own = " ".join(f"{THINGS[int(c, 16) % len(THINGS)]} {drawn[i : i + 4]}" for i, c in enumerate(drawn[:12]))
    told = f"来访者在{drawn[:6]}那里遇到困难，" if zh else "The client is worn out by "
    text: dict[str, Any] = {
        "age": int(age.group(1)) if age else 25 + int(drawn[:2], 16) % 30,
        "occupation": f"Keeper of {own[:18]}",
        "topic": TOPICS[int(drawn[2:4], 16) % len(TOPICS)],
        "subtopic": f"Worries over {own[:14]}",
        "personality": ["Careful", "Proud"],
        "situation": f"{told}{own}.",
        "event": {"time": "Last spring", "location": PLACES[int(drawn[4], 16) % 6], "participants": ["the client"]},
        "emotion": "anxiety",
        "emotional_words": ["Anxiety", "Shame", "Hope"],
        "core_drive": {"name": "Belonging", "description": f"afraid to lose {own[:25]}"},
        "reaction_pattern": {"name": "Habit Changer", "description": "makes new rules"},
        "social_support": [{"name": "an aunt", "description": "calls on Sundays"}],
        "formative_experiences": [{"age": 9, "event": f"Lost {own[:12]}", "belief": "I must be careful."}],
        "interests": [own[:10]],
        "values": ["Order"],
        "facts": {"one": f"I keep {own[:20]}.", "two": "I walk home slowly.", "three": f"I once made {own[20:34]}."},
    }
    return text | change


def scores(body: dict[str, Any], **change: Any) -> dict[str, Any]:
    drawn = digest(body["messages"][0]["content"])
    told = {"linguistic_complexity": 3, "emotional_intensity": 2 + int(drawn[0], 16) % 3, "counselling_relevance": 4}
    return told | {"romantic_or_sexual": False} | change


def is_scoring(body: dict[str, Any]) -> bool:
    return "linguistic_complexity" in body["messages"][0]["content"]


def say(body: dict[str, Any]) -> str:
    """What a model that does as it is told would answer."""
    return json.dumps(scores(body) if is_scoring(body) else draft(body), ensure_ascii=False)


def many_seeds(n: int) -> list[str]:
    """English seeds that are no near-duplicates of each other."""
    return [f"{digest(['seed', i])[:48]} keeps me from {THINGS[i % 12]} and {digest(['x', i])[:30]}." for i in range(n)]


def write_config(folder: Path, url: str, seeds: list[str], **change: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seeds.txt").write_text("\n".join(seeds) + "\n", encoding="utf-8")
    price = {"input": 1.0, "output": 2.0}
    config = {
        "run": str(folder / "run"),
        "sources": [{"kind": "text", "path": str(folder / "seeds.txt"), "licence": "own"}],
        "language": None,
        "allow_minors": False,
        "endpoint": {"base_url": url, "model": MODEL, "price": price, "timeout_s": 60.0, "max_concurrent": 8},
        "sampling": {"temperature": 0.9, "max_tokens": 2000},
        "near_duplicate": 0.8,
        "least": {"linguistic_complexity": 1},
        "sets": {"train": 4, "test": 2, "dev": 2, "heldout": 4},
        "topic_shares": {},
        "fill": True,
    }
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump(config | change, allow_unicode=True))
    return path
