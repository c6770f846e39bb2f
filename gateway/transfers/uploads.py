"""Forms with files in them, from the first byte to the upstream's answer: sent on while they come in, or spooled first.

A form is sent on as it comes when all that the decision hangs on stands before its first file. Texts behind it are held until
they are scanned, and never leave when the upstream may not see them. Otherwise the form waits on the disk until it is whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from gateway import wire
from gateway.dispatch import Opened
from gateway.errors import ApiError, BodyStopped, Forbidden, InvalidRequest
from gateway.facts import Facts
from gateway.incoming import Incoming
from gateway.ledger import Ledger
from gateway.policy.decision import Chosen, Decision, Option
from gateway.policy.generation import Generation
from gateway.reply import Reply
from gateway.transfers import batch
from gateway.transfers.ahead import Ahead
from gateway.transfers.batch import Batch
from gateway.transfers.form import End, Event, Form, Head, boundary
from gateway.transfers.intake import Intake
from gateway.transfers.judge import Judge, Parts, made_of, refused
from gateway.transfers.spool import Spool
from gateway.upstreams import Call, Upload

BLOCK_BYTES = 128 * 1024
"""Lines of a batch file that are read in one go, on a thread."""

_MODEL_OPTIONAL = frozenset({"files", "images/edits", "images/variations"})
_FILE_FIELD: Mapping[str, str] = {"images/edits": "image", "images/variations": "image"}


class Source(Protocol):
    """A request's body as it comes."""

    declared: int | None
    """Its content-length; None when it has none."""

    def parts(self) -> AsyncGenerator[bytes, None]:
        """The bytes, no part empty. Raises ApiError when they are too many or too slow, another error when the client leaves."""
        ...


class Uploads:
    """Forms of one front worker."""

    def __init__(self, parts: Parts, *, spool_folder: Path) -> None:
        self._parts = parts
        self._judge = Judge(parts)
        self._spool_folder = spool_folder

    @asynccontextmanager
    async def answer(self, incoming: Incoming, source: Source, ledger: Ledger) -> AsyncIterator[Reply]:
        """The whole path. Raises ApiError for a clear refusal, or what `source` raises; what it holds is freed on leaving."""
        form = Form(boundary(incoming.headers.get("content-type", "")))
        async with AsyncExitStack() as stack:
            ahead = Ahead(source.parts, self._spool_folder)
            events = await stack.enter_async_context(aclosing(_events(form, ahead)))
            intake = Intake()
            held = bytearray()
            async for event in events:
                held += intake.take(event)
                if isinstance(event, Head) and event.is_file:
                    break
            if not intake.n_files:
                raise _missing(_FILE_FIELD.get(incoming.endpoint, "file"))
            job = _Job(self._parts, self._judge, incoming, intake, ledger)
            if job.knows_enough:
                ahead.reads_on = True
                await job.stream(bytes(held), events, source.declared)
            else:
                spool = Spool(self._spool_folder)
                stack.callback(spool.close)
                await _spooled(spool, bytes(held), intake, events)
                if intake.fields.get("purpose") == "batch":
                    edited = partial(_edited, self._spool_folder, stack)
                    await job.send_batch(spool, edited)
                else:
                    await job.send(spool)
            yield await job.reply()


async def _events(form: Form, ahead: Ahead) -> AsyncGenerator[Event, None]:
    async with aclosing(ahead.parts()) as parts:
        async for data in parts:
            for event in form.feed(data):
                yield event
    form.end()


async def _spooled(spool: Spool, held: bytes, intake: Intake, events: AsyncIterator[Event]) -> None:
    await spool.write(held)
    async for event in events:
        await spool.write(intake.take(event))
    await spool.flush()


async def _edited(  # noqa: PLR0917 - the first two are bound beforehand
    folder: Path, stack: AsyncExitStack, spool: Spool, place: tuple[int, int], models: Mapping[str, str], longest: int
) -> Spool:
    """A batch file with the upstream's names of its models, in a spool of its own that `stack` closes."""
    made = Spool(folder)
    stack.callback(made.close)
    async with aclosing(_blocks(spool, place, longest)) as blocks:
        async for lines in blocks:
            await made.write(await asyncio.to_thread(batch.edited, lines, models))
    await made.flush()
    return made


async def _blocks(spool: Spool, place: tuple[int, int], longest: int) -> AsyncGenerator[list[bytes], None]:
    block: list[bytes] = []
    size = 0
    async with aclosing(spool.lines(*place, longest=longest)) as lines:
        async for line in lines:
            block.append(line)
            size += len(line)
            if size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
    if block:
        yield block


class _Job:
    """One form on its way, from the decision to the answer."""

    def __init__(self, parts: Parts, judge: Judge, incoming: Incoming, intake: Intake, ledger: Ledger) -> None:
        self._parts = parts
        self._judge = judge
        self._incoming = incoming
        self._intake = intake
        self._ledger = ledger
        self._is_file = incoming.endpoint == "files"

    @property
    def knows_enough(self) -> bool:
        """Whether nothing that the decision hangs on can come behind the file."""
        if self._is_file:
            return self._intake.fields.get("purpose", "batch") != "batch"
        return bool(self._intake.fields.get("model") or self._incoming.deployment)

    def _request(self) -> wire.Request:
        """What the form asks for, with its model. Raises InvalidRequest, or NotFound for the model."""
        endpoint, fields, deployment = self._incoming.endpoint, self._intake.fields, self._incoming.deployment
        if self._is_file and not fields.get("purpose"):
            raise _missing("purpose")
        model = "" if self._is_file else fields.get("model") or deployment
        if not model and endpoint not in _MODEL_OPTIONAL:
            raise InvalidRequest("You must provide a model parameter.", param="model", code="missing_required_parameter")
        if deployment and model != deployment:
            raise InvalidRequest("The path names another model than the form.", param="model", code="model_mismatch")
        streams = self._intake.streams and not self._is_file
        data = {"prompt": fields.get("prompt", "")}
        request = wire.Request(endpoint=endpoint, body=b"", data=data, model=model, stream=streams, needs=(endpoint,))
        return self._judge.named(request)

    async def _judged(self, request: wire.Request, generation: Generation) -> Facts:
        return await self._judge.facts_aside(
            self._incoming, request, self._intake.texts, self._ledger, generation, has_files=True
        )

    async def _decide(self) -> None:
        self.request, self._generation = self._request(), self._judge.generation
        self.facts = await self._judged(self.request, self._generation)
        self.decision = self._judge.decide(self._incoming, self.facts, self._ledger, self._generation)
        if self.decision.refusal is not None:
            raise refused(self.decision)

    async def stream(self, held: bytes, events: AsyncGenerator[Event, None], declared: int | None) -> None:
        """Decide, and send the form on while it comes in."""
        await self._decide()
        self._intake.sealed = True
        self._n_judged = len(self._intake.texts)

        async def prepare(option: Option) -> Call:
            head = b"".join([piece for piece in self._pieces(option.model, held=held) if isinstance(piece, bytes)])
            length = None if declared is None else declared + len(head) - len(held)
            return self._call(option, Streamed(head, self._intake, events, partial(self._check, option), length=length))

        await self._open(prepare)

    async def send(self, spool: Spool) -> None:
        """Decide, and send a form that is whole and on the disk."""
        await self._decide()

        async def prepare(option: Option) -> Call:
            return self._call(option, Spooled(self._pieces(option.model, spool=spool)))

        await self._open(prepare)

    async def _check(self, option: Option) -> None:
        """Judge the form again with what has come. Raises Forbidden when the upstream that gets it must not see that."""
        if len(self._intake.texts) == self._n_judged:
            return
        self._n_judged = len(self._intake.texts)
        facts = await self._judged(self.request, self._generation)
        changed = (facts.class_, facts.found, facts.unread) != (self.facts.class_, self.facts.found, self.facts.unread)
        self.facts = facts
        if not changed:
            return
        self._ledger.note(class_=facts.class_, found=facts.found, unread=facts.unread)
        if not self._judge.allows(self._incoming, facts, option.name, self._generation):
            said = (
                f"A field behind the file makes this request {facts.class_}{facts.why}, and the policy "
                f'does not allow it to go to "{option.upstream}", which had been chosen before; send text fields before the file.'
            )
            raise Forbidden(said, code="policy_forbidden")

    async def send_batch(
        self, spool: Spool, edited: Callable[[Spool, tuple[int, int], Mapping[str, str], int], Awaitable[Spool]]
    ) -> None:
        """Read every line of a batch file, decide for all of them together, and send the file."""
        place = self._intake.content
        if place is None or self._intake.n_files != 1:
            raise InvalidRequest("A batch is one file.", param="file", code="invalid_form")
        self._generation = self._judge.generation
        # What the form says beside the file counts as a line of its own.
        form = await self._judge.facts_aside(
            self._incoming, self._plain(("files", "batches")), self._intake.texts, self._ledger, self._generation
        )
        lines = await self._read_lines(spool, place, form)
        ways = self._ways(lines, self._decide_lines(lines, form))

        async def prepare(option: Option) -> Call:
            models = ways[option.upstream]
            content: tuple[Spool, int, int] = (spool, *place)
            if any(name != model for name, model in models.items()):
                made = await edited(spool, place, models, self._longest)
                content = (made, 0, made.length)
            pieces = [(spool, 0, place[0]), content, (spool, place[1], spool.length)]
            return self._call(option, Spooled(pieces))

        await self._open(prepare)

    @property
    def _longest(self) -> int:
        return self._parts.config.server.max_body_bytes

    def _plain(self, needs: tuple[str, ...]) -> wire.Request:
        return wire.Request(endpoint="files", body=b"", data={}, model="", needs=needs)

    async def _read_lines(self, spool: Spool, place: tuple[int, int], form: Facts) -> Batch:
        def judge(asked: wire.Request) -> Facts:
            if asked.model not in self._parts.config.models:
                raise InvalidRequest("its model is not known here; see /v1/models")
            facts = self._judge.facts(self._incoming, asked, self._ledger, self._generation, floor=form.class_)
            return replace(facts, endpoint="files", needs=(*form.needs, *facts.needs), stores=False, stream=False)

        lines = Batch(judge, longest_line=self._longest)
        async with aclosing(_blocks(spool, place, self._longest)) as blocks:
            async for block in blocks:
                await asyncio.to_thread(lines.read, block)
        lines.end()
        return lines

    def _decide_lines(self, lines: Batch, form: Facts) -> dict[str, Decision]:
        """A decision for each model of the file, on the most that any of its lines holds. Raises ApiError naming a line."""
        highest = max(lines.facts.values(), key=batch.rank)
        found = tuple(sorted({*form.found, *(kind for facts in lines.facts.values() for kind in facts.found)}))
        decisions: dict[str, Decision] = {}
        for name, facts in lines.facts.items():
            self.facts = replace(facts, class_=highest.class_, found=found, unread=highest.unread)
            decision = self._judge.decide(self._incoming, self.facts, self._ledger, self._generation)
            if decision.refusal is not None:
                forbidden = decision.refusal.kind == "forbidden"
                number = lines.line_of[highest.model if forbidden else name]
                raise refused(decision, where=f"Line {number} of the batch file: ")
            decisions[name] = decision
        return decisions

    def _ways(self, lines: Batch, decisions: Mapping[str, Decision]) -> dict[str, dict[str, str]]:
        """By upstream: its own names of the file's models. Raises InvalidRequest when no upstream may serve all the lines."""
        first, *others = decisions
        ways: dict[str, dict[str, str]] = {}
        chosen: list[Chosen] = []
        for candidate in decisions[first].candidates:
            ways.setdefault(candidate.option.upstream, {first: candidate.option.model})
            if not any(one.option.upstream == candidate.option.upstream for one in chosen):
                chosen.append(candidate)
        for name in others:
            own: dict[str, str] = {}
            for candidate in decisions[name].candidates:
                own.setdefault(candidate.option.upstream, candidate.option.model)
            ways = {upstream: {**models, name: own[upstream]} for upstream, models in ways.items() if upstream in own}
            if not ways:
                why = "no upstream may serve its model and those of the lines before it too; put it into a file of its own."
                raise batch.refused(lines.line_of[name], why)
        self.decision = replace(decisions[first], candidates=tuple(one for one in chosen if one.option.upstream in ways))
        self.facts = replace(self.facts, model=first)
        self.request = replace(self._plain(self.facts.needs), model=first)
        self._ledger.note(model=first)
        return ways

    def _pieces(self, model: str, *, held: bytes = b"", spool: Spool | None = None) -> list[Piece]:
        """The form with the upstream's own name of the model: the one edit."""
        whole: list[Piece] = [held if spool is None else (spool, 0, spool.length)]
        place = self._intake.model
        if self._is_file or (place and self.request.model == model):
            return whole
        if place is None:
            deployment = self._incoming.deployment
            return [_model_part(self._incoming.headers["content-type"], model), *whole] if deployment else whole
        start, end = place
        if spool is None:
            return [held[:start], model.encode(), held[end:]]
        return [(spool, 0, start), model.encode(), (spool, end, spool.length)]

    def _call(self, option: Option, upload: Upload) -> Call:
        return Call(
            request_id=self._ledger.request_id,
            endpoint=self._incoming.endpoint,
            model=option.model,
            body=b"",
            stream=self.request.stream,
            headers=self._incoming.forwarded(),
            upload=upload,
            content_type=self._incoming.headers["content-type"],
        )

    async def _open(self, prepare: Callable[[Option], Awaitable[Call]]) -> None:
        try:
            self.opened: Opened = await self._parts.dispatch.open(self.decision, prepare, self._ledger)
        except BodyStopped as stopped:
            if stopped.__cause__ is None:
                raise
            raise stopped.__cause__ from None

    async def reply(self) -> Reply:
        """The upstream's answer; where it tells of a file that it keeps, that is remembered before the client learns of it."""
        if self._is_file and self.opened.whole is not None:
            id_ = json.loads(self.opened.body).get("id")
            if isinstance(id_, str):
                made = made_of(self.opened, self.facts)
                self._parts.affinity.remember(self._incoming.principal.tenant, id_, made, kind="file")
        return await self._judge.relay(self.opened, self.request, self.facts, self.decision, self._ledger)


Piece = bytes | tuple[Spool, int, int]
"""Some of a form: bytes, or a place in a spool."""


class Spooled:
    """An upload that is whole already, and can be sent again."""

    spent = False

    def __init__(self, pieces: list[Any]) -> None:
        self._pieces: list[Piece] = pieces
        self.length: int | None = sum(len(piece) if isinstance(piece, bytes) else piece[2] - piece[1] for piece in self._pieces)

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `Upload.parts`."""
        for piece in self._pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            spool, start, end = piece
            async with aclosing(spool.read(start, end)) as read:
                async for data in read:
                    yield data


class Streamed:
    """A form that is sent on while it comes in, once."""

    def __init__(
        self,
        head: bytes,
        intake: Intake,
        events: AsyncGenerator[Event, None],
        check: Callable[[], Awaitable[None]],
        *,
        length: int | None,
    ) -> None:
        """`head` goes first, then what `events` bring; `check` raises when what `intake` knows must not leave."""
        self.length = length
        self.spent = False
        self._head = head
        self._intake = intake
        self._events = events
        self._check = check

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """See `Upload.parts`. A text leaves after it was scanned whole."""
        self.spent = True
        try:
            yield self._head
            waiting = b""
            async for event in self._events:
                waiting += self._intake.take(event)
                if self._intake.reads_text:
                    continue
                if isinstance(event, Head | End):
                    await self._check()
                if waiting:
                    yield waiting
                    waiting = b""
        except BodyStopped:
            raise
        except Exception as error:
            raise BodyStopped("the request's own body broke off") from error


def _model_part(content_type: str, model: str) -> bytes:
    """A part that names the model, for a form whose path does: it goes before the first."""
    delimiter = b"--" + boundary(content_type).encode("ascii")
    return delimiter + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n"


def _missing(name: str) -> ApiError:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
