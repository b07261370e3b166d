"""Blocking calls of the Kafka client, kept off the loop.

A thread of its own instead of an executor's: Python waits for executor threads when it exits, and a call into a client
whose broker is gone can last for most of a minute.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingCalls:
    """One thread that runs calls one after another, in the order they were made. Begins with the first call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.stopped = False

    async def run(self, call: Callable[[], T]) -> T:
        """What `call()` returns or raises. On cancellation a call that has begun still runs to its end, unobserved.

        Raises: RuntimeError after `stop`: nobody would ever answer.
        """
        return await run_through(self.submit, call)

    def submit(self, call: Callable[[], None]) -> None:
        """Runs `call()` without giving its result to anybody; it must not raise. Raises: RuntimeError after `stop`."""
        if self.stopped:
            raise RuntimeError(f"{self._name} has ended and takes no more calls")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put(call)

    def stop(self) -> None:
        """The thread ends after the calls already made, and takes no more."""
        self.stopped = True
        self._queue.put(None)

    def join(self) -> None:
        """Waits, blocking, until a stopped thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            call()


def call_loop(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> bool:
    """Has the loop call back soon; False when the loop has ended and nobody is left to tell."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True


async def run_through(tell: Callable[[Callable[[], None]], None], call: Callable[[], T]) -> T:
    """Has another thread run `call()`, by telling it to, and awaits what it returns or raises.

    On cancellation a call that has begun still runs, unobserved.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def answer(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        if future.cancelled():
            return
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001  goes to the caller, whatever it is
            error = raised
        call_loop(loop, answer, result, error)

    tell(run)
    return await future
