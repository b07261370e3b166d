"""What a topic takes: checked before a record is produced, since a broker refuses the whole batch for one bad record."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from app.broker.sizes import LARGEST_OVERHEAD_BYTES, batch_bytes
from app.broker.topics import DEFAULT_MAX_MESSAGE_BYTES, too_early
from app.core.clock import Clock
from app.core.errors import RecordTooLarge
from app.core.record import Headers

NO_LIMIT_MS = sys.maxsize


class Limits(NamedTuple):
    """max_bytes: of a batch. max_ahead_ms: how far in the future a record's time may lie."""

    max_bytes: int
    max_ahead_ms: int

    @property
    def surely_small_bytes(self) -> int:
        """Key and value of up to this size fit, whatever they are, when there are no headers."""
        return self.max_bytes - LARGEST_OVERHEAD_BYTES

    def latest_ms(self, now_ms: int) -> int:
        return min(now_ms + self.max_ahead_ms, NO_LIMIT_MS)

    def check(
        self, clock: Clock, topic: str, value: bytes | None, key: bytes | None, timestamp_ms: int, headers: Headers = ()
    ) -> None:
        """Raises: RecordTooLarge, RecordTooEarly."""
        size = len(value or b"") + len(key or b"")
        if headers or size > self.surely_small_bytes:
            size = batch_bytes(value, key, headers)
            if size > self.max_bytes:
                raise RecordTooLarge(f"record of {size} bytes, the topic takes {self.max_bytes}", topic=topic)
        if self.max_ahead_ms != NO_LIMIT_MS:
            ahead_ms = timestamp_ms - clock.now_ms()
            if ahead_ms > self.max_ahead_ms:
                raise too_early(topic, ahead_ms, self.max_ahead_ms)


def limits_of(config: Mapping[str, str]) -> Limits:
    """The limits in a topic's settings."""
    ahead_ms = int(config.get("message.timestamp.after.max.ms", NO_LIMIT_MS))
    stamped = config.get("message.timestamp.type") == "LogAppendTime"
    return Limits(int(config.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES)), NO_LIMIT_MS if stamped else ahead_ms)
