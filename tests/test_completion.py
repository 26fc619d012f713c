"""What a completion says and what an answer is: pure functions over bodies and headers."""

from __future__ import annotations

import json
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
        ({"role": "assistant", "content": "I hear"}, "error", ("I hear", "", "error", "broken off")),
        ({"role": "assistant", "content": "I hear"}, "abort", ("I hear", "", "abort", "broken off")),
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


@pytest.mark.parametrize(
    ("status", "code", "message", "outcome"),
    [
        (400, None, "Content Exists Risk", "content filter"),
        (400, None, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
         "content filter"),
        (400, "1301", "系统检测到输入或生成内容可能包含不安全或敏感内容", "content filter"),
        (200, "1301", "系统检测到输入或生成内容可能包含不安全或敏感内容", "content filter"),
        (400, None, "The request was rejected because it was considered high risk", "content filter"),
        (403, None, "deepseek/r1 requires moderation on OpenInference. Your input was flagged", "content filter"),
        (400, None, "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
         "context overflow"),
        (400, None, "input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000", "context overflow"),
        (422, None, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
         "context overflow"),
        (422, None, "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
         "context overflow"),
        (400, None, "Please reduce the length of the messages or completion.", "context overflow"),
        (400, None, "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
         "context overflow"),
        (403, None, "Your account was suspended for violating our usage policies", "status 403"),
        (400, None, "`max_new_tokens` must be <= 2048", "status 400"),
    ],
)  # fmt: skip
def test_a_prompt_that_is_too_long_or_not_wanted_in_each_servers_words(
    status: int, code: str | None, message: str, outcome: str
) -> None:
    body = {"error": {"message": message, "type": "invalid_request_error", "code": code}}
    tried = classify(status, {"content-type": "application/json"}, json.dumps(body).encode())
    error = {"content filter": Unreadable, "context overflow": ContextOverflow}.get(outcome, Refused)
    assert (tried.outcome, tried.error, tried.again) == (outcome, error, False)


@pytest.mark.parametrize(
    ("status", "message", "of_prompt"),
    [
        (400, "unknown reason", True),
        (422, "unknown reason", True),
        (404, "unknown reason", False),
        (400, "Your credit balance is too low to access the API", False),
        (400, "API key not valid. Please pass a valid API key.", False),
    ],
)
def test_a_refusal_for_want_of_key_or_credit_is_about_no_prompt(status: int, message: str, of_prompt: bool) -> None:
    tried = classify(status, {}, json.dumps({"error": {"message": message}}).encode())
    assert tried.error is Refused and tried.of_prompt == of_prompt


def test_an_error_inside_a_choice_is_broken_off_and_asked_again() -> None:
    body = body_of({"role": "assistant", "content": ""}, "error")
    body["choices"][0]["error"] = {"code": 502, "message": "Upstream"}
    for of_choice in (body["choices"][0], {"error": {"message": "502 Upstream"}}):
        tried = classify(200, {}, json.dumps(body | {"choices": [of_choice]}).encode())
        assert (tried.outcome, tried.error, tried.detail, tried.again) == (
            *("broken off", Unreadable, "502 Upstream"),
            True,
        )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135}, (32, 103)),  # 94 tokens of thought
        ({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 41}, (32, 9)),
        ({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 32}, (32, 9)),
        ({"prompt_tokens": 32, "completion_tokens": 9}, (32, 9)),
        ({"completion_tokens": 9, "total_tokens": 41}, (None, 9)),
        (None, (None, None)),
    ],
)
def test_thoughts_counted_beside_the_reply_are_counted(usage: Any, expected: tuple[int | None, int | None]) -> None:
    found = read_completion(body_of({"role": "assistant", "content": "Hi"}) | {"usage": usage})
    assert (found.prompt_tokens, found.completion_tokens) == expected


def test_retry_after_in_seconds_milliseconds_and_as_a_date() -> None:
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after_s({}) == retry_after_s({"retry-after": "soon"}) == retry_after_s({"retry-after": "-3"}) == 0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < retry_after_s({"retry-after": date}) <= 30
