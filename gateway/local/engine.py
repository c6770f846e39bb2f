"""Advance many answers together over one Hugging Face module: chunked prefill, then one token for every running row.

Knows rows, tokens and frames; nothing of sockets. Everything but `add` and `cancel` belongs to the one thread that steps.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from gateway.local.frames import Delta, Failed, Finished, FromWorker, Generate, Started
from gateway.local.kv import RaggedCache
from gateway.local.model import Loaded
from gateway.local.sampling import sample
from gateway.local.text import Detokenizer, StopFilter

CHUNK = 256
"""Most prompt tokens read between two decode steps: running rows never wait for more than this much work."""

_log = logging.getLogger("gateway.local")


class Row:
    """One answer while it is made."""

    def __init__(self, generate: Generate, prompt: Sequence[int], loaded: Loaded) -> None:
        self.id = generate.id
        self.prompt = prompt
        self.position = 0
        """Tokens whose keys and values are stored."""
        self.last = 0
        """The newest token; not stored yet."""
        self.made = 0
        """Tokens generated, end marks not counted."""
        room = loaded.context - len(prompt)
        self.limit = room if generate.max_tokens is None else min(room, generate.max_tokens)
        self._generate = generate
        self._end_ids = loaded.end_ids
        self._generator = torch.Generator()
        if generate.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(generate.seed % 2**63)
        self._characters = Detokenizer(loaded.decode)
        self._stops = StopFilter(generate.stop)
        self._unsent = 0

    def advance(self, logits: torch.Tensor) -> list[FromWorker]:
        """Sample from `logits` (shape [vocabulary]); the frames this gives, the last of them Finished when the row is done."""
        wish = self._generate
        token = sample(logits, temperature=wish.temperature, top_p=wish.top_p, generator=self._generator)
        frames: list[FromWorker] = [] if self.made else [Started(self.id, len(self.prompt))]
        if token in self._end_ids:
            return frames + self._finish(self._characters.finish(), "stop")
        self.last = token
        self.made += 1
        self._unsent += 1
        text = self._characters.push(token)
        if self.made == self.limit:
            return frames + self._finish(text + self._characters.finish(), "length")
        text, stopped = self._stops.push(text)
        frames += self._delta(text)
        return frames + self._finished("stop") if stopped else frames

    def _finish(self, text: str, reason: Literal["stop", "length"]) -> list[FromWorker]:
        """Let out what is held; even now a stop string may be completed."""
        text, stopped = self._stops.push(text)
        if not stopped:
            text += self._stops.finish()
        return self._delta(text) + self._finished("stop" if stopped else reason)

    def _delta(self, text: str) -> list[FromWorker]:
        if not text:
            return []
        count, self._unsent = self._unsent, 0
        return [Delta(self.id, text, count)]

    def _finished(self, reason: Literal["stop", "length"]) -> list[FromWorker]:
        return [Finished(self.id, reason, len(self.prompt), self.made, self._unsent)]


class Engine:
    """Rows over one module. Slots 0..decoding-1 make a token a step; the slots after them still read their prompts."""

    def __init__(self, loaded: Loaded, *, max_rows: int, chunk: int = CHUNK) -> None:
        self._loaded = loaded
        self._max_rows = max_rows
        self._chunk = chunk
        layers = loaded.module.config.get_text_config().num_hidden_layers
        self._cache = RaggedCache(layers=layers, rows=max_rows, device=loaded.device)
        self._waiting: deque[Row] = deque()
        self._cancelled: deque[int] = deque()
        self._rows: list[Row] = []
        self._decoding = 0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._rows and not self._waiting

    def add(self, generate: Generate, prompt: Sequence[int]) -> None:
        """Queue an answer; `generate.id` is unique among those alive. From any thread."""
        self._waiting.append(Row(generate, prompt, self._loaded))

    def cancel(self, number: int) -> None:
        """Free the row with this id before the next step; an unknown id is ignored. From any thread."""
        self._cancelled.append(number)

    def step(self) -> list[FromWorker]:
        """One chunk of prompts, then one token for every running row. The frames that became ready."""
        with torch.inference_mode():
            self._drop_cancelled()
            frames = self._prefill()
            frames += self._decode()
        if not self._rows:
            self._cache.clear()
        return frames

    def _drop_cancelled(self) -> None:
        gone = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if not gone:
            return
        self._leave(slot for slot, row in enumerate(self._rows) if row.id in gone)
        for row in [row for row in self._waiting.copy() if row.id in gone]:
            self._waiting.remove(row)

    def _prefill(self) -> list[FromWorker]:
        """Read up to `chunk` prompt tokens: a part of one long prompt, or several short ones padded to one width."""
        if self._decoding == len(self._rows):
            self._admit()
        batch = self._rows[self._decoding :]
        if not batch:
            return []
        sizes = [min(self._chunk, len(row.prompt) - row.position) for row in batch]
        width = max(sizes)
        tokens = [
            [*row.prompt[row.position : row.position + size], *[0] * (width - size)]
            for row, size in zip(batch, sizes, strict=True)
        ]
        done = batch[0].position + sizes[0] == len(batch[0].prompt)
        first = self._decoding
        try:
            logits = self._forward(first, tokens, ends=[size - 1 for size in sizes])
        except Exception as error:  # noqa: BLE001 - the boundary of these calls: they fail, the worker lives on
            return self._fail(range(first, len(self._rows)), error)
        for row, size in zip(batch, sizes, strict=True):
            row.position += size
        if not done:
            return []
        self._decoding = len(self._rows)
        return self._advance(first, logits)

    def _admit(self) -> None:
        """Give slots to the next prompts that fit into one chunk together; a longer one goes alone."""
        width = count = 0
        while self._waiting and len(self._rows) < self._max_rows:
            width = max(width, len(self._waiting[0].prompt))
            count += 1
            if count > 1 and width * count > self._chunk:
                return
            self._rows.append(self._waiting.popleft())

    def _decode(self) -> list[FromWorker]:
        """One token for every row that has read its prompt and has one to continue from."""
        batch = self._rows[: self._decoding]
        if not batch:
            return []
        try:
            logits = self._forward(0, [[row.last] for row in batch], ends=[0] * len(batch))
        except Exception as error:  # noqa: BLE001 - as above
            return self._fail(range(len(batch)), error)
        for row in batch:
            row.position += 1
        return self._advance(0, logits)

    def _forward(self, first: int, tokens: list[list[int]], *, ends: list[int]) -> torch.Tensor:
        """Run the module over neighbouring slots. Logits after each row's token number `ends`: [rows, vocabulary], on the CPU."""
        starts = [row.position for row in self._rows[first : first + len(tokens)]]
        positions, seen = self._cache.aim(first, starts, len(tokens[0]))
        wanted = sorted(set(ends))
        output = self._loaded.module(
            input_ids=torch.tensor(tokens, device=self._loaded.device),
            attention_mask=seen,
            position_ids=positions.clamp(max=self._loaded.context - 1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, device=self._loaded.device),
        )
        kept = output.logits[torch.arange(len(ends)), [wanted.index(end) for end in ends]]
        return kept.float().cpu()

    def _advance(self, first: int, logits: torch.Tensor) -> list[FromWorker]:
        """Let each row take its token; rows that are done or broken leave."""
        frames: list[FromWorker] = []
        leaving = []
        for slot in range(first, first + len(logits)):
            try:
                news = self._rows[slot].advance(logits[slot - first])
            except Exception as error:  # noqa: BLE001 - as above
                frames += self._fail([slot], error, leave=False)
                leaving.append(slot)
                continue
            frames += news
            if news and isinstance(news[-1], Finished):
                leaving.append(slot)
        self._leave(leaving)
        return frames

    def _fail(self, slots: Iterable[int], error: Exception, *, leave: bool = True) -> list[FromWorker]:
        """End these rows with an internal error. Only the kind of error and its place are told: its text may hold a prompt's."""
        slots = list(slots)
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        _log.error("%d answers failed: %s", len(slots), where)
        for slot in slots:
            self._cache.wipe(slot)
        frames: list[FromWorker] = [Failed(self._rows[slot].id, "internal", f"the local model failed: {where}") for slot in slots]
        if leave:
            self._leave(slots)
        return frames

    def _leave(self, slots: Iterable[int]) -> None:
        """Free slots, highest first, closing each gap with the last row of its part."""
        for slot in sorted(slots, reverse=True):
            if slot < self._decoding:
                self._decoding -= 1
                self._fill(slot, self._decoding)
                self._fill(self._decoding, len(self._rows) - 1)
            else:
                self._fill(slot, len(self._rows) - 1)
            self._rows.pop()

    def _fill(self, gap: int, source: int) -> None:
        if gap != source:
            self._cache.move(source, gap, self._rows[source].position)
            self._rows[gap] = self._rows[source]
