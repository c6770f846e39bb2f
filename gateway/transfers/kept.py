"""What upstreams keep for a tenant beside responses: files and batches, read, listed, deleted; and batches made of files.

An id is known together with its tenant, or not at all. Reading, cancelling and deleting sends the id and no text, so no policy is
asked, and what comes back was paid for before.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, cast
from urllib.parse import parse_qsl, quote

from msgspec import Struct

from gateway import wire
from gateway.affinity import Kind, Made
from gateway.dispatch import Opened
from gateway.errors import ApiError, InvalidRequest
from gateway.incoming import Incoming
from gateway.ledger import Ledger
from gateway.policy.decide import pin
from gateway.policy.decision import Chosen, Decision, Option
from gateway.reply import JSON, Reply
from gateway.transfers.judge import Judge, Parts, made_of, refused, unknown_id
from gateway.upstreams import Call

MAX_PAGE = 100
"""Most objects of one list: each is asked for at the upstream that keeps it."""
AT_ONCE = 8

_WORD = re.compile(r"[A-Za-z0-9_.\-]{0,128}")
_PRODUCTS = ("output_file_id", "error_file_id")
"""Files that a batch makes, by the fields of its answer that name them."""


class _Page(Struct, frozen=True, kw_only=True):
    """What a list's query asks for."""

    after: str = ""
    limit: int = 20
    newest_first: bool = True
    purpose: str = ""


class Kept:
    """Files and batches of one front worker."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._judge = Judge(parts)

    async def answer(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """Any request about files and batches but an upload. Raises ApiError for a clear refusal."""
        kind, action = _meant(incoming.endpoint)
        if action == "list":
            return await self._list(kind, incoming, ledger)
        if action == "create":
            return await self._create(incoming, ledger)
        return await self._recall(kind, action, incoming, ledger)

    async def _recall(self, kind: Kind, action: str, incoming: Incoming, ledger: Ledger) -> Reply:
        _check_query(incoming.query, frozenset())
        tenant = incoming.principal.tenant
        made = await self._parts.affinity.find(tenant, incoming.id, kind=kind)
        if made is None:
            raise unknown_id(kind, incoming.id)
        ledger.note(model=made.name, class_=made.class_)
        try:
            opened, decision = await self._ask(kind, action, incoming, incoming.id, made, ledger)
        except ApiError as error:
            if action == "delete" and error.status == 404:
                self._parts.affinity.forget(tenant, incoming.id, kind=kind)
            raise
        if action == "delete":
            self._parts.affinity.forget(tenant, incoming.id, kind=kind)
        if kind == "batch":
            self._learn(opened, tenant, made)
        request = wire.Request(endpoint=incoming.endpoint, body=b"", data={}, model=made.name)
        return await self._judge.relay(opened, request, None, decision, ledger)

    async def _ask(  # noqa: PLR0917 - one question in full
        self, kind: Kind, action: str, incoming: Incoming, id_: str, made: Made, ledger: Ledger
    ) -> tuple[Opened, Decision]:
        """The upstream's answer about one id. Raises ApiError."""
        option = _option_of(made, self._judge.generation.catalogue.options())
        if option is None:
            raise unknown_id(kind, id_)
        policy = self._judge.generation.label(self._parts.config.policies.default)
        decision = Decision(policy=policy, rule="", candidates=(Chosen(option=option),))
        ledger.note(policy=policy)
        folder = "files" if kind == "file" else "batches"
        call = Call(
            request_id=ledger.request_id,
            endpoint=f"{folder}/{action}",
            model=made.model,
            body=b"",
            stream=False,
            headers=incoming.forwarded(),
            method={"delete": "DELETE", "cancel": "POST"}.get(action, "GET"),
            path=f"{folder}/{quote(id_, safe='')}" + (f"/{action}" if action in {"content", "cancel"} else ""),
        )

        async def prepare(_option: Option) -> Call:
            return call

        return await self._parts.dispatch.open(decision, prepare, ledger), decision

    def _learn(self, opened: Opened, tenant: str, made: Made) -> None:
        """Remember the files that a batch has made, before its client learns of them."""
        told = json.loads(opened.body) if opened.whole is not None else {}
        for name in _PRODUCTS:
            if isinstance(id_ := told.get(name), str) and id_:
                self._parts.affinity.remember(tenant, id_, made, kind="file")

    async def _list(self, kind: Kind, incoming: Incoming, ledger: Ledger) -> Reply:
        """The objects of one tenant, each as its upstream tells it now. What an upstream no longer has is left out."""
        page = _page(kind, incoming.query)
        tenant = incoming.principal.tenant
        policy = self._judge.generation.label(self._parts.config.policies.default)
        ledger.note(policy=policy)
        found: list[tuple[str, bytes]] = []
        after = page.after
        while len(found) <= page.limit:
            rows = await self._parts.affinity.page(
                tenant, kind=kind, after=after, newest_first=page.newest_first, limit=min(AT_ONCE, page.limit + 1)
            )
            if not rows:
                break
            after = rows[-1][0]
            tasks = [self._object(kind, id_, made, incoming, ledger) for id_, made in rows]
            told = await asyncio.gather(*tasks, return_exceptions=True)
            for (id_, _), body in zip(rows, told, strict=True):
                if isinstance(body, BaseException):
                    raise body
                if body and (not page.purpose or json.loads(body).get("purpose") == page.purpose):
                    found.append((id_, body))
        shown = found[: page.limit]
        ends = {"first_id": shown[0][0] if shown else None, "last_id": shown[-1][0] if shown else None}
        tail = json.dumps({**ends, "has_more": len(found) > len(shown)})[1:]
        body = b'{"object": "list", "data": [' + b", ".join([one for _, one in shown]) + b"], " + tail.encode()
        tried = cast("tuple[str, ...]", ledger.fields.get("tried", ()))
        ledger.note(tried=tuple(dict.fromkeys(tried)))
        headers = [*self._judge.headers(policy, str(ledger.fields.get("route", ""))), JSON]
        return Reply(ledger, status=200, headers=headers, done="complete", body=body)

    async def _object(self, kind: Kind, id_: str, made: Made, incoming: Incoming, ledger: Ledger) -> bytes:
        """One object as its upstream tells it; empty when it has none."""
        try:
            opened, _ = await self._ask(kind, "retrieve", incoming, id_, made, ledger)
        except ApiError as error:
            if error.status == 404:
                return b""
            raise
        await opened.aclose()
        if kind == "batch":
            self._learn(opened, incoming.principal.tenant, made)
        return opened.body.strip()

    async def _create(self, incoming: Incoming, ledger: Ledger) -> Reply:
        """A batch, on the upstream that has its file."""
        data = wire.parse(incoming.body)
        file_id = _text(data, "input_file_id")
        if _text(data, "endpoint").removeprefix("/v1/") not in wire.ENDPOINTS:
            raise InvalidRequest("`endpoint` must be the path of an endpoint that is served here.", param="endpoint")
        tenant = incoming.principal.tenant
        made = await self._parts.affinity.find(tenant, file_id, kind="file")
        if made is None:
            raise unknown_id("file", file_id, param="input_file_id")
        request = wire.Request(endpoint="batches", body=incoming.body, data=data, model=made.name, needs=("batches",))
        generation = self._judge.generation
        facts = await asyncio.to_thread(self._judge.facts, incoming, request, ledger, generation, floor=made.class_)
        decision = pin(self._judge.decide(incoming, facts, ledger, generation), facts, made.upstream, what="the batch's file")
        if decision.refusal is not None:
            raise refused(decision)

        async def prepare(option: Option) -> Call:
            return Call(
                request_id=ledger.request_id,
                endpoint="batches",
                model=option.model,
                body=incoming.body,
                stream=False,
                headers=incoming.forwarded(),
            )

        opened = await self._parts.dispatch.open(decision, prepare, ledger)
        told = json.loads(opened.body)
        if isinstance(id_ := told.get("id"), str):
            kept = made_of(opened, facts)
            self._parts.affinity.remember(tenant, id_, kept, kind="batch")
            self._learn(opened, tenant, kept)
        return await self._judge.relay(opened, request, facts, decision, ledger)


def _meant(endpoint: str) -> tuple[Kind, str]:
    folder, _, action = endpoint.partition("/")
    return ("file" if folder == "files" else "batch"), action or "create"


def _option_of(made: Made, options: tuple[Option, ...]) -> Option | None:
    """The option that made it, or another of its upstream, while the upstream is configured at all."""
    own = [option for option in options if option.upstream == made.upstream]
    return next((option for option in own if option.model == made.model), own[0] if own else None)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, str):
        raise InvalidRequest(f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type")
    return value


def _check_query(query: str, known: frozenset[str]) -> dict[str, str]:
    """The words of a URL's query. Raises InvalidRequest for those that are not known: nobody scans them."""
    pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "api-version"]
    if not all(name in known and _WORD.fullmatch(value) for name, value in pairs):
        names = f"{', '.join(sorted(known))}, each with one plain word" if known else "api-version"
        raise InvalidRequest(f"The URL's query holds more than is known here: {names}.", code="unknown_parameter")
    return dict(pairs)


def _page(kind: Kind, query: str) -> _Page:
    words = _check_query(query, frozenset({"after", "limit", "order", "purpose"} if kind == "file" else {"after", "limit"}))
    limit = words.get("limit", str(MAX_PAGE if kind == "file" else 20))
    if not limit.isdecimal() or not 1 <= int(limit) <= 10_000:
        raise InvalidRequest("'limit' must be a whole number from 1 to 10000.", param="limit", code="invalid_value")
    order = words.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidRequest("'order' must be asc or desc.", param="order", code="invalid_value")
    return _Page(
        after=words.get("after", ""),
        limit=min(int(limit), MAX_PAGE),
        newest_first=order == "desc",
        purpose=words.get("purpose", ""),
    )
