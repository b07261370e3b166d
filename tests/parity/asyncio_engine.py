"""The generated Python of the asyncio engine over a log, without a broker: what it writes when everything closes at the end."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from app.core.record import Headers, Record, TopicPartition
from app.streams.compiled import CompiledTopic
from app.streams.engine import compile_all, run_batch
from app.streams.joins import JoinTable
from app.streams.outputs import late_reference
from app.streams.pipelines import Pipeline, Source
from app.streams.rows import closed_rows
from app.streams.tables import FOREVER_MS, PartitionState
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs
from tests.parity.written import Written, outputs_of

NOW_MS = 1_900_000_000_000


def run_asyncio(pipelines: Mapping[str, Pipeline], records: Sequence[SourceRecord]) -> Outputs:
    """What the pipelines write for records, in this order. Bad records are left out."""
    topics = compile_all([], pipelines)
    run = _Run(topics)
    for record in records:
        run.take(record)
    run.close()
    found = outputs_of(pipelines, lambda topic: run.written[topic])
    found.bad = run.bad
    return found


def bad_by_gates(sources: Sequence[Source], records: Sequence[SourceRecord]) -> set[tuple[str, int, int]]:
    """The records that a worker refuses which judges them alone, while the pipelines run on Flink."""
    run = _Run(compile_all(sources, {}))
    for record in records:
        run.take(record)
    return run.bad


class _Run:
    def __init__(self, topics: Mapping[str, CompiledTopic]) -> None:
        self.written: defaultdict[str, list[Written]] = defaultdict(list)
        self.bad: set[tuple[str, int, int]] = set()
        self._topics = topics
        self._states: dict[TopicPartition, PartitionState] = {}
        self._joins: defaultdict[int, dict[str, JoinTable]] = defaultdict(dict)

    def take(self, record: SourceRecord) -> None:
        state = self._state(record.topic, record.partition)
        made = Record(record.topic, record.partition, record.offset, record.timestamp_ms, record.key, record.value)
        run_batch(self._topics[record.topic], state, [made], NOW_MS)
        self._collect(state)

    def _state(self, topic: str, partition: int) -> PartitionState:
        """With those of that partition of all topics: a join needs both."""
        place = TopicPartition(topic, partition)
        if place not in self._states:
            for name, compiled in self._topics.items():
                other = TopicPartition(name, partition)
                self._states[other] = compiled.new_state(other, self._joins[partition])
        return self._states[place]

    def close(self) -> None:
        """All clocks are told the end before anything is collected, so that lone records of joins are seen."""
        for state in self._states.values():
            state.reached_ms = FOREVER_MS
            state.advance(FOREVER_MS, state.position)
        for state in self._states.values():
            self._collect(state)

    def _collect(self, state: PartitionState) -> None:
        for record, topic, value, headers in state.alerts:
            self._write(topic, record.key, value, headers, -1)
        for name, record in state.late:
            self._write(f"{record.topic}.late", record.key, late_reference(name, record), (), record.partition)
        self.bad |= {(record.topic, record.partition, record.offset) for record, _ in state.rejected}
        for kept in (state.alerts, state.late, state.rejected):
            kept.clear()
        compiled, partition = self._topics[state.place.topic], state.place.partition
        closed = closed_rows(compiled, state, NOW_MS)
        for target, rows in closed.rows.items():
            for value, key, _ in rows:
                self._write(target, key, value, (), partition)
        for target, key, value, headers in closed.alerts:
            self._write(target, key, value, headers, -1)
        for name, codec in compiled.tables.items():
            for start, entity, entry in state.tables[name].changes() if codec.row is None else []:
                self._write(codec.topic, codec.key(start, entity, partition), codec.value(entry), (), partition)

    def _write(self, topic: str, key: bytes | None, value: bytes, headers: Headers, partition: int) -> None:
        self.written[topic].append(Written(partition, key, value, dict(headers)))
