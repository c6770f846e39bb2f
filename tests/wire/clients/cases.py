"""What every Python client's script shares: where the gateway is, what is asked, and one line of JSON for each case."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

URL = os.environ["GATEWAY_URL"]
KEY = os.environ["GATEWAY_KEY"]
TIMEOUT_S = 30.0

TEXT = f'One "two" drei ✓ 你好 🦊 {uuid.uuid4()}'
"""The echo answers with it; no other client has asked it."""
STREAMED = "streamed " + TEXT
ORIGINAL = "ada.lovelace@example.org"
"""Masked on its way to an upstream outside, which answers an error when it sees it."""
PERSON = {"name": "Ann Ünal", "age": 31}
PERSON_JSON = json.dumps(PERSON, ensure_ascii=False)
VECTOR = (0.25, -1.5, 3.0, 1e-3)
"""What the scripted upstream embeds everything as."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "save_person",
        "description": "Save a person.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


def same(got: object, wanted: object) -> None:
    """Fail with both values when they differ."""
    if got != wanted:
        raise AssertionError(f"got {got!r}, not {wanted!r}")


def near(vector: list[float]) -> None:
    """Fail unless it is the scripted upstream's vector."""
    if len(vector) != len(VECTOR) or any(abs(a - b) > 1e-6 for a, b in zip(vector, VECTOR, strict=True)):
        raise AssertionError(f"got {vector!r}")


def raises(kind: type[BaseException], call: Callable[[], object]) -> None:
    """Fail unless the call raises this very error."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def run(cases: Mapping[str, Callable[[], object]]) -> None:
    """Run each case; one that fails does not stop the others."""
    for name, case in cases.items():
        try:
            case()
            said = "ok"
        except Exception as error:  # noqa: BLE001 - whatever a client raises is this case's result
            said = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"case": name, "said": said}), flush=True)
