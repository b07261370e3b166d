"""A loopback stub of the Messages API: real HTTP, set latency, scripted faults, no key and no cost.

    async with messages_api(latency_ms=40, faults=[OVERLOADED, None, TRUNCATED]) as api:
        model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)

It answers what the schema asks for, the same answer for the same request, or what a given function says; and it refuses
with 400 what the API would refuse. `python -m app.local.messages_api` runs it alone, for benchmarks and fault tests.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping
from datetime import UTC, datetime
from email.utils import formatdate
from random import Random
from typing import Any

import msgspec
import uvicorn

from app.core.clock import Clock, SystemClock
from app.core.codec import encode
from app.local.messages_schema import MessagesRequest, fitting_answer, parse_request

Headers = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 32 * 1024 * 1024
"""What the API takes. Source: its page on errors, request_too_large."""

_KEPT_REQUESTS = 10_000
_KEPT_PROMPTS = 100
_LEAST_CACHED_TOKENS = 1_024
_CHARACTERS_A_TOKEN = 4
_LIMITS_A_MINUTE = {"requests": 1_000_000, "input-tokens": 2_000_000_000, "output-tokens": 400_000_000}
"""What the headers tell: more than anybody needs here, since callers keep to it."""

_JSON = b"application/json"


class ErrorReply(msgspec.Struct, frozen=True):
    """An error as the API words it. `code` is its `error.details.error_code`, where it has one."""

    status: int
    type: str
    message: str
    retry_after: str = ""
    code: str = ""


class OddAnswer(msgspec.Struct, frozen=True):
    """A response with status 200 whose text is not what was asked for. None: the fitting text, cut in half."""

    text: str | None
    stop_reason: str = "end_turn"


class ForeignReply(msgspec.Struct, frozen=True):
    """A response with status 200 that no Messages API wrote."""

    body: bytes


class Hang(msgspec.Struct, frozen=True):
    """No response at all, until the client goes away or the stub ends."""


class CutConnection(msgspec.Struct, frozen=True):
    """The connection ends in the middle of the response."""


class Reset(msgspec.Struct, frozen=True):
    """The connection is reset (RST) in the place of a response."""


class HugeAnswer(msgspec.Struct, frozen=True):
    """A response with status 200 whose text is so long."""

    characters: int


class Trickle(msgspec.Struct, frozen=True):
    """A response that comes byte by byte, a hundred a second, and does not end before the client goes away."""


Fault = ErrorReply | OddAnswer | ForeignReply | Hang | CutConnection | Reset | HugeAnswer | Trickle


def rate_limited(retry_after: str = "2") -> ErrorReply:
    return ErrorReply(429, "rate_limit_error", "Number of requests has exceeded your rate limit.", retry_after)


OVERLOADED = ErrorReply(529, "overloaded_error", "Overloaded")
SERVER_ERROR = ErrorReply(500, "api_error", "Internal server error")
UNAUTHORIZED = ErrorReply(401, "authentication_error", "invalid x-api-key")
FORBIDDEN = ErrorReply(403, "permission_error", "Your API key does not have permission to use this model.")
SPEND_LIMIT = ErrorReply(
    429, "rate_limit_error", "You have reached your monthly threshold.", "60", "enforced_spend_limit_reached"
)
PROMPT_TOO_LONG = ErrorReply(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
NOT_JSON = OddAnswer("I would block this order.")
WRONG_SCHEMA = OddAnswer('{"unexpected":true}')
TRUNCATED = OddAnswer(None, "max_tokens")
REFUSAL = OddAnswer("", "refusal")
CONTEXT_EXCEEDED = OddAnswer(None, "model_context_window_exceeded")
NOT_THE_API = ForeignReply(b"<html>A proxy's page</html>")
HANG = Hang()
CUT_CONNECTION = CutConnection()
RESET = Reset()
HUGE = HugeAnswer(10_000_000)
TRICKLE = Trickle()

FAULTS: dict[str, Fault] = {
    "rate-limited": rate_limited(""),
    "rate-limited-2s": rate_limited("2"),
    "spend-limit": SPEND_LIMIT,
    "overloaded": OVERLOADED,
    "server-error": SERVER_ERROR,
    "unauthorized": UNAUTHORIZED,
    "forbidden": FORBIDDEN,
    "refusal": REFUSAL,
    "truncated": TRUNCATED,
    "not-json": NOT_JSON,
    "wrong-schema": WRONG_SCHEMA,
    "not-the-api": NOT_THE_API,
    "cut": CUT_CONNECTION,
    "reset": RESET,
    "huge": HUGE,
    "trickle": TRICKLE,
    "hang": HANG,
}
"""What the command can play, by name."""


def at_share(fault: Fault, share: float, seed: int) -> Iterator[Fault | None]:
    """The fault for this part of all requests, 0 to 1, without end; the same draws for the same seed."""
    draw = Random(seed)
    while True:
        yield fault if draw.random() < share else None


def drawn_latency_ms(text: str, seed: int) -> Callable[[], float]:
    """Latencies from shares: `0.9:200,0.1:1200` is 200 ms for nine of ten. Raises: ValueError for anything else."""
    shares, values = zip(*(map(float, part.split(":")) for part in text.split(",")), strict=True)
    draw = Random(seed)
    return lambda: draw.choices(values, shares)[0]


class RecordedRequest(msgspec.Struct, frozen=True):
    """One request as it came. Header names are lower case; `body` is None where it was not accepted."""

    headers: dict[str, str]
    body: MessagesRequest | None


class MessagesApi:
    """The stub as tests see it. `requests` are the newest 10,000, oldest first; `open_requests` are being answered."""

    def __init__(
        self,
        answer: Callable[[MessagesRequest], Any] | None,
        latency_ms: float | Callable[[], float],
        faults: Iterable[Fault | None],
        clock: Clock,
    ) -> None:
        self.address = ""
        self.requests: deque[RecordedRequest] = deque(maxlen=_KEPT_REQUESTS)
        self.open_requests = 0
        self.most_open_requests = 0
        self.given_up = 0
        """Requests whose client went away before the response."""
        self.closing = asyncio.Event()
        self._changed = asyncio.Event()
        self._answer = answer
        self._latency_ms = latency_ms
        self._faults: Iterator[Fault | None] = iter(faults)
        self._clock = clock
        self._cached: deque[bytes] = deque(maxlen=_KEPT_PROMPTS)
        self._minute = 0
        self._used: Counter[str] = Counter()
        self._count = 0

    def play(self, *faults: Fault | None) -> None:
        """What happens to the next requests, in their order; None is a good answer, and so is the end."""
        self._faults = iter(faults)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        self._count += 1
        self._set_open(self.open_requests + 1)
        try:
            await self._serve(scope, receive, send)
        finally:
            self._set_open(self.open_requests - 1)

    async def until_open(self, count: int) -> None:
        """Waits until exactly so many requests are being answered."""
        while self.open_requests != count:
            await self._changed.wait()

    def _set_open(self, count: int) -> None:
        self.open_requests = count
        self.most_open_requests = max(self.most_open_requests, count)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = await _read_body(receive)
        request, problem = _examine(scope, headers, body)
        self.requests.append(RecordedRequest(headers, request))
        fault = problem or next(self._faults, None)
        if isinstance(fault, Hang):
            await self._wait_for_end(receive, None)
            return
        latency_ms = self._latency_ms() if callable(self._latency_ms) else self._latency_ms
        if not problem and latency_ms and await self._wait_for_end(receive, latency_ms / 1000):
            return
        if isinstance(fault, ErrorReply):
            await self._send(send, fault.status, _error_body(fault, self._count), _retry_after(fault))
        elif isinstance(fault, Trickle):
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", _JSON)]})
            while not await self._wait_for_end(receive, 0.01):
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
        elif isinstance(fault, Reset):
            _reset(send)
            await self._wait_for_end(receive, None)
        elif isinstance(fault, ForeignReply):
            await self._send(send, 200, fault.body, [(b"content-type", b"text/html")])
        else:
            assert request is not None
            odd = OddAnswer("x" * fault.characters) if isinstance(fault, HugeAnswer) else fault
            reply = encode(self._reply(request, odd if isinstance(odd, OddAnswer) else None))
            await self._send(send, 200, reply, [], cut=isinstance(fault, CutConnection))

    async def _wait_for_end(self, receive: Receive, seconds: float | None) -> bool:
        """Whether the client went away, or the stub ended, within the time."""
        gone = asyncio.ensure_future(receive())
        closing = asyncio.ensure_future(self.closing.wait())
        try:
            done, _ = await asyncio.wait({gone, closing}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            closing.cancel()
        self.given_up += gone in done
        return bool(done)

    def _reply(self, request: MessagesRequest, odd: OddAnswer | None) -> dict[str, Any]:
        text = self._fitting_text(request)
        if odd is not None:
            text = text[: len(text) // 2] if odd.text is None else odd.text
        usage = self._usage(request, text)
        return {
            "id": f"msg_{self._count:08d}",
            "type": "message",
            "role": "assistant",
            "model": request.model,
            "content": [{"type": "text", "text": text}] if text else [],
            "stop_reason": odd.stop_reason if odd else "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }

    def _fitting_text(self, request: MessagesRequest) -> str:
        if self._answer is not None:
            return encode(self._answer(request)).decode()
        if request.schema is None:
            return "The stub's answer."
        seed = hashlib.sha256(f"{request.system_text}\0{request.turns_text}".encode()).hexdigest()
        return encode(fitting_answer(request.schema, seed)).decode()

    def _usage(self, request: MessagesRequest, text: str) -> dict[str, int]:
        """Tokens as the API counts them: the system turn apart, once it is long enough to be kept between requests."""
        system_tokens = len(request.system_text) // _CHARACTERS_A_TOKEN
        input_tokens = len(request.turns_text) // _CHARACTERS_A_TOKEN + 1
        written = read = 0
        marked = isinstance(request.system, list) and any(block.cache_control for block in request.system)
        if marked and system_tokens >= _LEAST_CACHED_TOKENS:
            digest = hashlib.sha256(request.system_text.encode()).digest()
            written, read = (0, system_tokens) if digest in self._cached else (system_tokens, 0)
            if digest not in self._cached:
                self._cached.append(digest)
        else:
            input_tokens += system_tokens
        output_tokens = len(text) // _CHARACTERS_A_TOKEN + 1
        self._used["input-tokens"] += input_tokens + written
        self._used["output-tokens"] += output_tokens
        return {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
        }

    def _rate_headers(self) -> Headers:
        """Limits a minute, and what is left of them. They are reported and not enforced."""
        now_ms = self._clock.now_ms()
        minute = now_ms // 60_000
        if minute != self._minute:
            self._minute, self._used = minute, Counter()
        self._used["requests"] += 1
        reset = datetime.fromtimestamp((minute + 1) * 60, UTC).isoformat().replace("+00:00", "Z")
        headers: Headers = [(b"date", formatdate(now_ms / 1000, usegmt=True).encode())]
        for kind, limit in _LIMITS_A_MINUTE.items():
            values = {"limit": limit, "remaining": max(0, limit - self._used[kind]), "reset": reset}
            headers += [(f"anthropic-ratelimit-{kind}-{name}".encode(), str(v).encode()) for name, v in values.items()]
        return headers

    async def _send(self, send: Send, status: int, body: bytes, headers: Headers, *, cut: bool = False) -> None:
        names = {name for name, _ in headers}
        headers = [*headers, *self._rate_headers(), (b"content-length", str(len(body)).encode())]
        headers.append((b"request-id", f"req_{self._count:08d}".encode()))
        if b"content-type" not in names:
            headers.append((b"content-type", _JSON))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[: len(body) // 2] if cut else body, "more_body": cut})


@contextlib.asynccontextmanager
async def messages_api(
    *,
    answer: Callable[[MessagesRequest], Any] | None = None,
    latency_ms: float | Callable[[], float] = 0,
    faults: Iterable[Fault | None] = (),
    clock: Clock | None = None,
    port: int = 0,
) -> AsyncIterator[MessagesApi]:
    """The stub, while the context lasts, on 127.0.0.1 at `port` (0: a free one); `address` is its base URL.

    answer: what to answer to a request, as data; without it, something that fits the schema. latency_ms: of each
    response, or what draws it. faults: what happens to the first requests instead, in order. On leaving, running requests are dropped and the port is free.
    """
    api = MessagesApi(answer, latency_ms, faults, clock or SystemClock())
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or every body waits 40 ms for its headers' receipt
    api.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        api,
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = asyncio.create_task(_Server(config, api.closing).serve(sockets=[listener]))
    try:
        yield api
    finally:
        api.closing.set()
        await server
        listener.close()


class _Server(uvicorn.Server):
    """Ends at an event, and leaves the process's signals alone."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def main_loop(self) -> None:
        await self._closing.wait()


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body", False):
            return bytes(body)


def _examine(scope: Scope, headers: dict[str, str], body: bytes) -> tuple[MessagesRequest | None, ErrorReply | None]:
    """The request, or what the API would say to it, in its order: place, key, version, size, form."""
    if (scope["method"], scope["path"]) != ("POST", "/v1/messages"):
        return None, ErrorReply(404, "not_found_error", "Not Found")
    if not headers.get("x-api-key") and not headers.get("authorization", "").startswith("Bearer "):
        return None, ErrorReply(401, "authentication_error", "x-api-key header is required")
    if not headers.get("anthropic-version"):
        return None, ErrorReply(400, "invalid_request_error", "anthropic-version: header is required")
    if len(body) > MAX_BODY_BYTES:
        return None, ErrorReply(413, "request_too_large", "Request exceeds the maximum size")
    try:
        request = parse_request(body)
    except ValueError as error:
        return None, ErrorReply(400, "invalid_request_error", str(error))
    if not request.model.startswith("claude-"):
        return request, ErrorReply(404, "not_found_error", f"model: {request.model}")
    return request, None


def _error_body(error: ErrorReply, count: int) -> bytes:
    content: dict[str, Any] = {"type": error.type, "message": error.message}
    if error.code:
        content["details"] = {"error_code": error.code}
    return encode({"type": "error", "error": content, "request_id": f"req_{count:08d}"})


def _retry_after(error: ErrorReply) -> Headers:
    return [(b"retry-after", error.retry_after.encode())] if error.retry_after else []


def _reset(send: Send) -> None:
    """Closes the connection so that the client gets RST: lingering for no time throws away what is not sent."""
    transport: asyncio.Transport = send.__self__.transport  # type: ignore[attr-defined]
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _run(port: int, latency_ms: float | Callable[[], float], faults: Iterable[Fault | None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with messages_api(port=port, latency_ms=latency_ms, faults=faults) as api:
        sys.stdout.write(f"{api.address}\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    """Runs the stub until SIGINT or SIGTERM; its address is the first line of output."""
    parser = argparse.ArgumentParser(prog="python -m app.local.messages_api", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument(
        "--latency-ms", default="0", help="how long each answer takes: 400, or shares: 0.9:200,0.1:1200"
    )
    parser.add_argument("--fault", choices=sorted(FAULTS), help="what happens to requests")
    parser.add_argument("--share", type=float, default=1.0, help="to which part of them, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and faults")
    options = parser.parse_args()
    text, seed = options.latency_ms, options.seed
    try:
        latency_ms = drawn_latency_ms(text if ":" in text else f"1:{text}", seed)
    except ValueError:
        parser.error(f"--latency-ms {text}: write milliseconds, or shares such as 0.9:200,0.1:1200")
    faults = at_share(FAULTS[options.fault], options.share, seed) if options.fault else ()
    asyncio.run(_run(options.port, latency_ms, faults))


if __name__ == "__main__":
    main()
