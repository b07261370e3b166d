"""What the Messages API takes in a request, as far as we use it, and an answer that fits the schema asked for.

Source: the API's reference and its page on structured outputs, and the parameters of the `anthropic` library.
"""

import random
import re
from typing import Annotated, Any, Literal

import msgspec

_Text = Annotated[str, msgspec.Meta(min_length=1)]

_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "items", "minItems", "enum", "const", "anyOf", "allOf"}
    | {"$ref", "$defs", "title", "description", "format"}
)
_FORMATS = {
    "date-time": "2024-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2024-01-01",
    "duration": "PT1S",
    "email": "shopper@example.com",
    "hostname": "example.com",
    "uri": "https://example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class TextBlock(msgspec.Struct, tag="text", tag_field="type", forbid_unknown_fields=True):
    text: _Text
    cache_control: dict[str, str] | None = None


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: _Text | Annotated[list[TextBlock], msgspec.Meta(min_length=1)]


class JsonFormat(msgspec.Struct, tag="json_schema", tag_field="type", forbid_unknown_fields=True):
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class MessagesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/messages`. Tools and streams are not ours, so they are not known here."""

    model: _Text
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    messages: Annotated[list[Turn], msgspec.Meta(min_length=1)]
    system: str | list[TextBlock] = ""
    output_config: OutputConfig = msgspec.field(default_factory=OutputConfig)
    stop_sequences: list[str] = []
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "standard_only"] = "auto"
    thinking: dict[str, Any] | None = None

    @property
    def schema(self) -> dict[str, Any] | None:
        return self.output_config.format.schema if self.output_config.format else None

    @property
    def system_text(self) -> str:
        return _joined(self.system)

    @property
    def turns_text(self) -> str:
        return "\n".join(_joined(turn.content) for turn in self.messages)


def parse_request(body: bytes) -> MessagesRequest:
    """Raises: ValueError saying what the API would not accept."""
    request = msgspec.json.decode(body, type=MessagesRequest)
    if request.messages[0].role != "user":
        raise ValueError("messages: first message must use the user role")
    if request.schema is not None:
        _check_schema(request.schema, "output_config.format.schema")
    return request


def fitting_answer(schema: dict[str, Any], seed: str) -> Any:
    """A value of the schema: the same for the same seed. Limits that stand in descriptions are kept, as a model would."""
    return _fitting(schema, schema.get("$defs", {}), random.Random(seed))


def _joined(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _check_schema(node: Any, place: str) -> None:
    if not isinstance(node, dict):
        raise ValueError(f"{place}: must be an object")
    unknown = sorted(node.keys() - _KEYWORDS)
    if unknown:
        raise ValueError(f"{place}: {', '.join(unknown)} not supported")
    if not node.keys() & {"type", "enum", "const", "anyOf", "allOf", "$ref"}:
        raise ValueError(f"{place}: a type is required")
    if node.get("type") == "object" and node.get("additionalProperties") is not False:
        raise ValueError(f"{place}: For 'object' type, 'additionalProperties' must be explicitly set to false")
    if node.get("format", "date") not in _FORMATS:
        raise ValueError(f"{place}: format {node['format']!r} not supported")
    for keyword in ("properties", "$defs"):
        for name, child in node.get(keyword, {}).items():
            _check_schema(child, f"{place}.{name}")
    for child in [*node.get("anyOf", ()), *node.get("allOf", ()), *([node["items"]] if "items" in node else [])]:
        _check_schema(child, place)


def _fitting(node: dict[str, Any], definitions: dict[str, Any], draw: random.Random) -> Any:
    if "$ref" in node:
        return _fitting(definitions[node["$ref"].removeprefix("#/$defs/")], definitions, draw)
    if "const" in node:
        return node["const"]
    if "enum" in node:
        return draw.choice(node["enum"])
    if "anyOf" in node or "allOf" in node:
        return _fitting((node.get("anyOf") or node["allOf"])[0], definitions, draw)
    if node["type"] == "object":
        fields = node.get("properties", {})
        return {name: _fitting(fields[name], definitions, draw) for name in node.get("required", ())}
    if node["type"] == "array":
        return [_fitting(node["items"], definitions, draw) for _ in range(node.get("minItems", 0))]
    return _fitting_leaf(node, draw)


def _fitting_leaf(node: dict[str, Any], draw: random.Random) -> Any:
    hints = dict(re.findall(r"(minimum|maximum|minLength|maxLength|format): ([\w.+-]+)", node.get("description", "")))
    if node["type"] == "boolean":
        return draw.random() < 0.5
    if node["type"] == "integer":
        least = int(hints.get("minimum", 0))
        return draw.randint(least, int(hints.get("maximum", least + 100)))
    if node["type"] == "number":
        low = float(hints.get("minimum", 0))
        return round(draw.uniform(low, float(hints.get("maximum", low + 1))), 2)
    if node["type"] == "null":
        return None
    if "format" in node:
        return _FORMATS[node["format"]]
    if hints.get("format") == "decimal":
        return "1.00"
    text = f"The stub's answer {draw.getrandbits(32):08x}."
    return text[: int(hints.get("maxLength", len(text)))].ljust(int(hints.get("minLength", 0)), ".")
