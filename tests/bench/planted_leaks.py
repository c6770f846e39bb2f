"""A hundred deliberate leaks, each a wrong part put into a front worker: the search of `canaries.py` must catch every one.

A leak is a name, what the cases have to be for it to show, and a context in which the part is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from gateway import dispatch, facts, incoming, literals, logs, pipeline, privacy, redact, restore
from gateway.cache import tiers
from gateway.errors import ApiError, Forbidden, UpstreamFailed
from gateway.explain import Explanation
from gateway.http import inference
from gateway.policy import decide
from gateway.policy.decision import Chosen
from gateway.redact import Redactor, Vault
from gateway.reply import Reply
from gateway.responses import redis as shared_store
from gateway.responses import store
from gateway.transfers import judge
from tests.bench.canaries import Site, run_batch

RAW = {"class_": "restricted", "form": "raw"}


@dataclass(frozen=True)
class Plant:
    """A leak, and the cases that walk into it."""

    wrong: Callable[[Site], Any]
    forced: dict[str, str] = field(default_factory=dict)
    fault: str = "none"


PLANTS: dict[str, Plant] = {}


def plant(name: str, fault: str = "none", **forced: str) -> Callable[[Callable[[Site], Iterator[None]]], None]:
    """Put a generator into the table as a context."""

    def add(wrong: Callable[[Site], Iterator[None]]) -> None:
        PLANTS[name] = Plant(contextmanager(wrong), forced, fault)

    return add


async def caught_by(seed: int, name: str, redis_url: str, *, size: int = 66) -> list[str]:
    """The sinks in which the search sees this leak; none: it was missed."""
    one = PLANTS[name]
    found = await run_batch(seed, 0, redis_url, one.wrong, size=size, fault=one.fault, forced=one.forced)
    return sorted({leak["sink"] for leak in found["leaks"]})[:3]


def _everybody(site: Site) -> tuple[Chosen, ...]:
    return tuple(Chosen(option=option) for option in site.generation.catalogue.options())


# Where a request may go


def _decided(change: Callable[[Site, Any, Any], Any]) -> Callable[[Site], Iterator[None]]:
    """A decision that is changed after it was made; `change(site, facts, decision)`."""

    def wrong(site: Site) -> Iterator[None]:
        real = pipeline.decide

        def decide(generation: Any, policy: str, known: Any, health: Any) -> Any:
            return change(site, known, real(generation, policy, known, health))

        with patch.object(pipeline, "decide", decide), patch.object(judge, "decide", decide):
            yield

    return wrong


def _decided_for(change: Callable[[Any], Any]) -> Callable[[Site], Iterator[None]]:
    """A decision over other facts."""

    def wrong(_: Site) -> Iterator[None]:
        real = pipeline.decide

        def decide(generation: Any, policy: str, known: Any, health: Any) -> Any:
            return real(generation, policy, change(known), health)

        with patch.object(pipeline, "decide", decide), patch.object(judge, "decide", decide):
            yield

    return wrong


plant("decide ignores the class")(_decided_for(lambda known: replace(known, class_="public")))
plant("restricted is taken for confidential")(
    _decided_for(lambda known: replace(known, class_="confidential") if known.class_ == "restricted" else known)
)
plant("confidential is taken for internal", class_="confidential")(
    _decided_for(lambda known: replace(known, class_="internal") if known.class_ == "confidential" else known)
)
plant("streams are not classed", path="chat stream")(
    _decided_for(lambda known: replace(known, class_="public") if known.stream else known)
)
plant("embeddings are not classed", path="embeddings")(
    _decided_for(lambda known: replace(known, class_="public") if known.endpoint == "embeddings" else known)
)
plant("moderations are not classed", path="moderations")(
    _decided_for(lambda known: replace(known, class_="public") if known.endpoint == "moderations" else known)
)
plant("completions are not classed", path="completions", form="token ids")(
    _decided_for(lambda known: replace(known, class_="public") if known.endpoint == "completions" else known)
)
plant("tools are not classed", path="chat", place="tool description", **RAW)(
    _decided_for(lambda known: replace(known, class_="public") if known.tools else known)
)
plant("the cheapest upstream is put first, whoever it is")(
    _decided(lambda site, _, decision: replace(decision, candidates=_everybody(site), refusal=None))
)
plant("an upstream outside the set is the last resort", fault="home is down")(
    _decided(lambda site, _, decision: replace(decision, candidates=(*decision.candidates, *_everybody(site)), refusal=None))
)
plant("a refusal goes to the first upstream", fault="home answers 500")(
    _decided(lambda site, _, decision: replace(decision, candidates=(*decision.candidates, *_everybody(site)[:1]), refusal=None))
)


@plant("a retry goes outside the set", fault="home answers 500")
def _retry(site: Site) -> Iterator[None]:
    real = site.front.pipeline._dispatch.open

    async def open_(decision: Any, prepare: Any, ledger: Any) -> Any:
        try:
            return await real(decision, prepare, ledger)
        except ApiError:
            return await real(replace(decision, candidates=_everybody(site)), prepare, ledger)

    with patch.object(site.front.pipeline._dispatch, "open", open_):
        yield


@plant("a call is mirrored to an upstream under test")
def _mirror(site: Site) -> Iterator[None]:
    home, cloud = site.front.upstreams["home"], site.front.upstreams["cloud"]
    real = home.send

    async def send(call: Any) -> Any:
        with contextlib.suppress(Exception):
            await (await cloud.send(replace(call, upload=None))).aclose()
        return await real(call)

    with patch.object(home, "send", send):
        yield


@plant("two upstreams are mixed up")
def _mixed(site: Site) -> Iterator[None]:
    upstreams = site.front.upstreams
    with patch.dict(upstreams, {"home": upstreams["cloud"], "cloud": upstreams["home"]}):
        yield


# What is seen


def _unseen(change: Callable[[Any], Any]) -> Callable[[Site], Iterator[None]]:
    """A scan that does not look at a part of the body."""

    def wrong(_: Site) -> Iterator[None]:
        real = privacy.scan

        def scan(body: Any, **options: Any) -> Any:
            return real((change(body[0]), *body[1:]) if isinstance(body, tuple) else body, **options)

        with patch.object(privacy, "scan", scan):
            yield

    return wrong


def _without_messages(role: str) -> Callable[[Any], Any]:
    return lambda data: {**data, "messages": [one for one in data.get("messages", ()) if one.get("role") != role]}


def _without_keys(*names: str) -> Callable[[Any], Any]:
    return lambda data: {name: value for name, value in data.items() if name not in names}


for _role, _place in (("system", "system"), ("tool", "tool result"), ("assistant", "assistant")):
    plant(f"the scan skips {_role} messages", path="chat", place=_place, **RAW)(_unseen(_without_messages(_role)))
plant("the scan skips tool calls", path="chat", place="tool call", **RAW)(
    _unseen(lambda data: {**data, "messages": [{**one, "tool_calls": None} for one in data["messages"]]})
)
plant("the scan skips names", path="chat", place="name", **RAW)(
    _unseen(lambda data: {**data, "messages": [{**one, "name": ""} for one in data["messages"]]})
)
for _key, _place in (("tools", "tool description"), ("metadata", "metadata"), ("user", "user field"), ("stop", "stop")):
    plant(f"the scan skips {_key}", path="chat", place=_place, **RAW)(_unseen(_without_keys(_key)))
plant("the scan skips object keys", path="chat", place="object key", **RAW)(
    _unseen(lambda data: {**data, "metadata": list((data.get("metadata") or {}).values())})
)
plant("the scan reads the first part alone", path="chat", place="part", **RAW)(
    _unseen(
        lambda data: {
            **data,
            "messages": [{**one, "content": one["content"][:1] if isinstance(one["content"], list) else one["content"]}
                         for one in data["messages"]],
        }
    )
)  # fmt: skip
plant("the scan skips the input of responses", path="responses", **RAW)(_unseen(_without_keys("input", "metadata")))
plant("the scan skips prompts", path="completions", place="user", **RAW)(_unseen(_without_keys("prompt")))


@plant("the scan skips the query", path="messages", place="query", **RAW)
def _query(_: Site) -> Iterator[None]:
    real = privacy.scan
    with patch.object(privacy, "scan", lambda body, **options: real(body[0], **options)):
        yield


@plant("the detector knows nothing", **RAW)
def _nothing(site: Site) -> Iterator[None]:
    finds_nothing = dict.fromkeys(("kinds", "kinds_of_all", "find"), lambda _self, _text: frozenset())
    blind = type("Blind", (), {**finds_nothing, "waits": False})()
    blind.patterns = blind
    with patch.object(site.front.generation, "detector", blind), patch.object(site.front.generation, "patterns", blind):
        yield


@plant("a failed scan counts as nothing found", fault="detector raises", **RAW)
def _failed(_: Site) -> Iterator[None]:
    with patch.object(privacy, "classify", lambda _scan, _classes: "public"):
        yield


@plant("what is too large counts as nothing found", fault="oversize", **RAW)
def _oversize(_: Site) -> Iterator[None]:
    with patch.object(privacy, "classify", lambda _scan, _classes: "public"):
        yield


@plant("the sender's word is not heard", class_="confidential", form="base64")
def _unheard(_: Site) -> Iterator[None]:
    with patch.object(facts, "asked_class", lambda _headers: "public"):
        yield


@plant("files have no floor", path="transcription", **RAW)
def _floor(_: Site) -> Iterator[None]:
    real = judge.Judge.facts

    def judged(self: Any, *args: Any, **more: Any) -> Any:
        return replace(real(self, *args, **{**more, "has_files": False}), class_="public")

    with patch.object(judge.Judge, "facts", judged):
        yield


@plant("lines of a batch are not classed", path="batch file", place="user", **RAW)
def _lines(_: Site) -> Iterator[None]:
    real = judge.Judge.facts

    def judged(self: Any, *args: Any, **more: Any) -> Any:
        return replace(real(self, *args, **more), class_="public")

    with patch.object(judge.Judge, "facts", judged):
        yield


# What is written


plant("text of every class is logged")(_decided(lambda _site, _known, decision: replace(decision, log_text=True)))


def _heard(tell: Callable[[Site, Any, Any, bytes], None], **where: str) -> Callable[[Site], Iterator[None]]:
    """`tell(site, incoming, ledger, body)` is called with every request."""

    def wrong(site: Site) -> Iterator[None]:
        real = site.front.pipeline._judge

        async def judged(asked: Any, generation: Any, ledger: Any) -> Any:
            tell(site, asked, ledger, asked.body)
            return await real(asked, generation, ledger)

        with patch.object(site.front.pipeline, "_judge", judged):
            yield

    return wrong


def _words(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _keep(site: Site, name: str, data: bytes) -> None:
    with (site.folder / "state" / name).open("ab") as file:
        file.write(data)


def _row(site: Site, body: bytes) -> None:
    with contextlib.closing(sqlite3.connect(site.folder / "state" / "debug.sqlite3")) as db:
        db.execute("create table if not exists t (body blob)")
        db.execute("insert into t values (?)", (body,))
        db.commit()


CHAT = {"path": "chat", "class_": "confidential", "form": "raw", "place": "user"}
"""Words that look like no credential: the log masks those by itself, wherever they come from."""
plant("an event quotes the body", **CHAT)(_heard(lambda _s, _i, ledger, body: ledger.event("cache.miss", reason=_words(body))))
plant("an event holds the body in base64", **CHAT)(
    _heard(lambda _s, _i, ledger, body: ledger.event("cache.miss", reason=base64.b64encode(body).decode()))
)
plant("an event holds the body in hex", **CHAT)(
    _heard(lambda _s, _i, ledger, body: ledger.event("cache.miss", reason=body.hex()))
)
plant("the record quotes the body", **CHAT)(_heard(lambda _s, _i, ledger, body: ledger.note(key_label=_words(body))))
plant("a metric's label quotes the body", **CHAT)(_heard(lambda site, _i, _l, body: _label(site, _words(body))))
plant("a trusted logger quotes the body", **CHAT)(
    _heard(lambda _s, _i, _l, body: logging.getLogger("uvicorn.error").error("bad: %s", _words(body)))
)
plant("standard error quotes the body", **CHAT)(_heard(lambda _s, _i, _l, body: sys.stderr.write(_words(body)) and None))
plant("standard output quotes the body", **CHAT)(_heard(lambda _s, _i, _l, body: sys.stdout.write(_words(body)) and None))
plant("a file keeps the body", **CHAT)(_heard(lambda site, _i, _l, body: _keep(site, "last-request.json", body)))
plant("a file keeps token ids", path="completions", form="token ids")(
    _heard(lambda site, _i, _l, body: _keep(site, "last-request.json", body))
)
plant("a table keeps the body", **CHAT)(_heard(lambda site, _i, _l, body: _row(site, body)))
plant("the embedder is fed with every text", **CHAT)(_heard(lambda site, _i, _l, body: site.tape.heard.extend(body)))


def _label(site: Site, text: str) -> None:
    errors = site.front.metrics._counts.sums.errors
    errors[text] = errors.get(text, 0) + 1


@plant("tokens are logged whatever the policy says")
def _said(_: Site) -> Iterator[None]:
    real = logs.LogWriter._token_lines
    with patch.object(logs.LogWriter, "_token_lines", lambda self, tokens: real(self, tokens._replace(shown=True))):
        yield


@plant("a crash's text is logged and told", **CHAT)
def _crash(site: Site) -> Iterator[None]:
    async def answer(asked: Any, _ledger: Any) -> Any:
        raise ValueError(_words(asked.body))

    def told(ledger: Any, fault: Exception) -> None:
        ledger.event("request.crashed", fault=str(fault), place="x")

    with patch.object(site.front.pipeline, "answer", answer), patch.object(inference, "_log_crash", told):
        yield


@plant("a refusal quotes the body", **CHAT)
def _quote(site: Site) -> Iterator[None]:
    async def answer(asked: Any, _ledger: Any) -> Any:
        raise Forbidden(f"This may not be asked: {_words(asked.body)}", code="policy_forbidden")

    with patch.object(site.front.pipeline, "answer", answer):
        yield


@plant("a header quotes the body", **CHAT)
def _header(site: Site) -> Iterator[None]:
    real = site.front.pipeline.answer

    async def answer(asked: Any, ledger: Any) -> Any:
        reply = await real(asked, ledger)
        reply.headers.append(("x-gateway-debug", _words(asked.body)))
        return reply

    with patch.object(site.front.pipeline, "answer", answer):
        yield


@plant("an explanation quotes the body", path="explain", **RAW)
def _explanation(site: Site) -> Iterator[None]:
    real, shown = site.front.pipeline.explain, Explanation.as_json
    bodies: list[str] = []

    async def explain(asked: Any, ledger: Any) -> Any:
        bodies.append(_words(asked.body))
        return await real(asked, ledger)

    with (
        patch.object(site.front.pipeline, "explain", explain),
        patch.object(Explanation, "as_json", lambda self: {**shown(self), "body": bodies[-1]}),
    ):
        yield


@plant("tags are logged as they come", place="tag")
def _tags(_: Site) -> Iterator[None]:
    with patch.object(facts, "loggable", lambda word, _detector=None: word):
        yield


@plant("a client's request id is logged as it comes", place="header")
def _client_id(_: Site) -> Iterator[None]:
    with patch.object(inference, "loggable", lambda word, _detector=None: word):
        yield


@plant("headers travel as they come", place="header")
def _travel(_: Site) -> Iterator[None]:
    with patch.object(incoming, "_may_travel", lambda *_: True):
        yield


# What is kept


@plant("every class is cached", path="chat")
def _cached(_: Site) -> Iterator[None]:
    every = frozenset({"public", "internal", "confidential", "restricted"})
    real = pipeline.decide

    def decide(*args: Any) -> Any:
        return replace(real(*args), cache="semantic")

    with (
        patch.object(tiers, "CACHEABLE_CLASSES", every),
        patch.object(pipeline, "CACHEABLE_CLASSES", every),
        patch.object(pipeline, "decide", decide),
    ):
        yield


@plant("the cache's key has no tenant", path="chat", way="another tenant asks", class_="internal", form="base64", place="user")
def _tenant(_: Site) -> Iterator[None]:
    real = pipeline.scope
    with patch.object(pipeline, "scope", lambda data, **more: real(data, **{**more, "tenant": "x"})):
        yield


@plant(
    "the cache's key is the model alone", path="chat", way="another tenant asks", class_="internal", form="base64", place="user"
)
def _model(_: Site) -> Iterator[None]:
    real = pipeline.scope

    def scope(data: Any, **more: Any) -> Any:
        made = real({"model": "m", "messages": [{"role": "user", "content": "x"}]}, **{**more, "tenant": "x"})
        return made if real(data, **more) is not None else None

    with patch.object(pipeline, "scope", scope):
        yield


@plant("stored responses of every class", path="responses above", form="base64", class_="confidential", place="user")
def _stored(_: Site) -> Iterator[None]:
    every = frozenset({"public", "internal", "confidential", "restricted"})
    with (
        patch.object(pipeline, "STORABLE_CLASSES", every),
        patch.object(store, "check_clearance", lambda _class: None),
        patch.object(shared_store, "check_clearance", lambda _class: None),
    ):
        yield


@plant("a stored response has no class of its own", path="responses above", class_="internal", form="base64", place="user")
def _chain_class(_: Site) -> Iterator[None]:
    with patch.object(pipeline, "_higher", lambda floor, _before: floor):
        yield


@plant("a sealed summary has no class of its own", path="responses compacted", class_="confidential", form="base64", place="user")
def _seal_class(site: Site) -> Iterator[None]:
    real = site.front.responses._seal.open

    def opened(sealed: str, *, tenant: str) -> Any:
        found = real(sealed, tenant=tenant)
        return found and found._replace(class_="public")

    with patch.object(site.front.responses._seal, "open", opened):
        yield


@plant("speech is not classed", path="speech", place="user", **RAW)
def _speech(site: Site) -> Iterator[None]:
    yield from _decided_for(lambda known: replace(known, class_="public") if known.endpoint == "audio/speech" else known)(site)


@plant("images are not classed", path="image edit", place="user", **RAW)
def _images(_: Site) -> Iterator[None]:
    real = judge.Judge.facts

    def judged(self: Any, *args: Any, **more: Any) -> Any:
        return replace(real(self, *args, **more), class_="public")

    with patch.object(judge.Judge, "facts", judged):
        yield


@plant("what is given up is left on the disk", way="is stopped in the middle", **CHAT)
def _given_up(site: Site) -> Iterator[None]:
    real = site.front._closed
    bodies: list[bytes] = []
    judged = site.front.pipeline._judge

    async def kept(asked: Any, *more: Any) -> Any:
        bodies.append(asked.body)
        return await judged(asked, *more)

    def closed(record: Any) -> None:
        if record.ending == "cancelled":
            _keep(site, "core.dump", bodies[-1])
        real(record)

    with patch.object(site.front, "_closed", closed), patch.object(site.front.pipeline, "_judge", kept):
        yield


@plant("an answer that is never read is left on the disk", way="is stopped at the head", **CHAT)
def _unread(site: Site) -> Iterator[None]:
    real = Reply.close

    def close(self: Any, **more: Any) -> None:
        if self._ending == "never_read" and self.body:
            _keep(site, "unread.json", self.body)
        real(self, **more)

    with patch.object(Reply, "close", close):
        yield


@plant("a late upstream is tried again anywhere", fault="home is slow", path="chat", place="user", **RAW)
def _late(site: Site) -> Iterator[None]:
    anywhere = _decided(lambda one, _, made: replace(made, candidates=(*made.candidates[:1], *_everybody(one)), refusal=None))
    yield from anywhere(site)


@plant("an upstream's error is logged as it says it", fault="eu quotes in its error", **CHAT)
def _quoted(_: Site) -> Iterator[None]:
    real = dispatch.Dispatch._learn

    def learn(self: Any, option: Any, failure: Any) -> Any:
        failure.args = (failure.body.decode("utf-8", "replace"),)
        return real(self, option, failure)

    with patch.object(dispatch.Dispatch, "_learn", learn):
        yield


@plant("what upstreams keep is everybody's", path="responses chain", class_="internal", form="base64", place="user")
def _affinity(site: Site) -> Iterator[None]:
    real = site.front.affinity.find

    async def find(_tenant: str, id_: str, **more: Any) -> Any:
        return await real("acme", id_, **more)

    with patch.object(site.front.affinity, "find", find):
        yield


@plant("an upload is left on the disk", path="transcription", **RAW)
def _upload(site: Site) -> Iterator[None]:
    seen = site.app

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def kept_receive() -> Any:
            message = await receive()
            _keep(site, "spool.part", message.get("body", b""))
            return message

        await seen(scope, kept_receive, send)

    with patch.object(site, "app", app):
        yield


@plant("a loosened policy reaches requests under way", fault="policies change meanwhile", path="chat stream")
def _loosened(site: Site) -> Iterator[None]:
    real = pipeline.reply.relayed

    async def relayed(ledger: Any, *args: Any, **more: Any) -> Any:
        ledger.log_text = site.front.generation.log_text_up_to == "restricted"
        return await real(ledger, *args, **more)

    with patch.object(pipeline.reply, "relayed", relayed):
        yield


@plant("the shared cache keeps what was asked", **CHAT)
def _asked(site: Site) -> Iterator[None]:
    real = site.front.pipeline._judge

    async def judged(asked: Any, generation: Any, ledger: Any) -> Any:
        with contextlib.suppress(Exception):
            await site.front.cache._shared._redis.set("debug", asked.body)
        _keep(site, "shared.debug", asked.body) if not site.redis_url else None
        return await real(asked, generation, ledger)

    with patch.object(site.front.pipeline, "_judge", judged):
        yield


# Masks


ADDRESS = {"class_": "confidential", "form": "raw", "place": "user"}
WORD = {"class_": "internal", "form": "raw", "place": "user"}


def _masked(tell: Callable[..., Any], name: str, *, fault: str = "masked", **forced: str) -> None:
    """`tell(real, call, ledger, option)` stands where a call is masked; `real()` gives the masked call."""

    def wrong(_: Site) -> Iterator[None]:
        real = pipeline.masked
        told: list[str] = []

        async def masked(call: Any, *args: Any, **more: Any) -> Any:
            told.append(more["upstream"])
            return await tell(lambda: real(call, *args, **more), call, more["ledger"], told)

        with patch.object(pipeline, "masked", masked):
            yield

    plant(name, fault, **forced)(wrong)


def _bare(call: Any) -> Any:
    """The call as it came, with a vault all the same."""
    return replace(call, vault=Vault("BBBB", json_answer=False))


async def _forgotten(_real: Any, call: Any, _ledger: Any, _told: Any) -> Any:
    return _bare(call)


async def _second(real: Any, call: Any, _ledger: Any, told: list[str]) -> Any:
    return _bare(call) if told[-2:-1] == told[-1:] else await real()


async def _next_upstream(real: Any, call: Any, _ledger: Any, told: list[str]) -> Any:
    return _bare(call) if told[-1] == "eu" else await real()


async def _whole_alone(real: Any, call: Any, _ledger: Any, _told: Any) -> Any:
    return _bare(call) if call.stream else await real()


async def _chat_alone(real: Any, call: Any, _ledger: Any, _told: Any) -> Any:
    return await real() if call.endpoint == "chat/completions" else _bare(call)


async def _skipped(real: Any, call: Any, _ledger: Any, _told: Any) -> Any:
    try:
        return await real()
    except Forbidden:
        return _bare(call)


async def _logged(real: Any, _call: Any, ledger: Any, _told: Any) -> Any:
    made = await real()
    ledger.event("cache.miss", reason=repr(made.vault._values))
    return made


async def _noted(real: Any, _call: Any, ledger: Any, _told: Any) -> Any:
    made = await real()
    ledger.note(redacted=dict.fromkeys(made.vault._placeholders, 1))
    return made


async def _kept(real: Any, _call: Any, _ledger: Any, told: list[Any]) -> Any:
    made = await real()
    told.insert(0, made.vault)
    return made


async def _in_header(real: Any, _call: Any, _ledger: Any, _told: Any) -> Any:
    made = await real()
    return replace(made, headers=[*made.headers, ("x-originals", repr(made.vault._values))])


async def _beside(real: Any, call: Any, _ledger: Any, _told: Any) -> Any:
    made = await real()
    return replace(made, body=made.body[:-1] + b',"original":"' + base64.b64encode(call.body) + b'"}')


_masked(_forgotten, "a mask is forgotten")
_masked(_second, "a second try leaves as it came", fault="masked, cloud answers 500")
_masked(_next_upstream, "the next upstream gets it as it came", fault="masked, cloud is down")
_masked(_next_upstream, "after a late upstream the next gets it as it came", fault="masked, cloud is slow")
_masked(_whole_alone, "streams are not masked", path="chat stream")
_masked(_whole_alone, "streams of responses are not masked", path="responses stream")
_masked(_chat_alone, "completions are not masked", path="completions", **ADDRESS)
_masked(_chat_alone, "messages are not masked", path="messages", **ADDRESS)
_masked(_skipped, "a mask that fails is left out", fault="masked, key file is damaged")
_masked(_skipped, "a mask whose detector fails is left out", fault="masked, detector raises on the way")
_masked(_logged, "the vault is logged", path="chat", **ADDRESS)
_masked(_noted, "the record names what was masked", path="chat", **ADDRESS)
_masked(_kept, "the vault outlives its request", path="chat", **ADDRESS)
_masked(_in_header, "the vault travels in a header", path="chat", **ADDRESS)
_masked(_beside, "the original travels beside its mask in base64", path="chat", **ADDRESS)


def _patched(*changes: tuple[Any, str, Any]) -> Callable[[Site], Iterator[None]]:
    """Parts exchanged by others."""

    def wrong(_: Site) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, other in changes:
                stack.enter_context(patch.object(owner, name, other))
            yield

    return wrong


def _hidden(kind_of: Callable[[str], str]) -> Callable[[Any, str, str], str]:
    """A `hide` whose placeholder says something of its value."""
    real = Vault.hide
    return lambda self, kind, value: self._placeholders.get(value) or real(self, kind_of(value), value)


def _raising(self: Any, _data: bytes) -> bytes:
    raise UpstreamFailed("protocol", f"cannot restore {self._vault._values}")


def _quoting(real: Any) -> Any:
    def mask(self: Any, *args: Any, **more: Any) -> Any:
        raise redact.Unmaskable(f"left over: {real(self, *args, **more).vault._values}")

    return mask


def _unchecked(_data: Any, _max_chars: int, _detector: Any) -> None:
    """Nothing is left, whatever is."""


def _some(skips: Callable[[Any], bool]) -> tuple[tuple[Any, str, Any], ...]:
    """A mask that does not look at some strings, and no second look."""
    real = literals.strings
    seen = lambda document: [one for one in real(document) if not skips(one)]  # noqa: E731 -- beside its only use
    return (redact.literals, "strings", seen), (redact, "_check_rest", _unchecked)


plant("a placeholder is made of its value", "masked", **ADDRESS)(
    _patched((Vault, "hide", _hidden(lambda value: value.encode().hex())), (redact, "_check_rest", _unchecked))
)
plant("a placeholder is a digest of its value", "masked", path="chat", **ADDRESS)(
    _patched(
        (Vault, "hide", _hidden(lambda value: hashlib.sha256(value.encode()).hexdigest())), (redact, "_check_rest", _unchecked)
    )
)
plant("a failure quotes the vault", "masked", path="chat stream", **ADDRESS)(_patched((restore.Events, "feed", _raising)))
plant("a refusal quotes the vault", "masked", path="chat", **ADDRESS)(_patched((Redactor, "mask", _quoting(Redactor.mask))))
plant("the limit on what leaves is forgotten", "masked")(_patched((decide, "_needs_masks", lambda _facts: False)))
plant("what could not be scanned needs no mask", "masked, detector raises")(
    _patched((decide, "_needs_masks", lambda known: bool(known.found)))
)
plant("what cannot be masked leaves as it is", "masked", path="not maskable", kind="moderations", place="user", **RAW)(
    _patched((decide, "_needs_masks", lambda known: known.endpoint != "moderations"))
)
plant("uploads need no mask", "masked", path="not maskable", kind="transcription", place="user", **RAW)(
    _patched((decide, "_needs_masks", lambda known: "audio" not in known.endpoint))
)
plant("a masked answer is stored upstream", "masked", path="responses", **WORD)(
    _patched((decide, "_unmaskable", lambda _row, _facts: ""))
)
plant("a restored answer is cached", "masked", path="chat", **WORD)(
    _decided(lambda _site, _known, decision: replace(decision, cache="semantic"))
)
plant("token ids leave under a mask", "masked", path="completions", form="token ids", place="user")(
    _patched((redact, "_check_shape", lambda _data: None))
)
plant("a query leaves under a mask", "masked", path="messages", form="raw", place="query", class_="confidential")(
    _patched((restore, "unquote_plus", lambda _path: ""))
)
plant("keys of objects are not masked", "masked", path="chat", form="raw", place="object key", class_="confidential")(
    _patched(*_some(lambda one: one.is_key))
)
plant("arguments of calls are not masked", "masked", path="chat", form="raw", place="tool call", class_="confidential")(
    _patched(*_some(lambda one: "arguments" in one.path))
)
plant("results of tools are not masked", "masked", path="chat", form="raw", place="tool result", class_="confidential")(
    _patched(*_some(lambda one: one.path[:2] == ("messages", 2)))
)
plant("what is escaped is not masked", "masked", path="chat", form="json-escaped", place="user", class_="confidential")(
    _patched(*_some(lambda one: "content" in one.path))
)
plant("masks end where local models are down", "masked, cloud is down", path="chat", **ADDRESS)(
    _decided(lambda _site, _known, decision: replace(decision, redact=False))
)


@plant("a loosened policy lets requests under way leave", "masked, policies change meanwhile", path="chat", **ADDRESS)
def _as_of_now(site: Site) -> Iterator[None]:
    """Whether to mask is asked of the policy in force when a call is made, and not when its request came."""
    real = pipeline.masked

    async def masked(call: Any, *args: Any, **more: Any) -> Any:
        return await real(call, *args, **more) if site.front.generation is site.generation else _bare(call)

    with patch.object(pipeline, "masked", masked):
        yield
