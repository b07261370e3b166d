"""Clients that have lost their brokers for good.

A broker that is starting, or ending, may tell a client that the cluster has no brokers. Then the client may forget those that
it knew and ask nobody any more, until its process ends (librdkafka issue 5301; measured in ADR 11). So a client that
hears nothing is looked after, and its owner opens another one in its place.
"""

import time
from collections.abc import Callable

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaException

LOOK_SECONDS = 2.0
"""How often a client that hears nothing is asked whether it reaches a broker, and how long it may take to say so."""

LOST_SECONDS = 10.0
"""Longer than a connection takes to be opened anew."""


class Lookout:
    """Over one client, on its thread. probe: asks the cluster with another client; raises KafkaException where nobody
    answers. patience_s: so long the client must have reached nobody, while others did, to be lost."""

    def __init__(self, probe: Callable[[], object], patience_s: float = LOST_SECONDS) -> None:
        self.answers = 0
        """How often the client was answered."""
        self._probe = probe
        self._patience_s = patience_s
        self.heard()

    def heard(self) -> None:
        """The client was answered, or gave something."""
        self.answers += 1
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._alone_s = 0.0
        self._found_alone_s: float | None = None

    def is_lost(self, client: Client, topic: str) -> bool:
        """To be asked when the client gave nothing. Looks now and then, which blocks for seconds where nobody answers."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        if self.look(client, topic):
            return False
        is_alone = self._others_do()
        self._next_look = time.monotonic() + LOOK_SECONDS
        if is_alone and self._found_alone_s is not None:
            self._alone_s += now - self._found_alone_s
        self._found_alone_s = now if is_alone else None
        return self._alone_s >= self._patience_s

    def look(self, client: Client, topic: str) -> bool:
        """Whether the client reaches a broker now."""
        try:
            client.list_topics(topic, LOOK_SECONDS)
        except KafkaException:
            return False
        self.heard()
        return True

    def _others_do(self) -> bool:
        try:
            self._probe()
        except KafkaException:
            return False
        return True
