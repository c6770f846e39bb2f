"""A JSON Schema of policy files for editors, made from the Structs that read them. Knows no names of any config."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import msgspec

from gateway.config import CLASSES
from gateway.facts import Facts
from gateway.policy import document
from gateway.policy.conditions import FACTS, FIXED_WORDS, Fact

_PARTS = (
    document.Target,
    document.LimitBlock,
    document.RouteBlock,
    document.ExpectBlock,
    document.TestBlock,
    document.LogBlock,
    document.TermsBlock,
    document.Shape,
)
_COMPARED = r"(<=|>=|<|>)\s*"
_NAME = "^[A-Za-z0-9_-]+$"
_WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def policy_schema() -> dict[str, Any]:
    """The schema as plain values. It refuses what no config can make right; names of upstreams and models it cannot judge."""
    _, found = msgspec.json.schema_components(_PARTS, ref_template="#/$defs/{name}")
    parts = {name: _without_null(part) for name, part in found.items()}
    for struct in _PARTS:
        written = {field.name: field.encode_name for field in msgspec.structs.fields(struct)}
        for field, meaning in _meanings(struct).items():
            name = written[field]
            part = parts[struct.__name__]["properties"][name]
            parts[struct.__name__]["properties"][name] = {"description": meaning, **part}
    for name in ("LimitBlock", "RouteBlock"):
        parts[name]["properties"]["when"] |= _when()
    for name in ("Target", "ExpectBlock"):
        parts[name]["minProperties"] = 1
    parts["TestBlock"]["properties"]["given"] |= _given()
    parts["LimitBlock"]["anyOf"] = [{"required": [effect]} for effect in document.EFFECTS]
    parts["RouteBlock"]["oneOf"] = [{"required": ["order_by"]}, {"required": ["use"], "properties": {"use": {"minItems": 1}}}]
    parts["TermsBlock"]["anyOf"] = [{"required": ["words"]}, {"required": ["file"]}]
    parts["TermsBlock"]["properties"]["name"]["pattern"] = _NAME
    parts["TermsBlock"]["properties"]["file"]["pattern"] = r"^[^/]+\.txt$"
    whole = parts.pop("Shape")
    whole["properties"]["policy"]["pattern"] = _NAME
    kinds = {"type": "array", "items": {"enum": list(document.KIND_NAMES)}}
    whole["properties"]["classes"] |= {"additionalProperties": kinds, "propertyNames": {"enum": list(CLASSES)}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "Policy",
        "description": "A policy file of the gateway; docs/policy.md explains it.",
        "$defs": parts,
    }


def _without_null(part: Any) -> Any:
    """TOML has no null: what is not given is left out."""
    if isinstance(part, list):
        return [_without_null(one) for one in part if one != {"type": "null"}]
    if not isinstance(part, dict):
        return part
    plain = {name: _without_null(one) for name, one in part.items() if name not in {"default", "title"}}
    if len(plain.get("anyOf", ())) == 1:
        (only,) = plain.pop("anyOf")
        return {**plain, **only}
    return plain


def _meanings(struct: type) -> dict[str, str]:
    """By field: the text that stands below it in the code."""
    (made,) = ast.parse(inspect.getsource(struct)).body
    if not isinstance(made, ast.ClassDef):
        raise TypeError(struct)
    found = {}
    for field, after in zip(made.body, made.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = inspect.cleandoc(str(ast.literal_eval(after.value)))
    return found


def _when() -> dict[str, Any]:
    facts = {name: {"description": fact.meaning, **_any_of(_accepted(name, fact))} for name, fact in FACTS.items()}
    return {"type": "object", "additionalProperties": False, "properties": facts}


def _any_of(one: dict[str, Any]) -> dict[str, Any]:
    """One value, or a list of which any may hold."""
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _accepted(name: str, fact: Fact) -> dict[str, Any]:
    """What one value of a condition on this fact may be."""
    match fact.kind:
        case "class":
            # Nothing is below the lowest class or above the highest.
            below, above = "|".join(CLASSES[1:]), "|".join(CLASSES[:-1])
            any_class = "|".join(CLASSES)
            return {"type": "string", "pattern": rf"^(((<=|>=)\s*)?({any_class})|<\s*({below})|>\s*({above}))$"}
        case "flag":
            return {"type": "boolean"}
        case "number":
            return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": rf"^{_COMPARED}[0-9]+$"}]}
        case "word" | "words":
            words = FIXED_WORDS.get(name)
            return {"enum": list(words)} if words else {"type": "string", "pattern": "^[^<>=!]"}


def _given() -> dict[str, Any]:
    """Every fact by its plain value, and what only tests have."""
    _, found = msgspec.json.schema_components((Facts,), ref_template="#/$defs/{name}")
    facts = _without_null(found["Facts"])["properties"]
    names = {"anyOf": [{"type": "string"}, _WORDS]}
    facts |= {"text": {"type": "string"}, "down": names, "off": names}
    return {"type": "object", "additionalProperties": False, "properties": facts}
