"""Load one model from a folder and turn requests into its tokens. Knows weights and tokenizers; nothing of rows or sockets."""

from __future__ import annotations

import copy
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from gateway.errors import GatewayError
from gateway.local.frames import Failed, Generate
from gateway.weights import WeightsError

Quantization = Literal["bnb-int8", "bnb-nf4", "none"]

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")
"""Marks by which chat templates end a turn; one counts when the template or the tokenizer uses it as a special token."""

_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


class _PromptError(GatewayError):
    """A prompt that this model cannot read. `kind` and `param` go into the Failed frame; the message holds no text of it."""

    def __init__(self, kind: Literal["invalid", "context_length"], message: str, param: str) -> None:
        super().__init__(message)
        self.kind: Literal["invalid", "context_length"] = kind
        self.param = param


class Loaded(NamedTuple):
    """A model that is ready to run."""

    module: Any
    """A Hugging Face causal language model in evaluation mode."""
    tokenizer: Any
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    context: int
    """Most tokens of prompt and answer together."""
    device: str
    quantization: str

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, special ones left out, spaces as they are."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def load(folder: Path, *, quantization: Quantization, device: str, threads: int, context: int) -> Loaded:
    """Load the folder's model. `threads` 0 means physical cores minus one; `context` 0 the model's own limit.

    Takes seconds. Raises WeightsError, naming the mend, when the folder or the device cannot be used.
    """
    torch.set_num_threads(threads or default_threads())
    place = _device(device)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        room = _context(config.get_text_config(), context)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        module = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            dtype="auto",
            attn_implementation="sdpa",
            device_map={"": place},
            quantization_config=_quantized(quantization),
        ).eval()
    except ImportError as error:
        raise WeightsError(f'{error.name or "a library"} is missing; run: pip install "gateway[local]"') from error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"weights in {folder} cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
            "fetch them again with: gateway models pull --force NAME"
        ) from error
    return Loaded(module, tokenizer, _end_ids(module, tokenizer), room, place, quantization)


def default_threads() -> int:
    """One less than the physical cores this process may use, so that the front workers keep a core; at least one."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_of(cpu) for cpu in usable}
    return max(1, len(cores) - 1)


class Reader:
    """Turns a Generate frame into prompt tokens. Has its own copy of the tokenizer, so that it may run beside the engine."""

    def __init__(self, loaded: Loaded) -> None:
        self._tokenizer = copy.deepcopy(loaded.tokenizer)
        self._context = loaded.context
        self._special = sorted({str(token) for token in self._tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._any_special = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")

    def read(self, generate: Generate) -> list[int] | Failed:
        """The prompt's token ids, at least one and fewer than the context; or why there are none."""
        try:
            return self._read(generate)
        except _PromptError as error:
            return Failed(generate.id, error.kind, str(error), error.param)

    def _read(self, generate: Generate) -> list[int]:
        if generate.messages is not None:
            tokens, param = self._read_chat(generate.messages), "messages"
        else:
            tokens, param = list(self._tokenizer(generate.prompt or "")["input_ids"]), "prompt"
        if not tokens and self._tokenizer.bos_token_id is not None:
            tokens = [self._tokenizer.bos_token_id]
        if not tokens:
            raise _PromptError("invalid", "the prompt is empty, and this model has no mark that begins a text", param)
        if len(tokens) >= self._context:
            raise _PromptError(
                "context_length",
                f"This model's maximum context length is {self._context} tokens, and the answer needs at least one of "
                f"them. However, your {param} resulted in {len(tokens)} tokens. Please shorten the {param}.",
                param,
            )
        return tokens

    def _read_chat(self, messages: list[dict[str, object]]) -> list[int]:
        """Apply the chat template; marks that a message spells out (`<|im_end|>`) are read as the text they are.

        Each is replaced by a random name before the template runs and tokenised by itself after, so that no message can
        end its own turn or begin another's.
        """
        if not self._tokenizer.chat_template:
            raise _PromptError("invalid", "this model has no chat template; use the completions endpoint", "messages")
        nonce = secrets.token_hex(8)
        hidden = [
            {key: self._hide(value, nonce) if isinstance(value, str) else value for key, value in message.items()}
            for message in messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, KeyError):
            roles = ", ".join(str(message.get("role")) for message in messages[:8])
            raise _PromptError("invalid", f"this model's chat template refuses these roles: {roles}", "messages") from None
        tokens: list[int] = []
        for index, part in enumerate(re.split(f"<{nonce}:([0-9]+)>", text)):
            if index % 2:
                part = self._special[int(part)]  # noqa: PLW2901 - the name gives way to what it stands for
            tokens += self._tokenizer(part, add_special_tokens=False, split_special_tokens=bool(index % 2))["input_ids"]
        return tokens

    def _hide(self, text: str, nonce: str) -> str:
        return self._any_special.sub(lambda found: f"<{nonce}:{self._special.index(found[0])}>", text)


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise WeightsError('device "cuda" was asked for, but torch sees no GPU; set device = "cpu" or "auto"')
    return "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"


def _quantized(quantization: Quantization) -> Any:
    match quantization:
        case "bnb-int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        case "bnb-nf4":
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
        case "none":
            return None


def _context(config: Any, asked: int) -> int:
    """Tokens a row may have. Below a sliding window the window makes no difference, so the window is a limit too."""
    odd = set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS
    if odd:
        raise WeightsError(
            f"models with {', '.join(sorted(odd))} layers are not supported (model type {config.model_type}); "
            "choose one whose layers all use attention"
        )
    limits = [asked, getattr(config, "max_position_embeddings", 0), getattr(config, "sliding_window", 0)]
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else 2048


def _end_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for ids in (module.generation_config.eos_token_id, module.config.eos_token_id, tokenizer.eos_token_id):
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found.update(special[mark] for mark in _TURN_ENDS if mark in special)
    return frozenset(found)


def _core_of(cpu: int) -> tuple[str, str]:
    """Which physical core a logical CPU belongs to; each its own where Linux does not say."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "", str(cpu)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no reason given"
