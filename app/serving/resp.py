"""One connection to Redis for reads: any number of callers ask at once, answers come in the order of the questions.

redis-py lends a connection to one caller at a time and waits for each answer alone; the round trip of a read costs it three
times the CPU, and five times with many at once (`python -m benchmarks.feature_read`). Here a question is one write and one
future. A caller that is cancelled keeps its place in the line, so its answer is thrown away and never reaches another.
"""

import asyncio
import ssl
from collections import deque
from typing import Any, NamedTuple, cast

import hiredis

ANSWER_SECONDS = 5.0

_NOTHING = object()


class Endpoint(NamedTuple):
    """Where Redis listens. path: a unix socket; empty for TCP. tls: None for plain text."""

    host: str = ""
    port: int = 0
    path: str = ""
    username: str = ""
    password: str = ""
    database: int = 0
    tls: ssl.SSLContext | None = None


class _Question:
    """Commands that were written together. The future gets the list of their answers."""

    __slots__ = ("answers", "expected", "future")

    def __init__(self, expected: int, future: asyncio.Future[list[Any]]) -> None:
        self.expected = expected
        self.future = future
        self.answers: list[Any] = []


class Connection(asyncio.Protocol):
    """A connected socket. Once closed it stays so: connect another one."""

    def __init__(self) -> None:
        self.closed = False
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._line: deque[_Question] = deque()
        self._transport: asyncio.Transport | None = None

    async def ask(self, commands: bytes, expected: int) -> list[Any]:
        """The answers to `expected` packed commands; an error answer stands among them as hiredis.ReplyError.

        Raises: OSError when the connection breaks or does not answer within ANSWER_SECONDS; then it is closed, since the
        answers of everybody behind are late too.
        """
        if self.closed or self._transport is None:
            raise ConnectionResetError("it is closed")
        question = _Question(expected, asyncio.get_running_loop().create_future())
        self._line.append(question)
        self._transport.write(commands)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question.future
        except TimeoutError:
            self.close("it did not answer in time")
            raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s") from None

    def close(self, reason: str = "it was closed") -> None:
        """Everybody in the line gets ConnectionResetError."""
        if self._transport is not None:
            self._transport.abort()
        self._end(ConnectionResetError(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING:
                question = self._line[0]
                question.answers.append(answer)
                if len(question.answers) == question.expected:
                    self._line.popleft()
                    if not question.future.done():
                        question.future.set_result(question.answers)
        except (hiredis.ProtocolError, IndexError) as error:  # IndexError: an answer that nobody asked for
            self.close(f"not the answer of a Redis server: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError(str(exc or "the server closed the connection")))

    def _end(self, error: OSError) -> None:
        self.closed = True
        while self._line:
            future = self._line.popleft().future
            if not future.done():
                future.set_exception(error)


async def connect(endpoint: Endpoint) -> Connection:
    """A connection that has logged in and chosen its database.

    Raises: OSError; hiredis.ReplyError when the server refuses.
    """
    loop = asyncio.get_running_loop()
    if endpoint.path:
        _, connection = await loop.create_unix_connection(Connection, endpoint.path)
    else:
        _, connection = await loop.create_connection(Connection, endpoint.host, endpoint.port, ssl=endpoint.tls)
    login = [pack("AUTH", *filter(None, (endpoint.username, endpoint.password)))] if endpoint.password else []
    login.append(pack("SELECT", endpoint.database))
    try:
        for answer in await connection.ask(b"".join(login), len(login)):
            if isinstance(answer, hiredis.ReplyError):
                raise answer
    except BaseException:
        connection.close()
        raise
    return connection


def pack(*words: str | bytes | int) -> bytes:
    """One command as the server reads it."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub means a tuple of one word
    return packed
