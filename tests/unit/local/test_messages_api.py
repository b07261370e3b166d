"""The stub of the Messages API refuses what the API refuses, and answers what the schema asks for."""

import asyncio
import sys
from itertools import islice
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from app.local.messages_api import HANG, OVERLOADED, RESET, at_share, drawn_latency_ms, messages_api
from app.local.messages_schema import fitting_answer, parse_request

HEADERS = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "action": {"enum": ["approve", "block"]},
        "part": {"$ref": "#/$defs/Part"},
        "kind": {"const": "order"},
        "sure": {"type": "boolean"},
        "count": {"type": "integer", "description": "{minimum: 3, maximum: 5}"},
        "score": {"type": "number"},
        "amount": {"type": "string", "description": "{format: decimal}"},
        "at": {"type": "string", "format": "date-time"},
        "notes": {"type": "array", "items": {"type": "string", "description": "{maxLength: 4}"}, "minItems": 1},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        "extra": {"type": "string"},
    },
    "required": ["action", "part", "kind", "sure", "count", "score", "amount", "at", "notes", "maybe"],
    "additionalProperties": False,
    "$defs": {
        "Part": {
            "type": "object",
            "properties": {"x": {"type": "integer"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


def body(**changes: Any) -> dict[str, Any]:
    fields = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": [{"role": "user", "content": "{}"}]}
    return {name: value for name, value in {**fields, **changes}.items() if value is not ...}


def with_schema(schema: Any) -> dict[str, Any]:
    return body(output_config={"format": {"type": "json_schema", "schema": schema}})


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ...},
        {"model": ""},
        {"max_tokens": ...},
        {"max_tokens": 0},
        {"max_tokens": "100"},
        {"messages": ...},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "poem", "text": "x"}]}]},
        {"temperature_": 0.5},
        {"output_config": {"effort": "none"}},
        {"output_config": {"format": {"type": "json"}}},
    ],
)
def test_parse_request_wrong_body_is_refused(changes: dict[str, Any]) -> None:
    """Missing, mistyped and unknown fields are errors, as they are for the API."""
    with pytest.raises(ValueError):
        parse_request(msgspec.json.encode(body(**changes)))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "properties": {}}, "additionalProperties"),
        ({"type": "number", "minimum": 0}, "minimum not supported"),
        ({"type": "string", "format": "decimal"}, "format"),
        ({"description": "anything"}, "type is required"),
        ({**SCHEMA, "properties": {"x": {"type": "string", "maxLength": 3}}}, "maxLength"),
        ({"type": "array", "items": {"type": "object", "additionalProperties": True}}, "additionalProperties"),
        ({"anyOf": [{"type": "string", "pattern": "a"}]}, "pattern"),
        ({**SCHEMA, "$defs": {"Part": 1}}, "must be an object"),
    ],
)
def test_parse_request_schema_beyond_structured_output_is_refused(schema: dict[str, Any], reason: str) -> None:
    """A schema that the API would not take is refused with its reason, at any depth."""
    with pytest.raises(ValueError, match=reason):
        parse_request(msgspec.json.encode(with_schema(schema)))


def test_fitting_answer_any_seed_keeps_the_schema_and_its_hints() -> None:
    """Every required field, within the limits that a description mentions; the same seed gives the same."""
    for seed in "abcdefgh":
        answer = fitting_answer(SCHEMA, seed)
        assert set(SCHEMA["required"]) == answer.keys()
        assert answer["action"] in {"approve", "block"}
        assert 3 <= answer["count"] <= 5
        assert 4 == len(answer["notes"][0])
        assert ("order", "1.00", None) == (answer["kind"], answer["amount"], answer["maybe"])
        assert fitting_answer(SCHEMA, seed) == answer


@pytest.mark.parametrize(
    ("headers", "path", "status", "kind"),
    [
        ({"anthropic-version": "2023-06-01"}, "/v1/messages", 401, "authentication_error"),
        ({"x-api-key": "any"}, "/v1/messages", 400, "invalid_request_error"),
        (HEADERS, "/v1/complete", 404, "not_found_error"),
        (HEADERS, "/v1/messages", 200, "message"),
    ],
)
async def test_messages_api_headers_and_place_are_checked(
    headers: dict[str, str], path: str, status: int, kind: str
) -> None:
    """Key, version and address are judged before the body, and errors have the API's form."""
    async with messages_api() as api, httpx2.AsyncClient() as client:
        response = await client.post(f"{api.address}{path}", headers=headers, json=body())
    content = response.json()
    assert status == response.status_code
    assert kind == (content["type"] if status == 200 else content["error"]["type"])
    assert response.headers["request-id"].startswith("req_")


async def test_messages_api_answer_of_the_library_is_parsed_by_the_library() -> None:
    """The response is one that the real client's types accept in full."""
    async with messages_api() as api:
        client = anthropic.AsyncAnthropic(api_key="any", base_url=api.address, _strict_response_validation=True)
        message = await client.messages.create(
            model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": "hello"}]
        )
        await client.close()
    assert ("end_turn", "text") == (message.stop_reason, message.content[0].type)


async def test_messages_api_is_gone_after_its_context() -> None:
    """Leaving drops a call that hangs, and the port is free again."""
    async with httpx2.AsyncClient() as client:
        async with messages_api(faults=[HANG]) as api:
            url = f"{api.address}/v1/messages"
            hanging = asyncio.ensure_future(client.post(url, headers=HEADERS, json=body()))
            await api.until_open(1)
        assert 500 == (await hanging).status_code
        with pytest.raises(httpx2.ConnectError):
            await client.post(url, headers=HEADERS, json=body())


async def test_messages_api_binds_loopback_only() -> None:
    """The stub is never reachable from outside."""
    async with messages_api() as api:
        assert api.address.startswith("http://127.0.0.1:")


async def test_messages_api_run_alone_answers_and_ends_on_sigterm() -> None:
    """As a command it prints its address, answers, and ends cleanly."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.local.messages_api", "--latency-ms", "1", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        async with httpx2.AsyncClient() as client:
            response = await client.post(f"{address}/v1/messages", headers=HEADERS, json=body())
    finally:
        process.terminate()
    assert 200 == response.status_code
    assert 0 == await process.wait()


async def test_messages_api_run_alone_plays_a_fault() -> None:
    """By name, at a share, after a drawn latency."""
    options = ["--latency-ms", "0.5:0,0.5:1", "--fault", "overloaded", "--share", "1", "--seed", "3"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.local.messages_api", *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        async with httpx2.AsyncClient() as client:
            response = await client.post(f"{address}/v1/messages", headers=HEADERS, json=body())
    finally:
        process.terminate()
    assert 529 == response.status_code
    assert 0 == await process.wait()


async def test_messages_api_reset_is_a_reset_of_the_connection() -> None:
    """Not a close, which a client would take for the end of an answer."""
    async with messages_api(faults=[RESET]) as api, httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.ReadError):
            await client.post(f"{api.address}/v1/messages", headers=HEADERS, json=body())


def test_at_share_draws_the_same_for_the_same_seed() -> None:
    """Three of ten, in an order that chance decides and a seed repeats."""
    first, second = [list(islice(at_share(OVERLOADED, 0.3, 7), 1_000)) for _ in range(2)]
    assert first == second
    assert 250 < first.count(OVERLOADED) < 350


def test_drawn_latency_keeps_its_shares() -> None:
    """Nine of ten are short."""
    draw = drawn_latency_ms("0.9:200,0.1:1200", 7)
    drawn = [draw() for _ in range(1_000)]
    assert {200.0, 1_200.0} == set(drawn)
    assert 870 < drawn.count(200.0) < 930


@pytest.mark.parametrize("text", ["", "fast", "1:2:3", "0.5:1,", "0.5"])
def test_drawn_latency_of_another_form_is_a_value_error(text: str) -> None:
    """The command turns it into one line."""
    with pytest.raises(ValueError, match=r".+"):
        drawn_latency_ms(text, 1)
