"""The reading connection against a server of a few lines: order, cancellation, silence, nonsense."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest

from app.serving import resp
from app.serving.resp import Connection, Endpoint, connect, pack

Answer = Callable[[list[bytes]], bytes]


def echo(command: list[bytes]) -> bytes:
    return b"+OK\r\n" if command[0] in (b"SELECT", b"AUTH") else b"$%d\r\n%s\r\n" % (len(command[1]), command[1])


@asynccontextmanager
async def serving(answer: Answer = echo) -> AsyncIterator[Endpoint]:
    """A server that answers each command with the bytes of `answer`; empty bytes close the connection."""

    served: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        served.append(asyncio.current_task())
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    answered = answer(command)
                    if not answered:
                        return
                    writer.write(answered)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.gather(*served, return_exceptions=True)


async def test_connection_answers_belong_to_their_questions() -> None:
    """Questions asked at once are answered each with its own."""
    async with serving() as endpoint:
        connection = await connect(endpoint)
        asked = [connection.ask(pack("ECHO", f"a{n}") + pack("ECHO", f"b{n}"), 2) for n in range(100)]
        expected = [[b"a%d" % n, b"b%d" % n] for n in range(100)]
        assert expected == await asyncio.gather(*asked)
        connection.close()


async def test_connection_cancelled_question_keeps_its_place_in_the_line() -> None:
    """The answer to a cancelled question is thrown away, and the next one gets its own."""
    async with serving() as endpoint:
        connection = await connect(endpoint)
        for n in range(100):
            cancelled = asyncio.ensure_future(connection.ask(pack("ECHO", "mine"), 1))
            await asyncio.sleep(0)
            cancelled.cancel()
            assert [b"%d" % n] == await connection.ask(pack("ECHO", n), 1)
            assert cancelled.cancelled()
        assert not connection.closed
        connection.close()


async def test_connection_logs_in_and_chooses_its_database() -> None:
    """User, password and database are sent before the first question."""
    seen: list[list[bytes]] = []

    def remember(command: list[bytes]) -> bytes:
        seen.append(command)
        return b"+OK\r\n"

    async with serving(remember) as endpoint:
        for login in ({"password": "p"}, {"username": "u", "password": "p"}, {"database": 3}):
            (await connect(endpoint._replace(**login))).close()
    zero, three = [b"SELECT", b"0"], [b"SELECT", b"3"]
    assert [[b"AUTH", b"p"], zero, [b"AUTH", b"u", b"p"], zero, three] == seen


async def test_connection_refused_login_is_an_error_answer() -> None:
    """A wrong password is told as the server tells it."""
    async with serving(lambda command: b"-WRONGPASS no\r\n" if command[0] == b"AUTH" else b"+OK\r\n") as endpoint:
        with pytest.raises(hiredis.ReplyError, match="WRONGPASS no"):
            await connect(endpoint._replace(password="p"))


async def test_connection_error_answer_stands_among_the_answers() -> None:
    """An error of one command leaves the connection and the other answers alone."""
    async with serving(lambda command: b"-ERR no\r\n" if command[1] == b"bad" else echo(command)) as endpoint:
        connection = await connect(endpoint)
        bad, good = await connection.ask(pack("ECHO", "bad") + pack("ECHO", "good"), 2)
        assert isinstance(bad, hiredis.ReplyError)
        assert b"good" == good
        assert not connection.closed
        connection.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"", "the server closed the connection"), (b"HTTP/1.1 400 Bad Request", "not the answer of a Redis server")],
    ids=["gone", "nonsense"],
)
async def test_connection_broken_line_fails_everybody_in_it(answer: bytes, reason: str) -> None:
    """Once the order cannot be trusted, nobody is given an answer."""
    async with serving(lambda command: answer if command[0] == b"ECHO" else echo(command)) as endpoint:
        connection = await connect(endpoint)
        outcomes = await asyncio.gather(
            *(connection.ask(pack("ECHO", "a"), 1) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, ConnectionResetError) and reason in str(outcome) for outcome in outcomes)
        with pytest.raises(ConnectionResetError, match="it is closed"):
            await connection.ask(pack("ECHO", "c"), 1)


async def test_connection_answer_that_nobody_asked_for_closes_it() -> None:
    """One answer too many would shift all that follow, so nothing follows."""
    async with serving(lambda command: echo(command) * (2 if command[0] == b"ECHO" else 1)) as endpoint:
        connection = await connect(endpoint)
        assert [b"a"] == await connection.ask(pack("ECHO", "a"), 1)
        assert connection.closed


async def test_connection_silent_server_fails_everybody_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits too long closes the connection, since the others' answers are late too."""
    monkeypatch.setattr(resp, "ANSWER_SECONDS", 0.05)
    async with serving(lambda command: echo(command) if command[0] == b"SELECT" else b"+") as endpoint:
        connection = await connect(endpoint)
        first = asyncio.ensure_future(connection.ask(pack("ECHO", "a"), 1))
        await asyncio.sleep(0)
        monkeypatch.setattr(resp, "ANSWER_SECONDS", 60)
        second = asyncio.ensure_future(connection.ask(pack("ECHO", "b"), 1))
        with pytest.raises(TimeoutError, match=r"no answer within"):
            await first
        with pytest.raises(ConnectionResetError, match="it did not answer in time"):
            await second
        assert connection.closed


async def test_connection_never_connected_is_closed_to_questions() -> None:
    """A connection without a socket takes no question."""
    with pytest.raises(ConnectionResetError, match="it is closed"):
        await Connection().ask(b"", 1)
