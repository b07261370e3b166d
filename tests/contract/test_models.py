"""What every model promises: a typed decision, or a failure with its code, within the time given.

The rules run as they are; the Messages API adapter runs against the loopback stub, over real HTTP.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from enum import IntEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from app.core.codec import Usd
from app.local import messages_api as stub
from app.local.messages_api import Fault, MessagesApi, messages_api
from app.models.anthropic import AnthropicModel
from app.models.base import FailureCode, Model, ModelFailure, ModelRequest, StopReason, parse_answer
from app.models.gate import ModelGate
from app.models.prompt import DATA_RULE, render_context
from app.models.rules import RulesModel

INSTRUCTIONS = "You judge orders. Block what is fraud beyond doubt, review what is unclear."
CONTEXT: dict[str, Any] = {"alert": {"order_id": "o-17", "amount_usd": Decimal("12000.50"), "note": "hi\u202e"}}


class Severity(IntEnum):
    LOW = 1
    HIGH = 2


class Verdict(msgspec.Struct, frozen=True):
    """What to do with an order."""

    action: Literal["approve", "review", "block"]
    severity: Severity
    confidence: Annotated[float, msgspec.Meta(ge=0, le=1)]
    reason: Annotated[str, msgspec.Meta(max_length=80)]
    limit_usd: Usd | None = None


class OtherVerdict(msgspec.Struct, frozen=True):
    shrug: bool


VERDICT = Verdict("block", Severity.HIGH, 0.9, "Twelve thousand dollars.", Decimal("0.10"))

MakeModel = Callable[..., Awaitable[Model]]


def ask(timeout_ms: int = 5_000, instructions: str = INSTRUCTIONS) -> ModelRequest:
    return ModelRequest(
        agent="judge_order",
        instructions=instructions,
        context_text=render_context(CONTEXT),
        context=CONTEXT,
        answer_type=Verdict,
        timeout_ms=timeout_ms,
    )


async def failure_of(model: Model, request: ModelRequest) -> ModelFailure:
    """How asking and reading the answer fail."""
    with pytest.raises(ModelFailure) as caught:
        parse_answer(await model.decide(request), Verdict)
    return caught.value


@pytest.fixture(params=["rules", "anthropic"])
async def make_model(request: pytest.FixtureRequest) -> AsyncIterator[MakeModel]:
    """Makes a model of either kind that gives one answer after a set time."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(answer: msgspec.Struct, latency_ms: int = 0) -> Model:
            if request.param == "rules":
                return RulesModel({"judge_order": lambda alert: answer}, seconds=latency_ms / 1000)
            api = await stack.enter_async_context(messages_api(answer=lambda asked: answer, latency_ms=latency_ms))
            model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
            stack.push_async_callback(model.close)
            return model

        yield make


@pytest.fixture
async def api() -> AsyncIterator[MessagesApi]:
    async with messages_api() as running:
        yield running


@pytest.fixture
async def claude(api: MessagesApi) -> AsyncIterator[AnthropicModel]:
    model = AnthropicModel("claude-sonnet-4-6", api_key="sk-test", address=api.address)
    yield model
    await model.close()


async def test_model_valid_answer_is_the_typed_decision(make_model: MakeModel) -> None:
    """Enums, limits and money survive the way through text."""
    model = await make_model(VERDICT)
    answer = await model.decide(ask())
    assert VERDICT == parse_answer(answer, Verdict)
    assert StopReason.COMPLETE is answer.stop_reason
    assert model.name == answer.model


async def test_model_answer_of_another_shape_is_invalid(make_model: MakeModel) -> None:
    """What does not fit the declared type is no decision, and the raw text is kept."""
    failure = await failure_of(await make_model(OtherVerdict(shrug=True)), ask())
    assert FailureCode.INVALID_ANSWER is failure.code
    assert failure.answer is not None
    assert '{"shrug":true}' == failure.answer.text


async def test_model_answer_beyond_a_limit_is_invalid(make_model: MakeModel) -> None:
    """Limits that a schema cannot express are checked here again."""
    failure = await failure_of(await make_model(msgspec.structs.replace(VERDICT, confidence=1.5)), ask())
    assert FailureCode.INVALID_ANSWER is failure.code
    assert "$.confidence" in str(failure)


async def test_model_slower_than_the_limit_times_out(make_model: MakeModel) -> None:
    """No answer within the attempt's limit is a retriable failure."""
    failure = await failure_of(await make_model(VERDICT, latency_ms=60_000), ask(timeout_ms=50))
    assert FailureCode.TIMEOUT is failure.code
    assert failure.retriable


async def test_model_cancelled_call_is_only_cancelled(make_model: MakeModel) -> None:
    """Cancellation is not turned into a failure, and the model answers the next call."""
    model = await make_model(VERDICT, latency_ms=100)
    call = asyncio.ensure_future(model.decide(ask()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert VERDICT == parse_answer(await model.decide(ask()), Verdict)


async def test_model_many_calls_at_once_are_all_answered(make_model: MakeModel) -> None:
    """Two hundred calls share a model through the gate, and each gets its answer."""
    gate = ModelGate(await make_model(VERDICT, latency_ms=5), concurrency=64, attempt_ms=30_000)
    deadline = asyncio.get_running_loop().time() + 60
    answers = await asyncio.gather(*(gate.decide(ask(), deadline) for _ in range(200)))
    assert {VERDICT} == {parse_answer(answer, Verdict) for answer in answers}
    statistics = gate.statistics()
    assert (200, 200, {}, 0) == (statistics.calls, statistics.answers, statistics.failures, statistics.in_flight)


async def test_anthropic_request_has_the_documented_form(api: MessagesApi, claude: AnthropicModel) -> None:
    """Instructions first and marked for the cache, data alone in the user's turn, the schema along, effort low."""
    await claude.decide(ask())
    sent = api.requests[0]
    assert sent.body is not None
    assert isinstance(sent.body.system, list)
    assert f"{INSTRUCTIONS}\n\n{DATA_RULE}" == sent.body.system[0].text
    assert {"type": "ephemeral"} == sent.body.system[0].cache_control
    assert [("user", render_context(CONTEXT))] == [(turn.role, turn.content) for turn in sent.body.messages]
    assert "o-17" not in sent.body.system_text
    assert "low" == sent.body.output_config.effort
    assert sent.body.schema is not None
    assert ["action", "severity", "confidence", "reason"] == sent.body.schema["required"]
    assert "Bearer sk-test" == sent.headers["authorization"]
    assert "0" == sent.headers["x-stainless-retry-count"]
    assert "identity" == sent.headers["accept-encoding"]


async def test_anthropic_default_stub_answer_is_a_valid_and_steady_decision(claude: AnthropicModel) -> None:
    """The stub answers any schema with something that fits, and the same request with the same."""
    first, second = [parse_answer(await claude.decide(ask()), Verdict) for _ in range(2)]
    assert first == second


@pytest.mark.parametrize(
    ("fault", "code", "retry_after_ms"),
    [
        (stub.rate_limited("2"), FailureCode.RATE_LIMITED, 2_000),
        (stub.rate_limited(""), FailureCode.RATE_LIMITED, None),
        (stub.OVERLOADED, FailureCode.OVERLOADED, None),
        (stub.SERVER_ERROR, FailureCode.UNAVAILABLE, None),
        (stub.CUT_CONNECTION, FailureCode.UNAVAILABLE, None),
        (stub.NOT_THE_API, FailureCode.UNAVAILABLE, None),
    ],
)
async def test_anthropic_passing_trouble_is_retriable(
    api: MessagesApi, claude: AnthropicModel, fault: Fault, code: FailureCode, retry_after_ms: int | None
) -> None:
    """What may pass says so, with the wait that was asked for; nothing is repeated on the way; the next call works."""
    api.play(fault)
    failure = await failure_of(claude, ask())
    assert (code, True, retry_after_ms) == (failure.code, failure.retriable, failure.retry_after_ms)
    assert 1 == len(api.requests)
    parse_answer(await claude.decide(ask()), Verdict)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (stub.UNAUTHORIZED, FailureCode.UNAUTHORIZED),
        (stub.FORBIDDEN, FailureCode.UNAUTHORIZED),
        (stub.SPEND_LIMIT, FailureCode.SPEND_LIMIT),
        (stub.PROMPT_TOO_LONG, FailureCode.CONTEXT_TOO_LONG),
    ],
)
async def test_anthropic_lasting_trouble_is_not_retriable(
    api: MessagesApi, claude: AnthropicModel, fault: Fault, code: FailureCode
) -> None:
    """What would be refused again is asked once."""
    api.play(fault)
    failure = await failure_of(claude, ask())
    assert (code, False) == (failure.code, failure.retriable)
    assert 1 == len(api.requests)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (stub.NOT_JSON, FailureCode.INVALID_ANSWER),
        (stub.WRONG_SCHEMA, FailureCode.INVALID_ANSWER),
        (stub.TRUNCATED, FailureCode.TRUNCATED),
        (stub.REFUSAL, FailureCode.REFUSED),
        (stub.CONTEXT_EXCEEDED, FailureCode.CONTEXT_TOO_LONG),
        (stub.OddAnswer('{"action":"approve"}', "refusal"), FailureCode.REFUSED),
        (stub.OddAnswer('{"action":"approve"}', "something_new"), FailureCode.INVALID_ANSWER),
    ],
)
async def test_anthropic_malformed_answer_is_a_failure_with_its_usage(
    api: MessagesApi, claude: AnthropicModel, fault: Fault, code: FailureCode
) -> None:
    """No half, odd or refused answer becomes a decision; its text is kept and its tokens are counted."""
    api.play(fault)
    failure = await failure_of(claude, ask())
    assert (code, False) == (failure.code, failure.retriable)
    assert failure.answer is not None
    assert failure.answer.input_tokens > 0


async def test_anthropic_usage_counts_the_prompt_cache_apart(claude: AnthropicModel) -> None:
    """Long instructions are written to the cache once and read from it afterwards."""
    long_request = ask(instructions=INSTRUCTIONS * 100)
    first, second = [await claude.decide(long_request) for _ in range(2)]
    assert first.cache_write_tokens == second.cache_read_tokens > 1_024
    assert (0, 0) == (first.cache_read_tokens, second.cache_write_tokens)
    assert first.input_tokens == second.input_tokens > 0
    assert second.output_tokens > 0


async def test_anthropic_cancelled_call_gives_its_connection_back(api: MessagesApi, claude: AnthropicModel) -> None:
    """A cancelled call is hung up at once, so the server stops too, and nothing keeps its connection."""
    api.play(*[stub.HANG] * 20)
    calls = [asyncio.ensure_future(claude.decide(ask())) for _ in range(20)]
    await api.until_open(20)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await api.until_open(0)
    assert 20 == api.given_up
    parse_answer(await claude.decide(ask()), Verdict)


async def test_anthropic_timed_out_call_gives_its_connection_back(api: MessagesApi, claude: AnthropicModel) -> None:
    """A server that never answers costs one attempt's limit, and its connection is hung up."""
    api.play(stub.HANG)
    failure = await failure_of(claude, ask(timeout_ms=50))
    assert FailureCode.TIMEOUT is failure.code
    await api.until_open(0)
    assert 1 == api.given_up


async def test_anthropic_trickling_response_times_out(api: MessagesApi, claude: AnthropicModel) -> None:
    """The limit is for the whole call: a response that never pauses long, and never ends, is cut off too."""
    api.play(stub.TRICKLE)
    failure = await failure_of(claude, ask(timeout_ms=100))
    assert FailureCode.TIMEOUT is failure.code
    await api.until_open(0)
    assert 1 == api.given_up


async def test_anthropic_many_calls_run_at_the_same_time() -> None:
    """Two hundred calls are on the wire at once; none waits for another's connection."""
    async with messages_api(faults=[stub.HANG] * 200) as api:
        model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
        calls = [asyncio.ensure_future(model.decide(ask(timeout_ms=60_000))) for _ in range(200)]
        await api.until_open(200)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await model.close()


async def test_anthropic_nobody_listening_is_unavailable() -> None:
    """A refused connection is a retriable failure that names its cause."""
    async with messages_api() as api:
        address = api.address
    model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=address)
    failure = await failure_of(model, ask())
    assert FailureCode.UNAVAILABLE is failure.code
    assert "onnect" in str(failure)
    await model.close()


async def test_anthropic_unknown_model_is_a_bad_request(api: MessagesApi) -> None:
    """A wrong model's name is told and not retried."""
    model = AnthropicModel("gpt-x", api_key="any", address=api.address)
    failure = await failure_of(model, ask())
    assert (FailureCode.BAD_REQUEST, False) == (failure.code, failure.retriable)
    assert "gpt-x" in str(failure)
    await model.close()
