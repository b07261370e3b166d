"""One run: a model, a sink and workers as processes around the cluster, alerts published, and the history of it all."""

import asyncio
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random

import msgspec

from app.broker.base import Producer
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.record import Headers, Record, TopicPartition
from app.decisions.record import DECISIONS, EFFECTS, REVIEWS, DecisionRecord, EffectRecord
from app.streams.outputs import alert_headers, derived_id
from features.fraud import HighValueOrder
from tests.faults.application import PARTITIONS, POSTING, REVIEWING, RUN_VARIABLE
from tests.faults.cluster import Cluster
from tests.faults.commits import CommitSampler
from tests.faults.history import (
    ACTIONS_GROUP,
    ALERTS_GROUP,
    Asked,
    Call,
    Decided,
    EffectEntry,
    History,
    Post,
    Published,
    Raw,
)
from tests.faults.lines import read_lines
from tests.faults.processes import Child
from tests.faults.workers import Workers

ALERTS = "processed.alerts"
AT_ONCE = 250
"""Publications that wait for their acknowledgement together."""
RECENT = 1_000
"""Of so many alerts it is known how to publish them again."""
LAG_LIMIT_S = 60.0
LOOK_S = 0.1
STALLED_S = 60.0


class Latency(msgspec.Struct, frozen=True):
    """How long the model takes: a share of the alerts the slow time, the others the quick one."""

    quick_s: float
    slow_s: float
    slow: float = 0.1


class Run:
    """`async with`; then start workers, publish, do harm, `settled`, and `finish` for the history."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        directory: Path,
        *,
        seed: int,
        latency: Latency,
        answers: Sequence[str] = (),
        arguments: Sequence[str] = ("--only", "agents", "--only", "actions"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """name: part of every id of the run. answers: `ACTION:SHARE` of what it answers, review for the rest; its own unless given.
        arguments, environment: what all workers get beside where the servers are."""
        self.cluster = cluster
        self.name = name
        self.directory = directory
        self.chance = Random(seed)
        self.published: list[Published] = []
        self.undecodable: list[Raw] = []
        self._recent: deque[tuple[str, bytes, bytes, Headers]] = deque(maxlen=RECENT)
        self._seed = seed
        self._latency = latency
        self._answers = answers
        self._arguments = arguments
        self._more = dict(environment or {})
        self._clock = SystemClock()
        self._numbers = 0
        self._ends: dict[int, int] = {}

    async def __aenter__(self) -> "Run":
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self._reader = self.cluster.broker.reader()
        self._producer: Producer = self.cluster.broker.producer()
        await self._producer.start()
        self._begin = await self._reader.end_offsets(
            [*_places(ALERTS), *_places(DECISIONS), *_places(EFFECTS), *_places(REVIEWS)]
        )
        answers = [text for answer in self._answers for text in ("--answer", answer)]
        seconds = f"{self._latency.quick_s},{self._latency.slow_s}"
        model = ["--seconds", seconds, "--slow", str(self._latency.slow), "--seed", str(self._seed), *answers]
        self.model, self.sink = await asyncio.gather(
            asyncio.to_thread(self._server, "model", model), asyncio.to_thread(self._server, "sink", [])
        )
        (agent,) = self.cluster.app.agents.values()
        self.sampler = CommitSampler(
            self.cluster.servers,
            {
                ALERTS_GROUP: (agent.group, ALERTS, PARTITIONS),
                ACTIONS_GROUP: ("headrace.actions", DECISIONS, PARTITIONS),
            },
        )
        self.sampler.start()
        self.workers = Workers(
            self.directory, ["-A", "tests.faults.application:app", *self._arguments], self._environment()
        )
        return self

    def _server(self, name: str, arguments: Sequence[str]) -> Child:
        log = ["--log", str(self.directory / f"{name}.jsonl")]
        return Child(f"tests.faults.{name}", [*log, *arguments], self.directory / f"{name}.log", {}, has_address=True)

    def _environment(self) -> dict[str, str]:
        return {
            "HEADRACE_BROKER": self.cluster.kafka,
            "HEADRACE_STORE": self.cluster.redis,
            "HEADRACE_REPLICATION": "1",
            "HEADRACE_MODEL_URL": self.model.address,
            **{
                f"HEADRACE_ACTION_URL_{effect.upper()}": f"{self.sink.address}/{effect}"
                for effects in POSTING.values()
                for effect in effects
            },
            "HEADRACE_LOG_LEVEL": "info",
            "ANTHROPIC_API_KEY": "none",
            RUN_VARIABLE: self.name,
            **self._more,
        }

    async def __aexit__(self, *exception: object) -> None:
        self.workers.kill_all()
        for child in (self.model, self.sink):
            child.kill()
        await asyncio.to_thread(self.sampler.stop)
        await self._producer.close()
        await self._reader.close()

    async def publish(self, count: int, kind: str = "o", user: str = "") -> list[Published]:
        """Publishes so many alerts; returns when all are acknowledged. kind: see `application.judge`."""
        sent: list[Published] = []
        while len(sent) < count:
            some = min(AT_ONCE, count - len(sent))
            sent += await asyncio.gather(*(self._publish_one(kind, user) for _ in range(some)))
        return sent

    async def feed(self, total: int, backlog: int) -> None:
        """Publishes until there are so many in all, as fast as they are handled: no more than `backlog` wait.

        Raises: RuntimeError when none is handled for a minute.
        """
        loop = asyncio.get_running_loop()
        progress, moved = self.backlog, loop.time()
        while len(self.published) < total:
            waiting = self.backlog
            if waiting < backlog:
                await self.publish(min(backlog - waiting, AT_ONCE, total - len(self.published)))
                waiting = -1
            else:
                await asyncio.sleep(LOOK_S)
            if waiting != progress:
                progress, moved = waiting, loop.time()
            elif loop.time() > moved + STALLED_S:
                raise RuntimeError(f"{waiting} alerts wait and none was committed for {STALLED_S:.0f} s")

    async def _publish_one(self, kind: str, user: str) -> Published:
        self._numbers += 1
        number = self._numbers
        user = user or f"{self.name}-u{self.chance.randrange(max(100, number))}"
        order = f"{kind}-{self.name}-{number}"
        alert_id, now_ms = derived_id("high_value_order", user, order), self._clock.now_ms()
        alert = HighValueOrder(
            alert_id=alert_id,
            triggered_at=datetime.fromtimestamp(now_ms / 1000, UTC),
            order_id=order,
            user_id=user,
            amount_usd=Decimal("12000.50"),
        )
        headers = alert_headers("high_value_order", "", 0, now_ms, now_ms, ())
        return await self._send(alert_id, encode(alert), user.encode(), headers)

    async def _send(self, alert_id: str, value: bytes, key: bytes, headers: Headers) -> Published:
        confirmation = await self._producer.confirm(ALERTS, value, key, headers=headers)
        one = Published(alert_id, *confirmation, self._clock.now_ms())
        self._note(one)
        self._recent.append((alert_id, value, key, headers))
        return one

    async def publish_again(self, count: int) -> None:
        """Publishes so many of the last alerts once more, some that are decided and some that are not, as a producer does
        that saw no acknowledgement."""
        await asyncio.gather(*(self._send(*one) for one in self.chance.sample(self._recent, count)))

    async def publish_undecodable(self, count: int) -> None:
        """Publishes so many records between the alerts, under keys of theirs, that say they are alerts and are none."""
        for _ in range(count):
            _, whole, key, headers = self.chance.choice(self._recent)
            value = self.chance.choice((b"", b"\xff\xfe", b"{}", whole[: len(whole) // 2], whole + b"]"))
            confirmation = await self._producer.confirm(ALERTS, value, key, headers=headers)
            self.undecodable.append(Raw(*confirmation, self._clock.now_ms(), value))
            self._note_end(*confirmation)

    async def adopt_alerts(self, count: int) -> None:
        """Takes for published what streams have written to the alerts' topic too, once there are so many in all, or after a
        time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAG_LIMIT_S
        while len(records := await self.read(ALERTS)) < count and loop.time() < deadline:
            await asyncio.sleep(LOOK_S)
        known = {(one.partition, one.offset) for one in self.published}
        for record in [one for one in records if (one.partition, one.offset) not in known]:
            alert_id = msgspec.json.decode(record.value or b"")["alert_id"]
            self._note(Published(alert_id, record.partition, record.offset, record.timestamp_ms))

    def _note(self, one: Published) -> None:
        self._note_end(one.partition, one.offset)
        self.published.append(one)

    def _note_end(self, partition: int, offset: int) -> None:
        self._ends[partition] = max(self._ends.get(partition, 0), offset + 1)

    @property
    def backlog(self) -> int:
        """Published alerts that no commit has passed yet."""
        committed = self.sampler.committed
        return sum(max(0, end - committed(ALERTS_GROUP, partition)) for partition, end in self._ends.items())

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Looks ten times a second; whether it held within the time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not holds():
            if loop.time() > deadline:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def settled(self, seconds: float = LAG_LIMIT_S) -> bool:
        """Until both groups have committed everything; whether they have, within the time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while loop.time() < deadline:
            if self.backlog == 0:
                ends = await self._reader.end_offsets(_places(DECISIONS))
                if all(self.sampler.committed(ACTIONS_GROUP, place.partition) >= end for place, end in ends.items()):
                    return True
            await asyncio.sleep(LOOK_S)
        return False

    async def finish(self) -> History:
        """Everything that is known, after the workers have been stopped. It is kept as `history.json` too."""
        await asyncio.sleep(0.2)  # the last sample
        decisions = [_decided(record) for record in await self.read(DECISIONS)]
        effects = [_effect_entry(record) for record in await self.read(EFFECTS)]
        ours = {one.alert_id for one in self.published}
        asked, reviews = await self._asked()
        held, accepted = self.workers.grips()
        dead, letters = await self._dead_letters()
        history = History(
            published=self.published,
            calls=_calls(read_lines(self.directory / "model.jsonl", Call), ours),
            decisions=[one for one in decisions if one.alert_id in ours],
            effects=[one for one in effects if one.alert_id in ours],
            posts=[one for one in read_lines(self.directory / "sink.jsonl", Post) if one.alert_id in ours],
            commits=list(self.sampler.changes),
            faults=list(self.workers.faults),
            owned=self.workers.owned(),
            dead=dead,
            undecodable=self.undecodable,
            letters=letters,
            asked=asked,
            posting=POSTING,
            reviewing=REVIEWING,
            reviews=[one for one in reviews if one.alert_id in ours],
            ended=self.workers.endings(),
            held=held,
            accepted=accepted,
            sample_gap_ms=self.sampler.largest_gap_ms,
        )
        (self.directory / "history.json").write_bytes(msgspec.json.encode(history))
        return history

    async def read(self, topic: str) -> list[Record]:
        """What has been written since the run began, or at all where nothing was noted then."""
        found: list[Record] = []
        for place, end in (await self._reader.end_offsets(_places(topic))).items():
            async for records in self._reader.read(place, self._begin.get(place, 0), end):
                found += [record for record in records if record.value is not None]
        return found

    async def _asked(self) -> tuple[list[str], list[Asked]]:
        """Keys of effects that could not be completed, and what decisions have asked."""
        keys: list[str] = []
        reviews: list[Asked] = []
        for record in await self.read(REVIEWS):
            request = msgspec.json.decode(record.value or b"", type=_Request)
            if request.kind == "effect":
                keys.append(request.review_id)
            elif request.kind == "decision":
                reviews.append(Asked(request.review_id, request.alert_id, request.decision_offset, record.timestamp_ms))
        return keys, reviews

    async def _dead_letters(self) -> tuple[dict[str, int], list[Raw]]:
        """Alerts that are dead letters, and since when; and the letters of what is no alert."""
        ids = {(one.partition, one.offset): one.alert_id for one in self.published}
        undecodable = {(one.partition, one.offset) for one in self.undecodable}
        dead: dict[str, int] = {}
        letters: list[Raw] = []
        for record in await self.read(f"{ALERTS}.dead"):
            place = int(record.header("partition") or b"-1"), int(record.header("offset") or b"-1")
            if place in ids:
                dead.setdefault(ids[place], record.timestamp_ms)
            elif place in undecodable:
                letters.append(Raw(*place, record.timestamp_ms, record.value or b""))
        return dead, letters


def _places(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in range(PARTITIONS)]


def _calls(logged: Sequence[Call], ours: set[str]) -> list[Call]:
    """The log has a line at the beginning and one at the end of a call; here it is one entry."""
    calls: dict[tuple[str, int], Call] = {}
    for call in logged:
        if call.alert_id in ours and (call.end_ms or (call.alert_id, call.number) not in calls):
            calls[call.alert_id, call.number] = call
    return list(calls.values())


class _Request(msgspec.Struct):
    """As much of what is put before a person. kind: empty for a verdict."""

    review_id: str = ""
    kind: str = ""
    alert_id: str = ""
    decision_offset: int = -1


class _Said(msgspec.Struct):
    """As much of a decision as the checker needs."""

    action: str
    reason: str


def _decided(record: Record) -> Decided:
    whole = msgspec.json.decode(record.value or b"", type=DecisionRecord)
    said = msgspec.json.decode(whole.decision, type=_Said)
    return Decided(
        alert_id=whole.alert_id,
        partition=record.partition,
        offset=record.offset,
        at_ms=record.timestamp_ms,
        mode=whole.mode,
        action=said.action,
        reason=said.reason,
        is_fallback=bytes(whole.answered) == b"null",
        codes=whole.reasons,
        attempt=whole.attempt,
        writer=whole.writer,
    )


def _effect_entry(record: Record) -> EffectEntry:
    entry = msgspec.json.decode(record.value or b"", type=EffectRecord)
    return EffectEntry(
        alert_id=entry.alert_id,
        partition=record.partition,
        offset=record.offset,
        at_ms=record.timestamp_ms,
        decision_offset=entry.decision_offset,
        states={name: status.state.value for name, status in entry.effects.items()},
        ended=all(status.state.ended for status in entry.effects.values()),
    )
