"""A producing client that outlives a fatal error.

After one, such as a lost session of the idempotent producer, the Kafka client takes nothing any more, and gives up what
it holds: those records fail. The first record after that opens another client, so whoever sends need not know.
"""

import logging
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as Client

logger = logging.getLogger(__name__)


class LastingClient:
    """`current` is the client that takes records now. Made, renewed and produced to on the loop; polled on any thread."""

    def __init__(self, address: str, make: Callable[[], Client]) -> None:
        self.current = make()
        self.may_write = True
        """False once the cluster has said that this user has the right to write nowhere."""
        self._address = address
        self._make = make
        self._ended: list[Client] = []

    def __len__(self) -> int:
        """Records whose report was not polled yet."""
        return sum(len(client) for client in self._all())

    def produce(self, *record: Any) -> None:
        """Raises: BufferError when the queue is full; KafkaException for this record."""
        try:
            self.current.produce(*record)
        except KafkaException as error:
            self.renew_after(error)
            self.current.produce(*record)

    def renew_after(self, error: KafkaException) -> None:
        """Opens another client where the error says that this one has ended. Raises: any other error."""
        if error.args[0].code() != KafkaError._FATAL:
            raise error
        self._ended = [client for client in self._ended if len(client)] + [self.current]
        self.current = self._make()

    def poll(self, seconds: float = 0.0) -> None:
        """Lets the records' callbacks run; waits so long for the first one."""
        for client in self._ended:
            self._guard(client.poll, 0)
        self._guard(self.current.poll, seconds)

    def flush(self, seconds: float) -> None:
        """Sends at once what lingers, lets callbacks run, returns when all have or after so long."""
        for client in self._all():
            if len(client):
                self._guard(client.flush, seconds)

    def purge(self) -> None:
        for client in self._all():
            client.purge()

    def _all(self) -> list[Client]:
        return [*self._ended, self.current]

    def _guard(self, call: Callable[[float], int], seconds: float) -> None:
        """The client says once, here, why it ended."""
        try:
            call(seconds)
        except KafkaException as error:
            reason = error.args[0]
            self.may_write = self.may_write and reason.code() != KafkaError.CLUSTER_AUTHORIZATION_FAILED
            level = logging.WARNING if self.may_write else logging.DEBUG  # who sent them is told of the right
            logger.log(level, "%s: records are lost and told to who sent them: %s", self._address, reason.str())
