"""The HTTP client: what is worth another try and what is not, against a server on loopback."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from app.core.errors import Rejected, Unavailable
from app.http.client import HttpClient, address_of, translate

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(answer: Answer) -> tuple[asyncio.Server, str]:
    """A server of its own on a free loopback port, and its address."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"


def status(code: int, body: bytes = b"{}", *headers: str) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()

    return answer


async def post(answer: Answer, timeout_ms: int = 2_000) -> None:
    server, url = await serve(answer)
    async with server, HttpClient() as client:
        await client.post_json(url, b'{"x":1}', {"idempotency-key": "k"}, timeout_ms)


async def test_post_json_sends_body_and_headers() -> None:
    """What arrives is the JSON with its content type and our headers."""
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        seen.append((head, await reader.readexactly(7)))
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()

    await post(answer)
    ((head, body),) = seen
    assert b'{"x":1}' == body
    assert head.startswith("post /hook ")
    assert "content-type: application/json" in head
    assert "idempotency-key: k" in head


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_post_json_passing_refusal_is_unavailable(code: int) -> None:
    """What may succeed later may be tried again."""
    with pytest.raises(Unavailable, match=str(code)):
        await post(status(code))


@pytest.mark.parametrize("code", [301, 307, 400, 401, 403, 404, 410, 422])
async def test_post_json_lasting_refusal_is_rejected(code: int) -> None:
    """What will be refused again is not tried again; a redirect is not followed."""
    with pytest.raises(Rejected, match=str(code)):
        await post(status(code, b"", "Location: http://127.0.0.1:1/elsewhere"))


async def test_post_json_silent_server_is_unavailable() -> None:
    """A server that does not answer costs the timeout and no more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up

    with pytest.raises(Unavailable, match="no answer within 50 ms"):
        await post(answer, timeout_ms=50)


async def test_post_json_trickling_server_is_unavailable() -> None:
    """A server that keeps the connection alive byte by byte costs the timeout and no more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.02)

    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="no answer within 200 ms"):
            await post(answer, timeout_ms=200)


async def test_post_json_broken_answer_is_unavailable() -> None:
    """A connection that breaks off is worth another try."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    with pytest.raises(Unavailable):
        await post(answer)


async def test_post_json_closed_port_is_unavailable() -> None:
    """Nobody listens: the error names the address."""
    server, url = await serve(status(200))
    server.close()
    await server.wait_closed()
    async with HttpClient() as client:
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:\d+"):
            await client.post_json(url, b"{}", {}, 1_000)


async def test_post_json_wrong_address_is_rejected() -> None:
    """An address that is none is not tried again."""
    async with HttpClient() as client:
        for url in ("ftp://a.test/x", "no address", "http://[::1"):
            with pytest.raises(Rejected):
                await client.post_json(url, b"{}", {}, 1_000)


async def test_post_json_answer_without_end_is_not_read() -> None:
    """A receiver that has said yes is not waited for while it says more."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nyes, and")
        await reader.read()  # until the client goes

    await post(answer, timeout_ms=60_000)


def library_errors() -> list[type[Exception]]:
    """Every exception class that httpx2 exports, but those that are only bases of others."""
    bases = {"HTTPError", "RequestError", "TransportError", "ProtocolError"}
    return [
        thing
        for name, thing in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(thing, Exception) and not issubclass(thing, Warning) and name not in bases
    ]


@pytest.mark.parametrize("error_type", library_errors(), ids=lambda error_type: str(error_type.__name__))
def test_translate_knows_every_error_of_the_library(error_type: type[Exception]) -> None:
    """A class that nobody has mapped fails here."""
    error = error_type.__new__(error_type)
    Exception.__init__(error, "something")
    assert isinstance(translate(error, "http://a.test/"), (Unavailable, Rejected))


def test_address_of_hides_credentials_and_paths() -> None:
    """Logs name the server and nothing that opens it."""
    assert "https://hooks.test:8443" == address_of("https://user:pass@hooks.test:8443/T0/secret?token=1")
    assert "an address that is not a URL" == address_of("http://[::1")
