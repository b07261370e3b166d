"""Which dead letters may not become decisions again: those that are none, and those that were forgotten since.

A record that is no decision would be buried once more, and stay in the log as one that breaks `verify`; and a letter keeps
the bytes of a decision for weeks after its person was forgotten.
"""

from app.broker.base import Broker
from app.broker.dead_letters import Letter
from app.broker.dead_replay import Fate
from app.core.record import Record, TopicPartition
from app.decisions.history import PassedOver, found_in
from app.decisions.record import DECISIONS, decision_key, is_forgotten


class DecisionBar:
    """A `broker.dead_replay.Bar` for letters of decisions, or letters that shall become such."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._forgotten: set[bytes | None] = set()

    async def look(self) -> None:
        """Learns the keys of what was forgotten, from the whole log. Raises: Unavailable, Rejected."""
        admin, reader = self._broker.admin(), self._broker.reader()
        try:
            described = (await admin.describe([DECISIONS]))[DECISIONS]
            places = [TopicPartition(DECISIONS, number) for number in range(described.partitions if described else 0)]
            ends = await reader.end_offsets(places)
            for place in places:
                async for records in reader.read(place, 0, ends[place]):
                    self._forgotten.update(record.key for record in records if is_forgotten(record))
        finally:
            await reader.close()
            await admin.close()

    def against(self, letter: Letter) -> Fate | None:
        """Why the letter must stay where it is; None where nothing is against it."""
        record = Record(letter.topic, letter.partition, letter.offset, 0, letter.key, letter.value, letter.headers)
        if is_forgotten(record) or letter.key in self._forgotten:
            return Fate.FORGOTTEN
        found = found_in(record, PassedOver())
        if found is None or letter.key != decision_key(found.record.writer, found.record.number):
            return Fate.UNREADABLE
        return None
