"""What is told of a cluster that does not answer: since when, now and then while that lasts, and once when it is back.

Each client reports every second that its brokers are down, in words that differ from client to client, and none reports
that they are up again. So the first report makes a thread ask, until somebody answers.
"""

import logging
import threading
import time
from collections.abc import Callable

from confluent_kafka import KafkaException

from app.core.clock import Clock
from app.core.instants import instant

logger = logging.getLogger(__name__)

TELL_AGAIN_SECONDS = 30.0
PAUSE_SECONDS = 0.2
"""Between two questions; one that nobody answers takes its time, too."""


class Outage:
    """Of one cluster, for all its clients. ask: blocks for some seconds. It raises KafkaException where nobody answers.

    `report` and `close` may be called on any thread. Where somebody does answer, one client has lost a connection, and
    nothing is told.
    """

    def __init__(self, address: str, clock: Clock, ask: Callable[[], object]) -> None:
        self._address = address
        self._clock = clock
        self._ask = ask
        self._watching = threading.Lock()
        self._closed = threading.Event()

    def report(self) -> None:
        """A client says that all brokers are down."""
        if not self._closed.is_set() and self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch, name="kafka-outage", daemon=True).start()

    def close(self) -> None:
        """Nothing is told from now on; the thread ends soon."""
        self._closed.set()

    def _watch(self) -> None:
        try:
            self._wait_for_an_answer()
        finally:
            self._watching.release()

    def _wait_for_an_answer(self) -> None:
        since, began_s = f"{instant(self._clock.now_ms()):%H:%M:%S} UTC", time.monotonic()
        tell_s = began_s
        while not self._answers():
            if self._closed.is_set():
                return
            if time.monotonic() >= tell_s:
                logger.warning("%s does not answer since %s", self._address, since)
                tell_s = time.monotonic() + TELL_AGAIN_SECONDS
            if self._closed.wait(PAUSE_SECONDS):
                return
        if tell_s > began_s:
            logger.warning("%s answers again, after %.0f s", self._address, time.monotonic() - began_s)

    def _answers(self) -> bool:
        try:
            self._ask()
        except KafkaException:
            return False
        return True
