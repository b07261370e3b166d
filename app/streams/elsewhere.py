"""What a worker does for streams that run on Flink: it judges the records, and says how far the features are.

Flink drops what the gate refuses, so somebody must put it into the dead letters: an engine without pipelines. And Flink cannot
say up to when its tiles hold everything. It commits offsets when a checkpoint is complete, and then every tile of what lies before
them is acknowledged; so whoever owns a partition's gate follows these offsets, and writes the view's progress.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from app.broker.base import Broker
from app.core.clock import Clock
from app.core.errors import Unavailable
from app.core.notices import Notices
from app.core.record import TopicPartition
from app.streams.as_of import AsOf
from app.streams.engine import Engine
from app.streams.pipelines import LivePipeline, Pipeline, Source, fingerprint

logger = logging.getLogger(__name__)

PROGRESS_S = 1.0


class Elsewhere:
    """The streams' part of a worker whose pipelines run on Flink, under `flink_group`. group: of the gates."""

    def __init__(
        self,
        broker: Broker,
        sources: Sequence[Source],
        pipelines: Mapping[str, Pipeline],
        clock: Clock,
        group: str,
        flink_group: str,
    ) -> None:
        self.gates = Engine(broker, sources, {}, clock, group)
        self._broker = broker
        self._clock = clock
        self._flink_group = flink_group
        self._views = defaultdict[str, list[LivePipeline]](list)
        for pipeline in pipelines.values():
            if isinstance(pipeline, LivePipeline):
                self._views[pipeline.stream.source.spec.name].append(pipeline)
        self._as_of = defaultdict[TopicPartition, AsOf](AsOf)
        self._told: dict[TopicPartition, int] = {}
        self._notices = Notices(logger, logging.WARNING)

    async def run(self, stopping: asyncio.Event) -> None:
        """As `Engine.run`."""
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._tell_progress())
            await self.gates.run(stopping)
            telling.cancel()

    async def _tell_progress(self) -> None:
        """Without an answer the progress stands still, and the features say their age."""
        producer, reader, admin = self._broker.producer(), self._broker.reader(), self._broker.admin()
        await producer.start()
        try:
            while True:
                await asyncio.sleep(PROGRESS_S)
                places = [place for place in self.gates.places if place.topic in self._views]
                try:
                    asked_ms = self._clock.now_ms()
                    ends = await reader.end_offsets(places)
                    read = await admin.group_offsets(self._flink_group, sorted(self._views))
                except Unavailable as error:
                    self._notices.tell("progress", f"the progress of features is not known: {error}")
                    continue
                for place in places:
                    self._as_of[place].learn_end(asked_ms, ends[place])
                    as_of_ms = self._as_of[place].at(read.get(place, 0))
                    if as_of_ms > self._told.get(place, 0):
                        self._told[place] = as_of_ms
                        for view in self._views[place.topic]:
                            value = b'{"as_of":%d,"offset":%d}' % (as_of_ms, read.get(place, 0))
                            key, made_by = b'{"progress":%d}' % place.partition, fingerprint(view).encode()
                            headers = (("fingerprint", made_by),)
                            await producer.send(view.topic, value, key, partition=place.partition, headers=headers)
        finally:
            for close in (producer.close, reader.close, admin.close):
                await close()
