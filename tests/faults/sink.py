"""The receiver of effects as a process of its own: applies each key once, where it knows keys, and logs every attempt.

    python -m tests.faults.sink --log FILE

It says where it listens on its first line, and knows again after a restart what it has applied.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

from app.core.clock import SystemClock
from tests.faults.history import Post
from tests.faults.lines import LineLog, read_lines
from tests.faults.processes import die_with_parent

KEYLESS = frozenset({"hold_payment"})
"""Effects whose receiver knows no idempotency keys: it applies whatever it is sent."""


class Body(msgspec.Struct):
    """What the effects of `application` post."""

    alert_id: str
    reason: str


class Sink:
    """Minimal HTTP/1.1 with connections that stay open."""

    def __init__(self, path: Path) -> None:
        self._applied = {post.key for post in read_lines(path, Post)}
        self._log = LineLog(path)
        self._clock = SystemClock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self._take(head[0].split(" ")[1], headers.get("idempotency-key", ""), body)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _take(self, path: str, key: str, body: bytes) -> None:
        said = msgspec.json.decode(body, type=Body)
        effect = path.rpartition("/")[2]
        applied = effect in KEYLESS or not key or key not in self._applied
        self._applied.add(key)
        self._log.write(Post(key, effect, said.alert_id, said.reason, self._clock.now_ms(), applied))


async def serve(sink: Sink) -> None:
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sink")
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    die_with_parent()
    uvloop.run(serve(Sink(options.log)))


if __name__ == "__main__":
    main()
