"""The identity of a request, and whether its answer may be kept at all. Pure; knows no store.

Two requests share a scope only when everything but their last user text is the same: tenant, endpoint, model, policy scope,
every parameter, system text, tools and earlier turns. docs/cache.md lists what is left out and what is never kept.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import msgspec
import re2

from gateway.cache import Scope

BLANKED = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "store",
    }
)
"""Top-level fields that do not change what the model says. `store: true` never gets this far: see `cacheable`."""

_VERSION = "gateway-cache-2"
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_MOST_CHARS = 1_000
"""Of a text's beginning and of its end that are read for live words; a question stands in one of them."""


def _any_of(*alternatives: str) -> str:
    """Whole words."""
    return r"(?i)\b(?:" + "|".join(alternatives) + r")\b"


_LIVE = _any_of(
    r"to(?:day|night|morrow)|yesterday|now(?:adays)?|current(?:ly)?|latest|newest|recent(?:ly)?|at the moment",
    r"so far|up[ -]to[ -]date|(?:this|last|next) (?:morning|evening|afternoon|night|week|month|year|weekend|hour)",
    r"breaking|news|weather|forecast|prices?|trending|what (?:time|day|date)|who(?:'s| is) (?:leading|winning|ahead)",
    r"(?:is|are) [^.?!\n]{1,40} (?:down|up|open|closed|available|in stock)",
    r"heute|jetzt|gerade|aktuell\w*|gestern|morgen|wetter|aujourd'hui|maintenant|météo|hoy|ahora",
)
_CHANCE = _any_of(
    r"random(?:ly)?|surprise me|shuffle|lottery|uuid|guid|dice|jokes?|another|a different|something (?:new|else)",
    r"(?:roll|throw) (?:a|the|some|two|three|\d+)|(?:flip|toss) (?:a|the) coin",
    r"(?:generate|create|make|invent|suggest|pick|choose) (?:\w+ ){0,3}(?:passwords?|number|names?|winner|card)",
    r"(?:not|never|haven't) (?:\w+ )?(?:heard|seen|read)|zufällig\w*|würfle|witz|au hasard|al azar",
)
_RECORDS = (
    "balances?|orders?|e-?mails?|inbox|calendar|appointments?|meetings?|schedule|messages?|notifications?|package|parcel|delivery|"
    "shipment|bills?|invoices?|transactions?|bookings?|reservations?|flights?|files?|documents?|grades?|location|ip"
)
_OWN = _any_of(
    r"(?:what(?:'s| is| are| was)|where(?:'s| is| are)|when(?:'s| is| does| will)|how (?:much|many)|show|list|check|read"
    r"|summari[sz]e|find|look up|did|has|have) (?:[^.?!\n]{0,40} )?(?:my|our) (?:[\w-]+ ){0,2}(?:" + _RECORDS + ")",
    r"(?:did|have) i (?:just |already )?(?:say|said|asked?|tell|told|write|written|mention(?:ed)?)",
)

# RE2, since its time is linear in the text: a client must not choose how long we search.
_FLEETING = tuple((reason, re2.compile(words)) for reason, words in (("live", _LIVE), ("chance", _CHANCE), ("records", _OWN)))
_ANY = re2.compile(f"{_LIVE}|{_CHANCE}|{_OWN}")
_encode = msgspec.json.Encoder().encode


class _Last(NamedTuple):
    """The last user text and how to blank it."""

    text: str
    where: str
    """`string`, `part` or `input`: part of the digest, so that two shapes never meet."""
    blanked: dict[str, Any]


def scope(
    body: dict[str, Any],
    *,
    tenant: str,
    endpoint: str,
    model: str,
    policy_scope: str,
    embedder: str = "",
    epoch: str = "",
) -> Scope | None:
    """Who this request is to the cache, or None when `cacheable` names a reason to keep it out.

    `endpoint` is `chat/completions`, `completions`, `embeddings` or `responses`; `policy_scope` says which policy decided;
    `embedder` and `epoch` are the configuration's: changing one leaves every older answer behind. About 30 µs for a body of
    10 KB, and linear in its size.
    """
    if cacheable(body, endpoint=endpoint) is not None:
        return None
    rest = {name: value for name, value in sorted(body.items()) if name not in BLANKED}
    last = _last_user_text(rest, endpoint)
    where, blanked = (last.where, last.blanked) if last else ("none", rest)
    # Only the top level is sorted: below it order can matter, in a JSON schema for one.
    parts = [_VERSION, tenant, endpoint, model, policy_scope, epoch, where, blanked]
    base = hashlib.sha256(_written(parts))
    key, digest = base.copy(), base
    key.update(b"\0key" + (last.text.encode("utf-8", "surrogatepass") if last else b""))
    digest.update(b"\0scope" + embedder.encode())
    exact_only = _exact_only(body, last)
    text = last.text if last is not None and not exact_only else None
    return Scope(digest=digest.digest(), key=key.digest(), text=text, exact_only=exact_only, tenant=tenant, model=model)


def _written(parts: list[Any]) -> bytes:
    try:
        return _encode(parts)
    except (ValueError, OverflowError, msgspec.MsgspecError):
        # Half a surrogate pair, or a number of more than 64 bits.
        return json.dumps(parts, separators=(",", ":")).encode()


def cacheable(body: dict[str, Any], *, endpoint: str = "chat/completions") -> str | None:
    """Why no tier may keep or serve an answer to this request, in one word, or None.

    `shape` nothing to answer; `choices` more than one asked for; `tools` the answer may act; `media` not only text; `state`
    the answer depends on, or changes, what the upstream keeps; `live`, `chance`, `records` the question asks for what is true
    now, for something new each time, or for the asker's own affairs.
    """
    turns = _turns(body, endpoint)
    if not turns:
        return "shape"
    if (body.get("n") or 1) != 1 or (body.get("best_of") or 1) != 1:
        return "choices"
    if any(body.get(name) for name in ("tools", "functions", "web_search_options", "mcp_servers")):
        return "tools"
    if any(body.get(name) for name in ("store", "previous_response_id", "conversation", "background")):
        return "state"
    if set(body.get("modalities") or ["text"]) != {"text"} or body.get("audio") or _has_media(turns):
        return "media"
    if endpoint == "embeddings":
        return None
    return _fleeting(_question(turns))


def _exact_only(body: dict[str, Any], last: _Last | None) -> str:
    """Why this request may be answered by its equal only, or an empty string."""
    if last is None:
        return "no_text"
    if body.get("seed") is not None:
        return "seed"
    if body.get("logprobs"):
        return "logprobs"
    try:
        last.text.encode()
    except UnicodeEncodeError:
        return "unicode"
    return ""


def _turns(body: dict[str, Any], endpoint: str) -> list[Any]:
    """What is to be answered, as a list: messages, items, or one string."""
    name = {"chat/completions": "messages", "completions": "prompt"}.get(endpoint, "input")
    found = body.get(name)
    if isinstance(found, str):
        return [found]
    return found if isinstance(found, list) else []


def _has_media(turns: list[Any]) -> bool:
    """Whether any part is something else than text; a part of a kind not known here counts as such."""
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(turn, dict) and (turn.get("audio") or turn.get("tool_calls") or turn.get("function_call")):
            return True
        if isinstance(content, list) and any(
            not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS for part in content
        ):
            return True
    return False


def _question(turns: list[Any]) -> str:
    """All text of the last turn, for the search of live words."""
    last = turns[-1]
    if isinstance(last, str):
        return last
    content = last.get("content") if isinstance(last, dict) else None
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content) if isinstance(content, list) else ""


def _fleeting(text: str) -> str | None:
    """Why the answer would be wrong the next time, judged by words; None when nothing says so."""
    if len(text) > 2 * _MOST_CHARS:
        text = text[:_MOST_CHARS] + "\n" + text[-_MOST_CHARS:]
    if not text.isascii():
        text = text.replace("\u2019", "'").encode("utf-8", "replace").decode()
    if not _ANY.search(text):
        return None
    return next(reason for reason, words in _FLEETING if words.search(text))


def _last_user_text(rest: dict[str, Any], endpoint: str) -> _Last | None:
    """The text of the last turn when it is the user's and one text; the rest with that text replaced by null."""
    name = {"chat/completions": "messages", "responses": "input"}.get(endpoint)
    turns = rest.get(name) if name else None
    if name and isinstance(turns, str):
        return _Last(turns, "input", {**rest, name: None})
    if not name or not isinstance(turns, list) or not isinstance(turns[-1], dict) or turns[-1].get("role") != "user":
        return None
    content = turns[-1].get("content")
    if isinstance(content, str):
        return _Last(content, "string", {**rest, name: [*turns[:-1], {**turns[-1], "content": None}]})
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0].get("text"), str):
        blank = {**turns[-1], "content": [{**content[0], "text": None}]}
        return _Last(content[0]["text"], "part", {**rest, name: [*turns[:-1], blank]})
    return None
