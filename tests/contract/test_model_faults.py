"""Every way in which the Messages API fails, over real HTTP through the gate: its code, its time, and how often it is
called when it always fails."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import msgspec
import pytest

from app.local import messages_api as stub
from app.local.messages_api import FAULTS, MessagesApi, at_share, messages_api
from app.models import anthropic as adapter
from app.models.anthropic import AnthropicModel
from app.models.base import FailureCode, ModelFailure, ModelRequest, RateLimit, parse_answer
from app.models.buckets import Buckets
from app.models.gate import ModelGate

ATTEMPT_MS, SHORT_ATTEMPT_MS = 3_000, 300
"""Enough for an answer on a busy machine; and for faults that never answer."""

CODES = {
    "rate-limited": FailureCode.RATE_LIMITED,
    "rate-limited-2s": FailureCode.RATE_LIMITED,
    "spend-limit": FailureCode.SPEND_LIMIT,
    "overloaded": FailureCode.OVERLOADED,
    "server-error": FailureCode.UNAVAILABLE,
    "unauthorized": FailureCode.UNAUTHORIZED,
    "forbidden": FailureCode.UNAUTHORIZED,
    "refusal": FailureCode.REFUSED,
    "truncated": FailureCode.TRUNCATED,
    "not-json": FailureCode.INVALID_ANSWER,
    "wrong-schema": FailureCode.INVALID_ANSWER,
    "not-the-api": FailureCode.UNAVAILABLE,
    "cut": FailureCode.UNAVAILABLE,
    "reset": FailureCode.UNAVAILABLE,
    "huge": FailureCode.UNAVAILABLE,
    "trickle": FailureCode.TIMEOUT,
    "hang": FailureCode.TIMEOUT,
}
NEVER_ENDING = {"hang", "trickle"}
ONCE = {"spend-limit", "unauthorized", "forbidden"}


class Verdict(msgspec.Struct, frozen=True):
    action: Literal["approve", "block"]


REQUEST = ModelRequest(
    agent="judge",
    instructions="Judge this.",
    context_text="{}",
    context={},
    answer_type=Verdict,
    timeout_ms=1,
)


@asynccontextmanager
async def guarded(api: MessagesApi, fault: str = "") -> AsyncIterator[ModelGate]:
    model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
    attempt_ms = SHORT_ATTEMPT_MS if fault in NEVER_ENDING else ATTEMPT_MS
    gate = ModelGate(model, concurrency=16, attempt_ms=attempt_ms, buckets=Buckets(0, 0, 0))
    try:
        yield gate
    finally:
        await gate.close()


async def outcome(gate: ModelGate, seconds: float = 10.0) -> FailureCode | None:
    """One question to its end; None for a decision."""
    try:
        parse_answer(await gate.decide(REQUEST, asyncio.get_running_loop().time() + seconds), Verdict)
    except ModelFailure as failure:
        return failure.code
    return None


def test_faults_of_the_stub_are_all_expected_here() -> None:
    """A new fault needs its code."""
    assert FAULTS.keys() == CODES.keys()


@pytest.mark.parametrize("name", FAULTS)
async def test_gate_fault_ends_with_its_code_in_bounded_time(name: str) -> None:
    """One call, one reason, within an attempt's limit; nothing stays behind on either side."""
    loop = asyncio.get_running_loop()
    async with messages_api(faults=[FAULTS[name]]) as api, guarded(api, name) as gate:
        began = loop.time()
        assert CODES[name] is await outcome(gate)
        assert loop.time() - began < ATTEMPT_MS / 1000
        assert 1 == len(api.requests)
        await api.until_open(0)
        statistics = gate.statistics()
        assert (0, 0) == (statistics.in_flight, statistics.waiting)


@pytest.mark.parametrize("name", FAULTS)
async def test_gate_total_failure_costs_few_calls_and_ends_every_alert_in_time(name: str) -> None:
    """Forty alerts, each asked again where that may help and there is time: at most 1.3 calls an alert, one in all where
    the account is refused, and every alert ends by its deadline."""
    loop = asyncio.get_running_loop()
    seconds = 0.9

    async def alert() -> float:
        deadline = loop.time() + seconds
        for _ in range(3):
            try:
                parse_answer(await gate.decide(REQUEST, deadline), Verdict)
            except ModelFailure as failure:
                wait_s = max(0.02, (failure.retry_after_ms or 0) / 1000)
                if not failure.retriable or loop.time() + wait_s > deadline:
                    break
                await asyncio.sleep(wait_s)
        return loop.time() - deadline

    async with messages_api(faults=at_share(FAULTS[name], 1.0, 7)) as api, guarded(api, name) as gate:
        late = await asyncio.gather(*(alert() for _ in range(40)))
        assert max(late) < 1.0
        assert len(api.requests) <= (1 if name in ONCE else 40 * 1.3)


@pytest.mark.parametrize("name", ["overloaded", "server-error", "reset", "cut", "not-json", "huge"])
async def test_gate_third_of_calls_failing_keeps_the_breaker_closed(name: str) -> None:
    """What fails now and then is no outage: the others are answered."""
    async with messages_api(faults=at_share(FAULTS[name], 0.3, 11)) as api, guarded(api) as gate:
        outcomes = Counter([await outcome(gate) for _ in range(60)])
        assert {None, CODES[name]} == outcomes.keys()
        assert 30 < outcomes[None] < 55
        assert ("closed", 0) == (gate.statistics().breaker, gate.statistics().breaker_openings)


async def test_gate_retry_after_holds_everybody_back_then_begins_slowly() -> None:
    """One 429 with `retry-after` is one call for all who wait; afterwards the first call goes alone."""
    loop = asyncio.get_running_loop()
    async with messages_api(latency_ms=20) as api, guarded(api) as gate:
        for _ in range(8):
            await outcome(gate)
        api.play(stub.rate_limited("1"))
        assert FailureCode.RATE_LIMITED is await outcome(gate)
        paused_at, before = loop.time(), len(api.requests)
        assert FailureCode.RATE_LIMITED is await outcome(gate, seconds=0.9)  # its deadline lies within the pause
        assert loop.time() - paused_at < 0.7
        waiting = [asyncio.ensure_future(outcome(gate)) for _ in range(10)]
        async with asyncio.timeout(1):
            while gate.statistics().waiting < len(waiting):  # noqa: ASYNC110 - plain state of the gate
                await asyncio.sleep(0)
        assert before == len(api.requests)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert loop.time() - paused_at >= 1.0
        assert len(api.requests) <= before + 3
        assert [None] * 10 == await asyncio.gather(*waiting)


async def test_gate_refused_account_is_told_once_and_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """One call, one line that says what is wrong and how it ends, and no second call for whoever comes after."""
    with caplog.at_level(logging.INFO, logger="app.models.gate"):
        async with messages_api(faults=at_share(stub.SPEND_LIMIT, 1.0, 1)) as api, guarded(api) as gate:
            outcomes = Counter(await asyncio.gather(*(outcome(gate) for _ in range(30))))
            assert {FailureCode.SPEND_LIMIT: 1, FailureCode.BREAKER_OPEN: 29} == outcomes
            assert 1 == len(api.requests)
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "REFUSES ALL CALLS: spend_limit" in line.getMessage()
    assert "monthly threshold. Alerts fall back" in line.getMessage()
    assert "one call every 300 s tries it" in line.getMessage()


async def test_gate_learns_the_limits_from_the_headers() -> None:
    """After one answer the buckets are as large as the API says, and hold what it says is left, or what has come since."""
    async with messages_api() as api, guarded(api) as gate:
        assert {None} == {bucket.a_minute for bucket in gate.statistics().buckets.values()}
        await outcome(gate)
        buckets = gate.statistics().buckets
        told = {"requests": 1_000_000, "input_tokens": 2_000_000_000, "output_tokens": 400_000_000}
        assert told == {name: bucket.a_minute for name, bucket in buckets.items()}
        left = buckets["requests"].left
        assert left is not None
        assert told["requests"] - 1 <= left <= told["requests"]


async def test_anthropic_failure_tells_the_rates_too() -> None:
    """A 429 carries the headers that say when it ends."""
    async with messages_api(faults=[stub.rate_limited("")]) as api:
        model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
        with pytest.raises(ModelFailure) as caught:
            await model.decide(msgspec.structs.replace(REQUEST, timeout_ms=5_000))
        await model.close()
    assert caught.value.rates is not None
    assert isinstance(caught.value.rates.requests, RateLimit)
    assert 999_999 == caught.value.rates.requests.remaining
    assert 0 <= caught.value.rates.requests.full_in_ms <= 60_000


@pytest.mark.parametrize("declares_length", [True, False])
async def test_anthropic_huge_response_is_not_read_to_its_end(declares_length: bool) -> None:
    """With or without a length before it: no more than the limit is taken in, also of an error's body."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        length = b"content-length: 50000000\r\n" if declares_length else b"transfer-encoding: chunked\r\n"
        writer.write(b"HTTP/1.1 500 no\r\n" + length + b"\r\n")
        part = b" " * 65_536
        with suppress(ConnectionError):
            while sent < 50_000_000:
                writer.write(part if declares_length else b"10000\r\n" + part + b"\r\n")
                await writer.drain()
                sent += len(part)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=f"http://127.0.0.1:{port}")
        with pytest.raises(ModelFailure, match="bytes") as caught:
            await model.decide(msgspec.structs.replace(REQUEST, timeout_ms=5_000))
        await model.close()
    assert FailureCode.UNAVAILABLE is caught.value.code
    assert sent < adapter.MAX_RESPONSE_BYTES + 16_000_000  # what the sockets between hold


async def test_ablation_response_without_a_limit_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit ten million characters become an answer."""
    monkeypatch.setattr(adapter, "MAX_RESPONSE_BYTES", 1_000_000_000)
    async with messages_api(faults=[stub.HUGE]) as api:
        model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
        answer = await model.decide(msgspec.structs.replace(REQUEST, timeout_ms=5_000))
        await model.close()
    assert 10_000_000 == len(answer.text)
