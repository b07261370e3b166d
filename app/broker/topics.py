"""What a topic is: name, record type, key, partitions, how long it keeps, and where a key is placed."""

import re
from typing import Any, Literal

import msgspec

from app.core.errors import RecordTooEarly, SetupError

MAX_AHEAD_MS = 60_000
"""How far in the future a `raw.*` record may lie; one early clock makes everybody else late."""

DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's own default of max.message.bytes."""

MAX_COMPACTION_LAG_MS = 86_400_000
"""What was replaced or taken back in a compacted topic lies no longer than this before its segment is closed and cleaned."""

DEAD_EXTRA_BYTES = 65_536
"""How much more than its source a dead-letter topic takes, so that reason and place fit beside the original."""


MAX_NAME_CHARACTERS = 249
"""Source: Kafka's Topic.MAX_NAME_LENGTH."""

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_CHARACTERS}}}")


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One topic as we declare it.

    type: the record type of its values, or a union of tagged ones; None for topics that are read as bytes.
    key: name of the field that is the key. retention_ms: None keeps for ever. max_ahead_ms: None does not limit.
    segment_ms: after how long what was written can be compacted; None leaves it to the broker.
    time: "event" keeps the publisher's time, "written" lets the broker stamp its own.
    """

    name: str
    partitions: int
    type: Any = None
    key: str | None = None
    cleanup: Literal["delete", "compact", "compact,delete"] = "delete"
    retention_ms: int | None = 7 * 86_400_000
    time: Literal["event", "written"] = "written"
    max_ahead_ms: int | None = None
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    min_compaction_lag_ms: int = 0
    segment_ms: int | None = None

    def __post_init__(self) -> None:
        """Raises: SetupError for a name that no broker takes."""
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise SetupError(
                repr(self.name), f"is no topic name: letters, digits, '.', '_' and '-', up to {MAX_NAME_CHARACTERS}"
            )

    def config(self) -> dict[str, str]:
        """The broker's settings for it."""
        config = {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(-1 if self.retention_ms is None else self.retention_ms),
            "message.timestamp.type": "CreateTime" if self.time == "event" else "LogAppendTime",
            "max.message.bytes": str(self.max_message_bytes),
        }
        if self.max_ahead_ms is not None:
            config["message.timestamp.after.max.ms"] = str(self.max_ahead_ms)
        elif self.time == "event":
            config["message.timestamp.after.max.ms"] = str(2**63 - 1)
        if self.cleanup != "delete":
            config["min.compaction.lag.ms"] = str(self.min_compaction_lag_ms)
            config["max.compaction.lag.ms"] = str(max(MAX_COMPACTION_LAG_MS, self.min_compaction_lag_ms))
        if self.segment_ms is not None:
            config["segment.ms"] = str(self.segment_ms)
        return config


def dead_letters_of(spec: TopicSpec) -> TopicSpec:
    """The topic that takes what of `spec` cannot be handled, original bytes and all."""
    return TopicSpec(
        name=f"{spec.name}.dead",
        partitions=spec.partitions,
        retention_ms=30 * 86_400_000,
        max_message_bytes=spec.max_message_bytes + DEAD_EXTRA_BYTES,
    )


def late_references_of(spec: TopicSpec) -> TopicSpec:
    """The topic that names the records which came too late for a pipeline."""
    return TopicSpec(name=f"{spec.name}.late", partitions=spec.partitions, retention_ms=30 * 86_400_000)


def too_early(topic: str, ahead_ms: int, max_ahead_ms: int) -> RecordTooEarly:
    """The refusal of a record whose time lies `ahead_ms` in the future."""
    return RecordTooEarly(
        f"its time lies {ahead_ms / 1_000:,.0f} s in the future, the topic takes {max_ahead_ms / 1_000:,.0f} s",
        topic=topic,
    )


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit hash of a key, as an unsigned integer.

    Source: org.apache.kafka.common.utils.Utils.murmur2.
    """
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    length = len(data)
    digest = 0x9747B28C ^ length
    whole = length & ~3
    for start in range(0, whole, 4):
        word = (int.from_bytes(data[start : start + 4], "little") * multiplier) & mask
        word = ((word ^ (word >> 24)) * multiplier) & mask
        digest = ((digest * multiplier) & mask) ^ word
    if whole < length:
        digest = ((digest ^ int.from_bytes(data[whole:], "little")) * multiplier) & mask
    digest = ((digest ^ (digest >> 13)) * multiplier) & mask
    return digest ^ (digest >> 15)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, the same for every client: Java's default partitioner, librdkafka's murmur2_random."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


class TopicRegistry:
    """The topics of one application, by name and by record type. Names and types are unique."""

    def __init__(self) -> None:
        self._by_name: dict[str, TopicSpec] = {}
        self._by_type: dict[type, TopicSpec] = {}

    def add(self, spec: TopicSpec) -> None:
        """Raises: SetupError when the name stands for another declaration, or a type is published elsewhere."""
        known = self._by_name.get(spec.name)
        if known == spec:
            return
        if known is not None:
            raise SetupError(spec.name, "the topic is declared twice, in different ways")
        for record_type in record_types(spec.type):
            other = self._by_type.get(record_type)
            if other is not None:
                raise SetupError(spec.name, f"{record_type.__name__} is already the record of {other.name}")
        self._by_name[spec.name] = spec
        for record_type in record_types(spec.type):
            self._by_type[record_type] = spec

    def named(self, name: str) -> TopicSpec:
        """Raises: SetupError that lists the known names."""
        if name not in self._by_name:
            raise SetupError(name, f"no such topic is declared; there are {', '.join(sorted(self._by_name)) or 'none'}")
        return self._by_name[name]

    def of(self, record_type: type) -> TopicSpec:
        """Raises: SetupError when no topic carries that type."""
        if record_type not in self._by_type:
            raise SetupError(record_type.__name__, "no declared topic carries this record type")
        return self._by_type[record_type]

    def all(self) -> list[TopicSpec]:
        return list(self._by_name.values())


def record_types(declared: Any) -> tuple[type, ...]:
    """The struct types of a declared record type: itself, or the members of a union."""
    if declared is None:
        return ()
    members = getattr(declared, "__args__", None)
    return tuple(members) if members else (declared,)
