"""What a chat completion says: a reply, or why there is none. Pure functions over the response's body."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

CUT_OFF = ("length", "max_tokens", "model_length")
THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
BROKEN_OFF = ("error", "abort")
# what servers say when prompt and reply do not fit (OpenAI, vLLM, SGLang, llama.cpp, TGI, Anthropic, Gemini, Mistral,
# xAI, DashScope)
OVERFLOW = re.compile(
    r"context[_ ](length|window|size|limit)|maximum (context|prompt length)|prompt is too long|"
    r"(input|prompt)[^.]{0,40}(too long|exceeds)|too many (input )?tokens|range of input length|"
    r"inputs` (tokens \+|must have less than)|reduce the length of the (messages|prompt|input)",
    re.IGNORECASE,
)
# and when they will not have the prompt (OpenAI, Azure, OpenRouter, DeepSeek, DashScope, Moonshot, MiniMax, Zhipu)
FILTERED = re.compile(
    r"content[_ ](filter|policy|management)|content exists risk|moderation|data_?inspection|flagged as|"
    r"(prompt|input|content|message|request) (was|is|has been) flagged|considered high risk|"
    r"(inappropriate|unsafe|sensitive|prohibited)[_ ]content|new_sensitive|^1301\b|敏感内容",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Completion:
    """A body as read. `fault` is empty where `text` is a reply; tokens are None where the server counts none."""

    text: str = ""
    reasoning: str = ""
    finish: str = ""
    fault: str = ""
    detail: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The error object of a response, whatever its HTTP status; `status` is 0 where it tells no such status."""

    status: int
    message: str

    @property
    def is_overflow(self) -> bool:
        return bool(OVERFLOW.search(self.message))

    @property
    def is_filtered(self) -> bool:
        return bool(FILTERED.search(self.message))


def parse_body(data: bytes) -> dict[str, Any] | None:
    """A JSON object, or None. Each text in it can be written: see `whole`."""
    try:
        body = whole(json.loads(data))
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def whole(value: Any) -> Any:
    """A JSON value with U+FFFD for half of a character, which JSON can hold ("\\ud800") and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {whole(k): whole(v) for k, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def error_of(body: dict[str, Any]) -> ErrorBody | None:
    """The error that a body carries in place of choices; None if there is none."""
    error = body.get("error") or ("detail" in body and "choices" not in body and body["detail"])
    if not error:
        return None
    if not isinstance(error, dict):
        return ErrorBody(0, str(error)[:300])
    words = [str(error[k]) for k in ("code", "type", "message") if error.get(k)]
    numbers = (int(c) for c in map(str, (error.get("code"), error.get("status"))) if re.fullmatch("[45][0-9]{2}", c))
    status = next(numbers, 0)
    return ErrorBody(status, " ".join(words)[:300] or str(error)[:300])


def read_completion(body: dict[str, Any]) -> Completion:
    """The first choice of a completion.

    A fault is one of: `no choices`, `broken off`, `wrong role`, `content filter`, `empty`, `cut off before any text`.
    A reply that the token bound cut short is no fault: `finish` says "length".
    """
    told: dict[str, Any] = _counted(body.get("usage")) | {"model": str(body.get("model") or "")}
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and (choice.get("error") or choice.get("finish_reason") in BROKEN_OFF):
        return _broken_off(choice, told)
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Completion(fault="no choices", detail=f"choices is {str(choices)[:100]!r}", **told)
    finish = str(choice.get("finish_reason") or "")
    finish = "length" if finish in CUT_OFF else finish
    text, reasoning = split_thought(_plain(message.get("content")))
    given = message.get("reasoning_content") or message.get("reasoning")
    reasoning = "\n".join(filter(None, (given.strip() if isinstance(given, str) else "", reasoning)))
    fault, detail = "", ""
    if message.get("role") != "assistant":
        fault, detail = "wrong role", f"role is {str(message.get('role'))[:50]!r}, not 'assistant'"
    elif finish == "content_filter":
        fault = "content filter"
    elif not text:
        fault = "cut off before any text" if finish == "length" else "empty"
        detail = f"{len(reasoning)} characters of reasoning" if reasoning else ""
    return Completion(text=text, reasoning=reasoning, finish=finish, fault=fault, detail=detail, **told)


def _broken_off(choice: dict[str, Any], told: dict[str, Any]) -> Completion:
    """The server failed while it wrote; what had come is kept for the count alone."""
    message, error = choice.get("message"), error_of(choice)
    text = _plain(message.get("content")) if isinstance(message, dict) else ""
    detail = error.message if error else f"{len(text)} characters had come"
    return Completion(text, finish=str(choice.get("finish_reason") or ""), fault="broken off", detail=detail, **told)


def split_thought(content: str) -> tuple[str, str]:
    """(reply, thought), both stripped: no part of a thought is left in the reply.

    Also where a template has opened the thought already (only `</think>` is there), or the token bound fell into it
    (only `<think>` is there).
    """
    thoughts = [t.strip() for t in THOUGHT.findall(content)]
    text = THOUGHT.sub("", content)
    if "</think>" in text:
        before, _, text = text.rpartition("</think>")
        thoughts.insert(0, before.strip())
    if "<think>" in text:
        text, _, after = text.partition("<think>")
        thoughts.append(after.strip())
    return text.strip(), "\n".join(t for t in thoughts if t)


def _plain(content: Any) -> str:
    """Content as text; of a list of parts, those of type text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text", "")) for p in parts if isinstance(p, dict) and p.get("type") == "text")


def _counted(usage: Any) -> dict[str, int | None]:
    """Tokens in and out. Some servers (xAI, Gemini) count thoughts beside the reply, in the total alone."""
    usage = usage if isinstance(usage, dict) else {}
    asked, said, total = (_count(usage.get(f"{k}_tokens")) for k in ("prompt", "completion", "total"))
    if asked is not None and said is not None and total is not None:
        said = max(said, total - asked)
    return {"prompt_tokens": asked, "completion_tokens": said}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
