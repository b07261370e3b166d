"""aiokafka's record as ours."""

from aiokafka import ConsumerRecord

from app.core.record import Record


def record_of(found: ConsumerRecord) -> Record:
    """A header without a value is an empty one."""
    headers = found.headers
    return Record(
        found.topic,
        found.partition,
        found.offset,
        found.timestamp,
        found.key,
        found.value,
        tuple((name, value or b"") for name, value in headers) if headers else (),
    )
