"""A model behind an OpenAI-compatible address: where it is, what it costs, how fast it may be asked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from psychepass.config import CREDENTIAL, SECRET, Config
from psychepass.errors import UserError
from psychepass.schema import Message, content_hash

Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BYTES_PER_TOKEN = 4  # of UTF-8; English averages 4 to 5, Chinese 3 to 5
ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
# in `extra`, beside config.SECRET (x-api-key, access_token); a cache's or a stop token's name is none
NAMES_KEY = re.compile(r"(^|[_-])(api|access|auth|private|session|openai)[_-]?(key|token)$", re.IGNORECASE)
VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
MESSAGE_TOKENS = 4  # what a chat template adds to a message
# what the records say of a request, or what a reply is read by
NOT_EXTRA = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens")


class Price(Config):
    """US dollars a million tokens; 0 for a server of one's own. Discounts for cached prompts are not counted."""

    input: Money
    output: Money

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (self.input * prompt_tokens + self.output * completion_tokens) / 1e6


class Endpoint(Config):
    """A model at an address. Entries of one `base_url`, `model` and `key_env` share their requests and tokens a minute,
    the lowest of each; `max_concurrent` is shared by entries that are equal throughout.

    `key_env` names the environment variable that holds the key; the key itself stands in no config.
    `extra` is added to the body of each request (e.g. `chat_template_kwargs: {enable_thinking: false}`); null
    leaves out a parameter that is otherwise sent (`seed`, `top_p`, `temperature`). `max_tokens_name` is
    `max_completion_tokens` where the server wants the bound of a reply under that name. `unlisted: true` permits
    a model that the server's own list leaves out. `base_url` may name variables of the environment
    (`http://$QWEN_HOST:8000/v1`): the records hold it as it is written, so that a run goes on where a server of one's
    own comes back at another host.

    Price, limits and key may change between two calls of a stage; they are not part of its manifest (each line of
    the ledger holds its price). `max_concurrent` is the number of calls, and so of conversations, at once;
    `timeout_s` bounds one try of a call.
    """

    base_url: str
    model: str = Field(min_length=1)
    price: Price = Field(exclude=True)
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", exclude=True)
    requests_per_minute: int | None = Field(default=None, ge=1, exclude=True)
    tokens_per_minute: int | None = Field(default=None, ge=1, exclude=True)
    max_concurrent: int = Field(default=64, ge=1, exclude=True)
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False, exclude=True)
    unlisted: bool = Field(default=False, exclude=True)
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        if not ADDRESS.fullmatch(url):
            raise ValueError("expected http(s)://host[:port]/path without user, password or query")
        if CREDENTIAL.search(url):
            raise ValueError("a key stands in no config: $NAME in its place takes it from the environment")
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _no_key(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """The manifest holds `extra`, so that no key may stand in it; nor what the records hold under another name."""
        named = [k for k, v in _entries(extra) if SECRET.search(k) or NAMES_KEY.search(k) or CREDENTIAL.search(str(v))]
        if named:
            raise ValueError(f"{named[0]!r} stands in no config: key_env names the variable that holds the key")
        taken = [key for key in NOT_EXTRA if key in extra]
        if taken:
            raise ValueError(f"{taken[0]!r} is set elsewhere (model, sampling) or fixed, and cannot stand in extra")
        return extra

    @property
    def name(self) -> str:
        """For messages and identities: the model and its address."""
        return f"{self.model} at {self.base_url}"

    @property
    def identity(self) -> str:
        """As `name`, with a hash of `extra`, because thinking on or off makes two contestants."""
        return f"{self.name} +{content_hash(self.extra)[:8]}" if self.extra else self.name

    def address(self) -> str:
        """`base_url` with its variables filled in.

        Raises:
            UserError: a variable is not set, or with its value this is no address.
        """
        for name in VARIABLE.findall(self.base_url):
            if not os.environ.get(name):
                raise UserError(f"{self.name}: the environment variable {name} is not set; base_url needs it")
        address = VARIABLE.sub(lambda found: os.environ[found[1]], self.base_url)
        if not ADDRESS.fullmatch(address):  # a value may hold a password: it is not repeated
            raise UserError(
                f"{self.name}: with its variables filled in this is no address; expected http(s)://host[:port]/path "
                "without user, password or query"
            )
        return address

    def key(self) -> str:
        """The key, or a placeholder where none is needed.

        Raises:
            UserError: the variable is not set or empty, or holds what no key can.
        """
        if self.key_env is None:
            return "none"
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise UserError(f"{self.name}: the environment variable {self.key_env} is not set; it must hold the key")
        if not re.fullmatch(r"[!-~]+", key):  # it is sent in an HTTP header
            raise UserError(
                f"{self.name}: the environment variable {self.key_env} holds no key: "
                "a key is one word of ASCII letters, digits and signs"
            )
        return key


def _entries(tree: Any, name: str = "extra") -> Iterator[tuple[str, Any]]:
    """Name and value of every entry of what YAML can hold; an entry of a list bears the list's name."""
    items = tree.items() if isinstance(tree, dict) else ((name, v) for v in tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield str(key), "" if isinstance(value, dict | list) else value
        yield from _entries(value, str(key))


def text_tokens(text: str) -> int:
    """An estimate without a tokenizer, which an endpoint does not offer."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)


def prompt_tokens(messages: Iterable[Message]) -> int:
    """An estimate, as `text_tokens`."""
    return sum(text_tokens(m.content) + MESSAGE_TOKENS for m in messages)
