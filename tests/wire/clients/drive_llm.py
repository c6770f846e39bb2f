"""The `llm` command, with extra-openai-models.yaml in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import cases

HOME = Path(os.environ["GATEWAY_HOME"]) / "llm"
LLM = Path(sys.executable).with_name("llm")
MODEL = """
- model_id: gateway-{name}
  model_name: {name}
  api_base: "{url}"
  api_key_name: gateway
"""


def llm(*arguments, key=cases.KEY):
    env = {**os.environ, "LLM_USER_PATH": str(HOME), "OPENAI_API_KEY": key}
    return subprocess.run(
        [LLM, *arguments, "--key", key], env=env, capture_output=True, text=True, timeout=cases.TIMEOUT_S, check=False
    )


def says(text, *options):
    done = llm("-m", "gateway-relayed", "--no-log", text, *options)
    cases.same((done.stderr, done.stdout), ("", text + "\n"))


def refused(model, words, **options):
    done = llm("-m", model, "--no-log", "x", **options)
    cases.same((done.returncode, words in done.stderr), (1, True))


HOME.mkdir(exist_ok=True)
(HOME / "extra-openai-models.yaml").write_text("".join(MODEL.format(name=name, url=cases.URL) for name in ("relayed", "nope")))
cases.run(
    {
        "chat": lambda: says(cases.TEXT, "--no-stream"),
        "cached": lambda: says(cases.TEXT),
        "stream": lambda: says(cases.STREAMED),
        "unknown model": lambda: refused("gateway-nope", "does not exist"),
        "wrong key": lambda: refused("gateway-relayed", "401", key="sk-wrong"),
    }
)
