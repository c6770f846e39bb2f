"""Whether a value is what OpenAI describes: by the SDK's own models always, by OpenAI's API description where it is at hand.

The description is looked for under OPENAI_DESCRIPTION (openapi.json, or openapi.json.gz), then in ../shared/data/openai.
"""

import gzip
import json
import os
from functools import cache
from pathlib import Path

import jsonschema
from openai.types.chat import completion_create_params
from openai.types.responses import ResponseStreamEvent
from openai.types.responses.response import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

BESIDE = Path(__file__).parents[3] / "shared/data/openai/openapi.json.gz"
DESCRIPTION = Path(os.environ.get("OPENAI_DESCRIPTION", BESIDE))

MODELS = {
    "ResponseStreamEvent": ResponseStreamEvent,
    "Response": Response,
    "CompactResource": dict,  # the SDK's type knows the model's own items only, and OpenAI's example holds a user's
    "ResponseItemList": ResponseItemList,
    "CreateChatCompletionRequest": completion_create_params.CompletionCreateParams,
}


@cache
def model(name):
    return TypeAdapter(MODELS[name])


@cache
def described():
    """A registry with the whole description, or None."""
    if not DESCRIPTION.exists():
        return None
    content = DESCRIPTION.read_bytes()
    document = json.loads(gzip.decompress(content) if DESCRIPTION.suffix == ".gz" else content)
    return Registry().with_resource("openai:", Resource(contents=document, specification=DRAFT202012))


@cache
def validator(name):
    schema = {"$ref": f"openai:#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator(schema, registry=described())


def without_null_usage(value):
    """OpenAI's own examples of open and failed responses have `usage: null`, which its description does not allow."""
    if isinstance(value, dict):
        return {name: without_null_usage(one) for name, one in value.items() if name != "usage" or one is not None}
    return value


def check(value, name):
    """Raise when `value` is not a `name`; events are checked as the type they say they are."""
    model(name).validate_python(value)
    if described() is None:
        return
    if name == "ResponseStreamEvent":
        name = next(event for event, type_ in event_types().items() if type_ == value["type"])
    validator(name).validate(without_null_usage(value))


@cache
def event_types():
    """`ResponseTextDeltaEvent` → `response.output_text.delta`."""
    schemas = described()["openai:"].contents["components"]["schemas"]
    names = [one["$ref"].rpartition("/")[2] for one in schemas["ResponseStreamEvent"]["anyOf"]]
    return {name: schemas[name]["properties"]["type"]["enum"][0] for name in names}


def properties(name):
    """Names of a described object's properties; none without the description."""
    if described() is None:
        return set()
    schemas = described()["openai:"].contents["components"]["schemas"]

    def walk(schema):
        if "$ref" in schema:
            return walk(schemas[schema["$ref"].rpartition("/")[2]])
        return set(schema.get("properties", ())).union(*map(walk, schema.get("allOf", ())))

    return walk(schemas[name])


def sdk_parameters():
    """Names of the SDK's parameters of a Responses request."""
    return {*ResponseCreateParamsBase.__annotations__, "stream"}


def page(path):
    return (Path(__file__).parents[2] / path).read_text()
