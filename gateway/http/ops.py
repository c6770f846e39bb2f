"""What operators and clients ask about the gateway itself: health, readiness, metrics, models.

A prompt passes here only to be explained; it is never sent on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
from litestar import HttpMethod, Request, Response, get, post, route

from gateway.auth import Keys, as_if, bearer
from gateway.config import CLASSES, Config, LocalUpstream
from gateway.errors import InvalidRequest, NotFound, did_you_mean
from gateway.http.inference import header_map, request_id
from gateway.ledger import Ledger
from gateway.local.parameters import CHAT, COMPLETIONS, EMBEDDINGS, TABLE
from gateway.pipeline import Incoming, Pipeline
from gateway.purge import Selector
from gateway.wire import ENDPOINTS

State = dict[str, Any]


def model_object(config: Config, name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models, in OpenAI's shape; what we add stands under names of our own."""
    candidates = config.candidates(name)
    upstreams = sorted({candidate.upstream for candidate in candidates})
    contexts = [candidate.context for candidate in candidates if candidate.context]
    able = sorted({word for candidate in candidates for word in candidate.capabilities})
    local = any(isinstance(config.upstreams[name], LocalUpstream) for name in upstreams)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": upstreams[0] if len(upstreams) == 1 else "gateway",
        "context_length": max(contexts) if contexts else None,
        "capabilities": able,
        **({"local_parameters": local_parameters(able)} if local else {}),
    }


def local_parameters(capabilities: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """What local models make of request parameters, by endpoint and by "implemented", "no effect" and "refused"."""
    endpoints = [name for name in (CHAT, COMPLETIONS, EMBEDDINGS) if name.partition("/")[0] in capabilities]
    return {
        endpoint: {
            does: [row.name for row in TABLE if row.does == does and endpoint in row.endpoints]
            for does in ("implemented", "no effect", "refused")
        }
        for endpoint in endpoints
    }


def routes(
    *,
    config: Config,
    keys: Keys,
    purge_state: Callable[..., Awaitable[dict[str, int]]],
    pipeline: Pipeline,
    emit: Callable[..., None],
    ready: Callable[[], tuple[bool, State]],
    metrics: Callable[[], Awaitable[tuple[bytes, str]]],
    started_at: int,
) -> list[Any]:
    """The handlers, closed over what they show."""
    return [
        *_for_anybody(ready=ready, metrics=metrics),
        *_for_clients(config=config, keys=keys, started_at=started_at),
        _purge(keys=keys, purge_state=purge_state),
        _dry_run(keys=keys, pipeline=pipeline, emit=emit, max_body_bytes=config.server.max_body_bytes),
    ]


def _for_anybody(*, ready: Callable[[], tuple[bool, State]], metrics: Callable[[], Awaitable[tuple[bytes, str]]]) -> list[Any]:
    """What needs no key."""

    @route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], sync_to_thread=False)
    def root() -> State:
        """Tools that are given this base URL ask whether anybody is there."""
        return {"status": "ok"}

    @get("/health", sync_to_thread=False)
    def health() -> State:
        """The process answers; nothing more is promised."""
        return {"status": "ok"}

    @get("/ready", sync_to_thread=False)
    def readiness() -> Response[State]:
        """200 when at least one route can serve, else 503; the body says what is up and why the rest is not."""
        is_ready, state = ready()
        return Response(state, status_code=200 if is_ready else 503)

    @get("/metrics")
    async def show_metrics() -> Response[bytes]:
        """Prometheus text of all front workers. Holds counts and configured names only, so it needs no key."""
        page, media = await metrics()
        return Response(page, media_type=media)

    return [root, health, readiness, show_metrics]


def _for_clients(*, config: Config, keys: Keys, started_at: int) -> list[Any]:
    """What any key may ask."""

    @get(["/v1/models", "/openai/v1/models", "/openai/models"], sync_to_thread=False)
    def list_models(request: Request[Any, Any, Any]) -> Response[State]:
        keys.principal(bearer(header_map(request.scope)))
        models = [model_object(config, name, started_at) for name in config.models]
        return Response({"object": "list", "data": models})

    @get(["/v1/models/{name:path}", "/openai/v1/models/{name:path}", "/openai/models/{name:path}"], sync_to_thread=False)
    def show_model(request: Request[Any, Any, Any]) -> Response[State]:
        keys.principal(bearer(header_map(request.scope)))
        wanted = unquote(str(request.path_params["name"]).lstrip("/"))
        if wanted not in config.models:
            shown = ascii(wanted[:128])[1:-1]
            hint = did_you_mean(wanted, config.models)
            raise NotFound(f"The model `{shown}` does not exist{hint}", param="model", code="model_not_found")
        return Response(model_object(config, wanted, started_at))

    return [list_models, show_model]


def _purge(*, keys: Keys, purge_state: Callable[..., Awaitable[dict[str, int]]]) -> Any:
    @post("/v1/gateway/purge", status_code=200)
    async def purge(request: Request[Any, Any, Any]) -> State:
        """Erase what this gateway holds, but for its log files. Scope `admin`; body: a selector, and dry_run."""
        principal = keys.principal(bearer(header_map(request.scope)))
        principal.require("admin")
        wanted, dry_run = _selector(await request.json())
        counts = await purge_state(wanted, dry_run=dry_run, by=principal.label)
        return {"purged": sum(counts.values()), "dry_run": dry_run, "counts": counts}

    return purge


def _dry_run(*, keys: Keys, pipeline: Pipeline, emit: Callable[..., None], max_body_bytes: int) -> Any:
    @post("/v1/route", status_code=200, request_max_body_size=max_body_bytes)
    async def explain(request: Request[Any, Any, Any]) -> Response[State]:
        """Where an ordinary body would go and why; nobody is called. Scope `admin`; the query takes `DRY_RUN_WORDS`."""
        headers = header_map(request.scope)
        principal = keys.principal(bearer(headers))
        principal.require("admin")
        words = _words(request.query_params)
        endpoint = words["endpoint"] or CHAT
        label = words["key_label"]
        found = keys.labelled(label) if label else None
        principal = as_if(found, principal, label=label, tenant=words["tenant"], policy=words["policy"])
        if words["class"]:
            headers["x-gateway-class"] = words["class"]
        ledger = Ledger(request_id(), endpoint, on_token=_ignore, on_event=emit, on_record=_ignore)
        body = await request.body()
        told = await pipeline.explain(Incoming(endpoint=endpoint, body=body, headers=headers, principal=principal), ledger)
        return Response(told.as_json(), headers={"x-request-id": ledger.request_id})

    return explain


def _selector(asked: Any) -> tuple[Selector, bool]:
    """What a purge's body selects, and whether it is a dry run. Raises InvalidRequest."""
    known = (*(field.encode_name for field in msgspec.structs.fields(Selector)), "dry_run")
    for name in asked if isinstance(asked, dict) else ["(body)"]:
        if name not in known:
            raise InvalidRequest(f'unknown field "{ascii(name)[1:-1]}"{did_you_mean(name, known)}', param=name)
    if asked.get("class") not in {None, *CLASSES}:
        raise InvalidRequest(f"unknown class{did_you_mean(str(asked['class']), CLASSES)}", param="class")
    dry_run = bool(asked.pop("dry_run", False))
    try:
        wanted = msgspec.convert(asked, Selector)
    except msgspec.ValidationError:
        raise InvalidRequest("tenant, class, model and subject are words, in quotes.") from None
    if wanted.subject is not None and sum(map(str.isalnum, wanted.subject)) < 2:
        raise InvalidRequest("subject needs two letters or digits at least.", param="subject")
    return wanted, dry_run


DRY_RUN_WORDS = ("endpoint", "policy", "tenant", "key_label", "class")
"""What the query of a dry run may say, as the options of `gateway explain` do: whose request it is taken to be."""


def _words(query: Mapping[str, str]) -> dict[str, str]:
    """The words of a dry run's query, empty where it is silent. Raises InvalidRequest for others, and for an unknown endpoint."""
    if unknown := sorted(set(query) - set(DRY_RUN_WORDS)):
        known = ", ".join(DRY_RUN_WORDS)
        raise InvalidRequest(f"The query takes {known}, each once, and nothing else.", param=ascii(unknown[0][:32])[1:-1])
    name = query.get("endpoint", CHAT)
    if name not in ENDPOINTS:
        message = f"That is no endpoint with a JSON body{did_you_mean(name, ENDPOINTS)}; docs/endpoints.md lists them."
        raise InvalidRequest(message, param="endpoint")
    return {word: query.get(word, "") for word in DRY_RUN_WORDS}


def _ignore(_: object) -> None:
    """A dry run has neither tokens nor a record."""
