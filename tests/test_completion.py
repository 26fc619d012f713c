"""What a completion says and what an answer is: pure functions over bodies and headers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from psychepass.answers import ContextOverflow, Refused, Transport, Unreadable, classify, retry_after_s
from psychepass.completion import read_completion, split_thought
from tests.fault_server import MODEL, completion


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hello.", ("Hello.", "")),
        ("<think>hm</think>\n\nHello.", ("Hello.", "hm")),
        ("<think>\n\n</think>\n\nHello.", ("Hello.", "")),
        ("hm\n</think>\n\nHello.", ("Hello.", "hm")),  # the template opened the thought
        ("<think>hm, still", ("", "hm, still")),  # cut off in the thought
        ("Well. <think>hm</think> Hello.", ("Well.  Hello.", "hm")),
        ("<think>a</think>b<think>c", ("b", "a\nc")),
    ],
)
def test_no_thought_is_left_in_a_reply(content: str, expected: tuple[str, str]) -> None:
    assert split_thought(content) == expected


def body_of(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    body = completion({"messages": []}, MODEL, "x")
    body["choices"][0] |= {"message": message, "finish_reason": finish}
    return body


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"role": "assistant", "content": "Hi", "reasoning_content": "hm"}, "stop", ("Hi", "hm", "stop", "")),
        ({"role": "assistant", "content": "Hi", "reasoning": "hm"}, "length", ("Hi", "hm", "length", "")),
        ({"role": "assistant", "content": None, "reasoning_content": "hm"}, "length",
         ("", "hm", "length", "cut off before any text")),
        ({"role": "assistant", "content": [{"type": "text", "text": "Hi"}, {"type": "thinking", "thinking": []}]},
         "stop", ("Hi", "", "stop", "")),
        ({"role": "assistant", "content": "Hi"}, "content_filter", ("Hi", "", "content_filter", "content filter")),
        ({"content": "Hi"}, "stop", ("Hi", "", "stop", "wrong role")),
        ({"role": "assistant", "tool_calls": []}, "tool_calls", ("", "", "tool_calls", "empty")),
    ],
)  # fmt: skip
def test_what_a_message_says(message: dict[str, Any], finish: str, expected: tuple[str, ...]) -> None:
    found = read_completion(body_of(message, finish))
    assert (found.text, found.reasoning, found.finish, found.fault) == expected


@pytest.mark.parametrize(
    ("status", "content_type", "body", "outcome", "error", "again"),
    [
        (200, "text/html", b"<html>log in", "not an API", Transport, True),
        (200, "application/json", b'{"choi', "broken JSON", Unreadable, True),
        (200, "application/json", b"[]", "broken JSON", Unreadable, True),
        (200, "application/json", b'{"choices": []}', "no choices", Unreadable, False),
        (200, "application/json", b'{"error": {"code": 502, "message": "upstream"}}', "status 502", Transport, True),
        (200, "application/json", b'{"error": "oops"}', "error body", Unreadable, True),
        (429, "application/json", b'{"error": {"code": "insufficient_quota"}}', "status 429", Refused, False),
        (402, "application/json", b'{"error": {"message": "pay"}}', "status 402", Refused, False),
        (400, "application/json", b'{"detail": "prompt is too long: 9 tokens"}', "context overflow", ContextOverflow,
         False),
        (400, "application/json", b'{"error": {"message": "max_tokens is too large: this model supports at most 4"}}',
         "status 400", Refused, False),
        (400, "application/json", b'{"error": {"code": "content_filter"}}', "content filter", Unreadable, False),
        (403, "text/plain", b"no", "status 403", Refused, False),
        (503, "text/plain", b"busy", "status 503", Transport, True),
    ],
)  # fmt: skip
def test_what_an_answer_is(
    status: int, content_type: str, body: bytes, outcome: str, error: type[Exception], again: bool
) -> None:
    tried = classify(status, {"content-type": content_type}, body)
    assert (tried.outcome, tried.error, tried.again) == (outcome, error, again)


def test_retry_after_in_seconds_milliseconds_and_as_a_date() -> None:
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after_s({}) == retry_after_s({"retry-after": "soon"}) == retry_after_s({"retry-after": "-3"}) == 0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < retry_after_s({"retry-after": date}) <= 30
