"""A tiny random Llama with a byte-level tokenizer, and its worker in a real process. Nothing is downloaded."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gateway.frames import Client
from gateway.local.frames import Hello, from_worker_decoder

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges cross the borders of characters, as big vocabularies' do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["€€€€ 漢字漢字 üöäüöä 🙂🙂🙂 the other then"] * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory, byte_tokenizer) -> Callable[..., Path]:
    """Write a random Llama (float32) with so many key-value heads; the folder is made once."""
    made: dict[int, Path] = {}

    def make(kv_heads: int = 2) -> Path:
        import torch  # noqa: PLC0415 - tests without torch use this file, too
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415 - as above

        if kv_heads not in made:
            folder = tmp_path_factory.mktemp(f"tiny{kv_heads}")
            torch.manual_seed(kv_heads)
            config = LlamaConfig(
                vocab_size=byte_tokenizer.get_vocab_size(),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=kv_heads,
                max_position_embeddings=512,
                initializer_range=0.4,
                bos_token_id=1,
                eos_token_id=2,
            )
            LlamaForCausalLM(config).save_pretrained(folder)
            fast = PreTrainedTokenizerFast(
                tokenizer_object=byte_tokenizer,
                bos_token="<|im_start|>",
                eos_token="<|im_end|>",
                unk_token="<|endoftext|>",
                additional_special_tokens=SPECIAL,
            )
            fast.chat_template = TEMPLATE
            fast.save_pretrained(folder)
            made[kv_heads] = folder
        return made[kv_heads]

    return make


class RunningWorker(NamedTuple):
    """A worker process that is ready."""

    process: subprocess.Popen[str]
    socket: str


def start_worker(weights: Path, socket: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gateway.local.worker", "--socket", str(socket), "--name", "tiny", "--weights", str(weights)]
    return subprocess.Popen([*command, "--threads", "1", *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_settled(process: subprocess.Popen[str]) -> dict[str, str]:
    """The first report that is not `loading`."""
    for line in process.stdout:
        if (status := json.loads(line))["state"] != "loading":
            return status
    raise AssertionError("the worker ended without a word")


@pytest.fixture(scope="session")
def workers(make_weights, tmp_path_factory) -> Iterator[list[RunningWorker]]:
    """Two workers, loaded side by side: one to talk to, one to kill."""
    folder = tmp_path_factory.mktemp("run")
    options = ("--quantization", "none", "--device", "cpu", "--max-rows", "4", "--max-waiting", "2")
    started = [(start_worker(make_weights(), folder / f"{n}.sock", *options), str(folder / f"{n}.sock")) for n in range(2)]
    try:
        assert [until_settled(process)["state"] for process, _ in started] == ["ready", "ready"]
        yield [RunningWorker(*pair) for pair in started]
    finally:
        for process, _ in started:
            process.kill()
            process.communicate()


@pytest.fixture
def launch() -> Iterator[Callable[..., tuple[subprocess.Popen[str], dict[str, str]]]]:
    """Start a worker and wait until it is ready or has failed; returns the process and its last report."""
    started = []

    def start(weights: Path, socket: Path, *more: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
        started.append(start_worker(weights, socket, *more))
        return started[-1], until_settled(started[-1])

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
async def connect():
    """Open a client to a socket; returns it with the worker's Hello."""
    tasks = []

    async def open_client(socket: str) -> tuple[Client, Hello]:
        hello = asyncio.get_running_loop().create_future()
        client = Client(socket, from_worker_decoder(), on_news=lambda frame: hello.done() or hello.set_result(frame))
        tasks.append(asyncio.create_task(client.run()))
        return client, await asyncio.wait_for(hello, 30)

    yield open_client
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
