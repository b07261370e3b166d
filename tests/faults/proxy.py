"""A TCP proxy whose faults are set while it runs: latency, resets, a black hole, single bytes, replies that get lost."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from tests.faults.frames import Calls

CHUNK_BYTES = 65_536
BETWEEN_SLICES_S = 0.001


class TcpProxy:
    """Forwards to one address. `async with`; the attributes may be changed at any time and hold from the next chunk on.

    latency_s: how much later each chunk arrives, in each direction. slice_bytes: pass on so many at a time; 0 for
    whole chunks. black_hole: take everything and pass on nothing, in both directions; what was swallowed is lost, so
    the connection must be reset afterwards (`heal` does). drop_replies: pass on requests, so that they are executed, and lose
    every reply. refuse: close new connections at once.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        """port: where to listen on loopback; 0 for a free one."""
        self.target_port = target_port
        self.port = port
        self.latency_s = 0.0
        self.slice_bytes = 0
        self.black_hole = False
        self.drop_replies = False
        self.refuse = False
        self.connections = 0
        """How many have been accepted so far."""
        self._calls: Callable[[], Calls] | None = None
        self.forwarded_bytes = 0
        self.lost_bytes = 0
        self._open: dict[asyncio.StreamWriter, bool] = {}
        """Both ends of what is open, and whether bytes of it were lost."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> int:
        """Breaks every open connection with a TCP reset; returns how many."""
        open_now, self._open = list(self._open), {}
        for writer in open_now:
            _reset(writer)
        return len(open_now) // 2

    def meddle(self, calls: Callable[[], Calls] | None) -> None:
        """From here on something becomes of the calls of Kafka's protocol: see `frames`. Every connection begins anew."""
        self._calls = calls
        self.reset()

    def heal(self) -> None:
        """No faults from here on. Connections of which bytes were lost are reset, as the kernel's retries would not
        bring those back."""
        self.latency_s, self.slice_bytes = 0.0, 0
        self.black_hole = self.drop_replies = self.refuse = False
        if self._calls is not None:
            self.meddle(None)
        for writer, has_lost in list(self._open.items()):
            if has_lost:
                del self._open[writer]
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuse:
            _reset(writer)
            return
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(writer)
            return
        self._open[writer] = self._open[back_writer] = False
        ends = (writer, back_writer)
        calls = None if self._calls is None else self._calls()
        there = asyncio.ensure_future(self._forward(reader, back_writer, ends, calls, is_reply=False))
        back = asyncio.ensure_future(self._forward(back_reader, writer, ends, calls, is_reply=True))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in (there, back):
                direction.cancel()
            for end in ends:
                self._open.pop(end, None)
                end.close()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        calls: Calls | None,
        *,
        is_reply: bool,
    ) -> None:
        """One direction, until its source ends. Chunks keep their order; those under way do not hold up reading."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        sending = asyncio.ensure_future(self._send(queue, writer))
        try:
            with suppress(OSError):
                while chunk := await reader.read(CHUNK_BYTES):
                    if self.black_hole or (is_reply and self.drop_replies):
                        self.lost_bytes += len(chunk)
                        self._open.update((end, True) for end in ends if end in self._open)
                        continue
                    passed = chunk if calls is None else (calls.replies if is_reply else calls.requests)(chunk)
                    if passed is None:
                        self.lost_bytes += len(chunk)
                        for end in ends:
                            _reset(end)
                        return
                    if passed:
                        await queue.put((loop.time() + self.latency_s, passed))
                await queue.put((0.0, b""))
                await sending
        finally:
            sending.cancel()

    async def _send(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    return
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                passed = 0
                while passed < len(chunk):
                    size = self.slice_bytes or len(chunk)
                    writer.write(chunk[passed : passed + size])
                    await writer.drain()
                    passed += size
                    if passed < len(chunk):
                        await asyncio.sleep(BETWEEN_SLICES_S)
                self.forwarded_bytes += len(chunk)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a reset, not with the polite end."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
