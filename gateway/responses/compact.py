"""A conversation made shorter: the chat request for a summary, and the answer that carries it sealed. Pure.

Source: OpenAI's API description (CompactResponseMethodPublicBody, CompactResource, CompactionBody). What users have said stays
as it is; everything else is in the summary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from gateway import wire
from gateway.errors import BadUpstream, InvalidRequest
from gateway.facts import texts
from gateway.ledger import Usage
from gateway.responses import Item, ask
from gateway.responses.answer import usage_of
from gateway.responses.seal import PREFIX
from gateway.tokens import size_estimate

TAKES = frozenset({
    "model", "input", "instructions", "previous_response_id", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "service_tier",
})  # fmt: skip
"""Parameters of OpenAI's description."""

ASK = (
    "Stop here and write a summary of this conversation, so that it can go on without its text. Say who wants what, and keep "
    "every fact, name, number, decision and open question that may be needed later. Write the summary only."
)
"""What the model is told after the conversation."""
LEAST_TOKENS, MOST_TOKENS = 256, 4096
"""Between these a summary may be a quarter as long as what it stands for."""


def chat_body(data: dict[str, Any], *, earlier: Sequence[Item], referenced: Sequence[Item]) -> dict[str, Any]:
    """The chat request that asks for the summary. Raises InvalidRequest with `param` as `ask.chat_body` does."""
    for name in data.keys() - TAKES:
        if data[name] not in (None, False):
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            raise InvalidRequest(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")
    body = ask.chat_body({name: data[name] for name in data.keys() & TAKES}, earlier=earlier, referenced=referenced)
    tokens = size_estimate(texts(wire.of("chat/completions", body))).tokens
    bound = min(MOST_TOKENS, max(LEAST_TOKENS, tokens // 4))
    return {**body, "messages": [*body["messages"], {"role": "user", "content": ASK}], "max_completion_tokens": bound}


def said(items: Sequence[Item]) -> tuple[Item, ...]:
    """The messages of users among the items, as the answer shows them."""
    shown = ask.input_items({"input": list(items)}, secrets.token_hex(24))
    return tuple(item for item in shown if item["type"] == "message" and item["role"] == "user")


def summary_of(completion: dict[str, Any]) -> str:
    """The text of a whole chat answer. Raises BadUpstream when there is none."""
    choices = completion.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise BadUpstream("The upstream wrote no summary.")
    return text


def answer(
    completion: dict[str, Any], sealed: str, kept: Sequence[Item], *, created_at: int, usage: Usage | None
) -> dict[str, Any]:
    """What the API answers. `usage` stands in when the completion counted nothing."""
    item = {"id": f"cmp_{secrets.token_hex(24)}", "type": "compaction", "encrypted_content": sealed}
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response.compaction",
        "created_at": created_at,
        "output": [*kept, item],
        "usage": usage_of(completion.get("usage"), usage),
    }


def seal_of(item: Any) -> str:
    """What a compaction item of ours carries; empty for any other item."""
    sealed = item.get("encrypted_content") if isinstance(item, dict) and item.get("type") == "compaction" else None
    return sealed if isinstance(sealed, str) and sealed.startswith(PREFIX) else ""


def message(item: Item, text: str) -> Item:
    """What a compaction item is to the model: its summary, as something it has said itself. The item's id stays."""
    return {"type": "message", "id": item.get("id"), "role": "assistant", "content": [{"type": "output_text", "text": text}]}
