"""The fault proxy does to a connection what it is told to, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.frames import METADATA, OFFSET_COMMIT, PRODUCE, LostCalls, NamesNoBrokers, Tally
from tests.faults.proxy import TcpProxy

SOON_S = 0.3


class Echo:
    """Answers every line with itself, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.was_heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.heard.append(line)
            self.was_heard.set()
            writer.write(line)
        writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[TcpProxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, echo


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(proxy: TcpProxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def asked(streams: Streams, line: bytes) -> bytes:
    """The answer to a line; empty when none comes soon."""
    reader, writer = streams
    writer.write(line)
    try:
        async with asyncio.timeout(SOON_S):
            return await reader.readline()
    except TimeoutError:
        return b""


async def test_proxy_untouched_passes_everything_on() -> None:
    """Megabytes arrive whole and in order, and the end of the stream with them."""
    async with proxied() as (proxy, _):
        reader, writer = await connected(proxy)
        lines = [b"%d %s\n" % (number, b"x" * 1_000) for number in range(2_000)]
        writer.writelines(lines)
        assert b"".join(lines) == await reader.readexactly(sum(map(len, lines)))
        assert 1 == proxy.connections
        writer.close()


async def test_proxy_latency_delays_both_directions() -> None:
    """A request and its answer each arrive later by the latency, at any time it is set."""
    async with proxied() as (proxy, _):
        streams, loop = await connected(proxy), asyncio.get_running_loop()
        assert b"quick\n" == await asked(streams, b"quick\n")
        proxy.latency_s = 0.05
        began = loop.time()
        assert b"slow\n" == await asked(streams, b"slow\n")
        assert loop.time() - began >= 0.1
        streams[1].close()


async def test_proxy_slices_arrive_whole() -> None:
    """Byte by byte, but every byte."""
    async with proxied() as (proxy, _):
        streams = await connected(proxy)
        proxy.slice_bytes = 1
        assert b"in slices\n" == await asked(streams, b"in slices\n")
        streams[1].close()


async def test_proxy_black_hole_swallows_and_heals_by_reset() -> None:
    """Nothing reaches the server; when it heals, the connection that lost bytes is reset and a new one works."""
    async with proxied() as (proxy, echo):
        streams = await connected(proxy)
        await asked(streams, b"before\n")
        proxy.black_hole = True
        assert b"" == await asked(streams, b"lost\n")
        assert [b"before\n"] == echo.heard
        proxy.heal()
        with pytest.raises(ConnectionError):
            await asked(streams, b"after\n")
        again = await connected(proxy)
        assert b"again\n" == await asked(again, b"again\n")
        again[1].close()


async def test_proxy_dropped_replies_requests_are_executed() -> None:
    """The server has heard what its client never gets an answer to."""
    async with proxied() as (proxy, echo):
        streams = await connected(proxy)
        proxy.drop_replies = True
        assert b"" == await asked(streams, b"executed\n")
        assert [b"executed\n"] == echo.heard
        assert len(b"executed\n") == proxy.lost_bytes
        proxy.reset()


async def test_proxy_reset_breaks_what_is_open() -> None:
    """Every open connection ends with a reset; the next one works."""
    async with proxied() as (proxy, _):
        streams = await connected(proxy)
        await asked(streams, b"before\n")
        assert 1 == proxy.reset()
        with pytest.raises(ConnectionError):
            await streams[0].readexactly(1)
        again = await connected(proxy)
        assert b"again\n" == await asked(again, b"again\n")
        again[1].close()


async def test_proxy_refusing_new_connections_end_at_once() -> None:
    """While it refuses, a new connection is reset; one that is open goes on."""
    async with proxied() as (proxy, _):
        streams = await connected(proxy)
        await asked(streams, b"before\n")
        proxy.refuse = True
        reader, _writer = await connected(proxy)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert b"still\n" == await asked(streams, b"still\n")
        streams[1].close()


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def frame(*head: int) -> bytes:
    """A frame with this head: two-byte numbers, and a body."""
    return framed(b"".join(number.to_bytes(2, "big") for number in head) + b"x" * (16 - 2 * len(head)))


def test_lost_calls_are_of_their_kind_and_some_are_executed() -> None:
    """Only commits get lost; the first, which the server does hear of, with its reply, the next before it is heard of;
    wherever the stream is cut."""
    tally = Tally()
    calls = LostCalls({OFFSET_COMMIT}, tally)
    for byte in frame(PRODUCE, 9, 0, 1) + frame(OFFSET_COMMIT, 9, 0, 2):
        assert bytes([byte]) == calls.requests(bytes([byte]))
    assert frame(0, 1, 0, 0)[:10] == calls.replies(frame(0, 1, 0, 0)[:10])
    assert calls.replies(frame(0, 1, 0, 0)[10:] + frame(0, 2, 0, 0)) is None
    assert calls.requests(frame(PRODUCE, 9, 0, 3) + frame(OFFSET_COMMIT, 9, 0, 4)) is None
    assert Tally(seen=2, changed=2) == tally


def test_lost_calls_replies_of_four_bytes_pass() -> None:
    """A reply may be no longer than its number; the next one is found behind it."""
    calls = LostCalls({OFFSET_COMMIT}, Tally())
    asked, short = frame(OFFSET_COMMIT, 9, 0, 2), framed(b"\0\0\0\x01")
    assert asked == calls.requests(asked)
    assert short == calls.replies(short)
    assert calls.replies(framed(b"\0\0\0\x02")) is None


def test_names_no_brokers_changes_answers_about_the_cluster_alone() -> None:
    """The list of brokers is empty, what follows it as before, wherever the stream is cut; other replies pass."""
    tally = Tally()
    calls = NamesNoBrokers(tally)
    asked = frame(METADATA, 12, 0, 1) + frame(PRODUCE, 9, 0, 2)
    assert asked == b"".join(calls.requests(bytes([byte])) or b"" for byte in asked)
    head, rest = b"\0\0\0\x01" + b"\0" + b"\0\0\0\0", b"\x0acluster-1" + b"\0\0\0\x01" + b"topics"
    near, far = b"\0\0\0\x01" + b"\x05host" + b"\0\0\x23\x84" + b"\0" + b"\0", b"\0\0\0\x02" + b"\x81\x01" + b"h" * 128
    far += b"\0\0\x23\x85" + b"\x05rack" + b"\0"
    other = frame(0, 2, 0, 0)
    replies = other + framed(head + b"\x03" + near + far + rest)
    assert other + framed(head + b"\x01" + rest) == b"".join(calls.replies(bytes([byte])) or b"" for byte in replies)
    assert Tally(seen=1, changed=1) == tally
    assert framed(head + b"\x03" + near + far + rest) == calls.replies(framed(head + b"\x03" + near + far + rest))


def test_names_no_brokers_unknown_version_breaks_and_is_told() -> None:
    """What cannot be read is not passed on as if it had been changed."""
    tally = Tally()
    assert NamesNoBrokers(tally).requests(frame(METADATA, 8, 0, 1)) is None
    assert NamesNoBrokers(tally).requests(frame(METADATA, 14, 0, 1)) is None
    assert Tally(seen=2, unknown={8, 14}) == tally
