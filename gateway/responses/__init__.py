"""OpenAI's Responses on top of chat: the request as a chat body, the answer as Responses events, and what is stored of both.

This file: what a store of responses promises. `store.py` keeps them in one SQLite file, `redis.py` where gateways share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from gateway.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from gateway.privacy import CLASSES

Item = dict[str, Any]

CLEARANCE = "internal"
"""The highest class that is ever stored."""
TTL_S = 30 * 24 * 3600.0
MAX_TURNS = 256
"""Turns that one chain of `previous_response_id` may have."""
MAX_CHAIN_BYTES = 32 * 2**20
"""Bytes of JSON that one chain, or one request's references, may bring into memory."""
MAX_PAGE = 100


class Turns(NamedTuple):
    """Stored items, oldest first, and the highest class that any of them was stored under: what continues them is no lower."""

    items: list[Item]
    class_: str


class Head(NamedTuple):
    """What a stored response is, besides its text."""

    class_: str
    model: str
    """As the client named it."""


class Store(Protocol):
    """Where responses are kept. Each is found by its own tenant only. Every method raises Unavailable when it cannot be used."""

    async def put(
        self,
        response: dict[str, Any],
        *,
        input_items: Sequence[Item],
        tenant: str,
        class_: str,
        expires_at: float | None = None,
    ) -> None:
        """Keep a final Response object and the items it was asked with, each with an id (`ask.input_items`).

        Raises InvalidRequest (`store_forbidden`) for a class above the clearance, TooLarge for what is too much for the store.
        """
        ...

    async def get(self, id_: str, tenant: str) -> dict[str, Any]:
        """The Response object. Raises NotFound."""
        ...

    async def head(self, id_: str, tenant: str) -> Head:
        """What the response is. Raises NotFound."""
        ...

    async def delete(self, id_: str, tenant: str) -> dict[str, Any]:
        """Forget the response and its items; returns what the API answers. Raises NotFound."""
        ...

    async def input_items(
        self, id_: str, tenant: str, *, limit: int = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
    ) -> dict[str, Any]:
        """One page of the items a response was asked with, as the API lists them; `after` is an item's id.

        Raises NotFound for the response, InvalidRequest for `limit`, `order` or `after`.
        """
        ...

    async def chain(self, id_: str, tenant: str) -> Turns:
        """The items of a response and of all before it, for a request that names it as `previous_response_id`.

        Raises InvalidRequest: `previous_response_not_found` when any of them is not stored, for a conversation that lost a
        turn is another one; `context_length_exceeded` above MAX_TURNS or MAX_CHAIN_BYTES.
        """
        ...

    async def items(self, ids: Sequence[str], tenant: str) -> Turns:
        """Stored items by their ids, for `item_reference`; those that are not stored are left out."""
        ...

    async def purge(
        self,
        *,
        tenant: str | None = None,
        class_: str | None = None,
        subject: Callable[[bytes], bool] | None = None,
        dry_run: bool = False,
    ) -> int:
        """Forget all responses that match all that is given; returns how many. `dry_run`: only count.

        `subject` says of JSON whether it is about whom is meant; it is asked of the response and of each of its items.
        """
        ...

    async def aclose(self) -> None:
        """Close files and connections; called once, after the last call has returned."""
        ...


def check_clearance(class_: str) -> None:
    """Raise InvalidRequest (`store_forbidden`) for a class that is not stored. An unknown class counts as the highest."""
    if class_ not in CLASSES[: CLASSES.index(CLEARANCE) + 1]:
        known = class_ if class_ in CLASSES else CLASSES[-1]
        said = f"Responses of class '{known}' are not stored (at most '{CLEARANCE}' are); send `store: false`."
        raise InvalidRequest(said, param="store", code="store_forbidden")


def not_found() -> NotFound:
    """What a store says of an id that it does not have for this tenant."""
    said = "No response with this id is stored for this key: it has expired, was deleted, or was never kept."
    return NotFound(said, param="response_id", code="response_not_found")


def previous_not_found() -> InvalidRequest:
    """What a store says of a chain that is not whole."""
    said = "A response that 'previous_response_id' leads to is not stored: it has expired, was deleted or was never kept."
    return InvalidRequest(said, param="previous_response_id", code="previous_response_not_found")


def chain_too_long() -> InvalidRequest:
    """What a store says of a chain above its bounds."""
    said = f"The conversation is longer than {MAX_TURNS} turns or {MAX_CHAIN_BYTES} bytes; begin a new one."
    return InvalidRequest(said, param="previous_response_id", code="context_length_exceeded")


def references_too_long() -> InvalidRequest:
    """What a store says of references above their bound."""
    said = f"The referenced items are larger than {MAX_CHAIN_BYTES} bytes together."
    return InvalidRequest(said, param="input", code="context_length_exceeded")


def too_large() -> TooLarge:
    """What a store says of a response that it has no room for."""
    return TooLarge("This response and its input are too large to be stored; send `store: false`.", param="store")


def after_unknown() -> InvalidRequest:
    """What a store says of a page that begins after an item that it does not have."""
    return InvalidRequest("'after' is the id of no input item of this response.", param="after", code="invalid_value")


def unusable(error: Exception, where: str = "") -> Unavailable:
    """What a store says when it cannot be used."""
    said = f"The store of responses{where} cannot be used ({type(error).__name__}); try again, or send `store: false`."
    return Unavailable(said, code="state_unavailable")


def deleted(id_: str) -> dict[str, Any]:
    """What the API answers when a response was forgotten."""
    return {"id": id_, "object": "response", "deleted": True}


def check_page(limit: int, order: str) -> None:
    """Raise InvalidRequest for a page that cannot be."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"'limit' must be from 1 to {MAX_PAGE}.", param="limit", code="invalid_value")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order", code="invalid_value")


def page_of(found: list[Item], limit: int) -> dict[str, Any]:
    """A page as the API lists it, of the items from its first one on: one more than `limit` where more follow."""
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else "",
        "last_id": shown[-1]["id"] if shown else "",
        "has_more": len(found) > limit,
    }
