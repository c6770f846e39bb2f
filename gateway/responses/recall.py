"""What is asked of a response that was stored: answered from our own store, or by the upstream that made it.

Nothing but the id and known words of the query leaves, so no policy is asked, and what comes back was paid for before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from gateway import wire
from gateway.affinity import Affinity, Made
from gateway.config import Config
from gateway.dispatch import Dispatch
from gateway.errors import InvalidRequest
from gateway.incoming import Incoming
from gateway.ledger import Ledger
from gateway.policy.decision import Chosen, Decision, Option
from gateway.policy.generation import Generation
from gateway.reply import JSON, Headers, Nobody, Reply, relayed
from gateway.responses import MAX_PAGE, Store, not_found
from gateway.upstreams import Call

_WORDS = frozenset(
    {"after", "before", "include", "include[]", "include_obfuscation", "limit", "order", "starting_after", "stream"}
)
_VALUE = re.compile(r"[A-Za-z0-9_.\-]{0,128}")
_STORED_WORDS = {
    "responses/retrieve": frozenset({"include", "include[]", "include_obfuscation", "stream"}),
    "responses/input_items": frozenset({"after", "include", "include[]", "limit", "order"}),
}
"""Of a query on a response of ours; `include` adds nothing that is not there anyway."""


class Recall:
    """Stored responses, each for the tenant that it was made for."""

    def __init__(
        self,
        *,
        config: Config,
        generation: Callable[[], Generation],
        dispatch: Dispatch,
        affinity: Affinity,
        store: Store,
        headers: Callable[[Decision, str, str], Headers],
    ) -> None:
        """`headers` gives our own headers by decision, route and cache outcome."""
        self._config = config
        self._generation = generation
        self._dispatch = dispatch
        self._affinity = affinity
        self._store = store
        self._headers = headers

    async def answer(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """One request that names a stored response in its path. Raises ApiError for a clear refusal."""
        made = await self._affinity.find(incoming.principal.tenant, incoming.id)
        if made is None:
            return await self._ours(incoming, ledger)
        option = _option_of(made, self._generation())
        if option is None:
            raise not_found()
        return await self._theirs(incoming, made, option, ledger)

    def _decision(self, *candidates: Chosen) -> Decision:
        return Decision(policy=self._generation().label(self._config.policies.default), rule="", candidates=candidates)

    async def _ours(self, incoming: Incoming, ledger: Ledger) -> Reply:
        id_, tenant = incoming.id, incoming.principal.tenant
        head = await self._store.head(id_, tenant)
        decision = self._decision()
        ledger.note(model=head.model, class_=head.class_, policy=decision.policy)
        query = _stored_query(incoming)
        match incoming.endpoint:
            case "responses/delete":
                told = await self._store.delete(id_, tenant)
            case "responses/input_items":
                told = await self._store.input_items(id_, tenant, **_page(query))
            case "responses/cancel":
                said = "Only a response made with `background: true` can be cancelled; this one was made while its client waited."
                raise InvalidRequest(said, param="response_id", code="not_cancellable")
            case _:
                told = await self._store.get(id_, tenant)
        body = json.dumps(told).encode()
        return Reply(ledger, status=200, headers=[*self._headers(decision, "gateway", "off"), JSON], done="complete", body=body)

    async def _theirs(self, incoming: Incoming, made: Made, option: Option, ledger: Ledger) -> Reply:
        query = _checked_query(incoming.query)
        stream = "stream=true" in query.split("&")
        decision = self._decision(Chosen(option=option))
        ledger.note(model=made.name, stream=stream, class_=made.class_, policy=decision.policy)
        tail = incoming.endpoint.partition("/")[2]
        path = f"responses/{quote(incoming.id, safe='')}" + (f"/{tail}" if tail in {"cancel", "input_items"} else "")
        call = Call(
            request_id=ledger.request_id,
            endpoint=incoming.endpoint,
            model=made.model,
            body=b"",
            stream=stream,
            headers=incoming.forwarded(),
            method=incoming.method,
            path=f"{path}?{query}" if query else path,
        )

        async def prepare(_option: Option) -> Call:
            return call

        opened = await self._dispatch.open(decision, prepare, ledger)
        if incoming.method == "DELETE":
            self._affinity.forget(incoming.principal.tenant, incoming.id)
        request = wire.Request(endpoint=incoming.endpoint, body=b"", data={}, model=made.name, stream=stream)
        headers = self._headers(decision, option.name, "off")
        return await relayed(ledger, opened, request, headers, prompt_tokens=0, keeper=Nobody(), done="complete")


def _option_of(made: Made, generation: Generation) -> Option | None:
    """The option that made a stored response, or another of its upstream, while the upstream is configured at all."""
    options = [option for option in generation.catalogue.options() if option.upstream == made.upstream]
    return next((option for option in options if option.model == made.model), options[0] if options else None)


def _checked_query(query: str) -> str:
    """The query of a stored response's URL, encoded anew. Raises InvalidRequest for words that are not known: nobody scans it."""
    pairs = _pairs(query)
    if not all(name in _WORDS and _VALUE.fullmatch(value) for name, value in pairs):
        message = f"The URL's query holds more than is known here: {', '.join(sorted(_WORDS))}, each with one plain word."
        raise InvalidRequest(message, code="unknown_parameter")
    return urlencode(pairs)


def _pairs(query: str) -> list[tuple[str, str]]:
    return [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "api-version"]


def _stored_query(incoming: Incoming) -> dict[str, str]:
    """The words of a query on a response of ours. Raises InvalidRequest, naming the one that has no meaning here."""
    known = _STORED_WORDS.get(incoming.endpoint, frozenset())
    query = dict(_pairs(incoming.query))
    for name in query.keys() - known:
        shown = ascii(name[:64])[1:-1]
        raise InvalidRequest(f"'{shown}' is not known for this path; leave it out.", param=shown, code="unknown_parameter")
    if query.get("stream") == "true":
        said = "A response that the gateway stored is given whole, not as a stream; leave out 'stream'."
        raise InvalidRequest(said, param="stream", code="unsupported_parameter")
    return query


def _page(query: dict[str, str]) -> dict[str, Any]:
    """What a query says of the page that is wanted; the store checks it."""
    page: dict[str, Any] = {name: query[name] for name in ("after", "order") if name in query}
    if "limit" in query:
        if not query["limit"].isascii() or not query["limit"].isdecimal() or len(query["limit"]) > 9:
            said = f"'limit' must be a whole number from 1 to {MAX_PAGE}."
            raise InvalidRequest(said, param="limit", code="invalid_value")
        page["limit"] = int(query["limit"])
    return page
