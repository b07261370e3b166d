"""From an alert to an acknowledged decision: decode, ask the agent under its deadline, judge, write; then it is done.

Whatever goes wrong on the way ends in the agent's fallback with the reason; only what cannot be decoded, has no fallback
to end in, or fails in a way that nobody foresaw, is a dead letter. An alert is finished when its decision is acknowledged,
never before.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from app.broker.base import Assignment, Producer, Reader
from app.broker.dead_letters import DeadLetters
from app.core.clock import Clock
from app.core.errors import BadRecord, Fenced, RecordTooLarge, Rejected, Unavailable
from app.core.notices import Notices
from app.core.record import Headers, Record
from app.core.text import one_line
from app.decisions.agent import Agent
from app.decisions.context import Context, FeatureSource, origin_of, raw
from app.decisions.decided import look_back, spent_today
from app.decisions.decision import Decision, Reason
from app.decisions.limits import Limits
from app.decisions.log import DecisionLog, Link, bare
from app.decisions.outcome import Failure, Outcome, answer_of, conclude, failure_of
from app.decisions.policy import Barred, change_between
from app.decisions.record import DECISIONS, MAX_ID_BYTES, DecisionRecord, Mode
from app.decisions.remembered import Remembered
from app.decisions.switches import Switches
from app.models.budget import SPENT
from app.models.gate import ModelGate
from app.streams.graph import Alert

logger = logging.getLogger(__name__)


class _Tag(msgspec.Struct):
    """As little of an alert as tells its type."""

    alert_type: str


@dataclass
class AgentStatistics:
    """Counts since the start of this process."""

    decided: Counter[str] = field(default_factory=Counter)
    """Decisions by action."""
    fallbacks: Counter[str] = field(default_factory=Counter)
    """Decisions of the fallback by reason code."""
    repeated: int = 0
    """Alerts that were decided already."""
    too_old: int = 0
    """Alerts that an agent which is not live has passed over, older than its `max_age`."""
    dead_letters: int = 0


class AgentWork:
    """What a dispatcher does with the alerts of one agent: a `dispatch.consumer.Work`."""

    def __init__(
        self,
        agent: Agent[Any],
        *,
        producer: Producer,
        reader: Reader,
        features: FeatureSource,
        gate: ModelGate,
        clock: Clock,
        declared: Iterable[str],
        partitions: int,
        switches: Switches,
        mode: Mode = "live",
    ) -> None:
        """declared: tags of all alert types that may stand in the topic; others than the agent's are passed over.
        partitions: of the topic, which share the agent's limits. mode: any but live has a group of its own, since what
        it decides nobody acts on, and the live group must not take it for done.
        """
        self.agent = agent
        self.topics: Sequence[str] = (agent.topic,)
        self.group = agent.group if mode == "live" else f"{agent.group}.{mode}"
        self.mode: Mode = mode
        self.statistics = AgentStatistics()
        self._producer = producer
        self._reader = reader
        self._features = features
        self._gate = gate
        self._clock = clock
        self._switches = switches
        self._limits = Limits(agent.policy.limits, partitions)
        self._others = frozenset(declared) - agent.alert_types.keys()
        self._dead_letters = DeadLetters(producer, self.group)
        types = tuple(agent.alert_types.values())
        self._decoder = msgspec.json.Decoder(_union(types))
        self._decided: Remembered[str, bool] = Remembered()
        self._notices = Notices(logger, logging.WARNING)
        self._logs: dict[int, DecisionLog] = {}
        self._contexts: dict[tuple[int, int], Context] = {}
        """Of alerts whose last attempt failed, by partition and offset: what was asked and shown is evidence."""
        self._behind: set[int] = set()
        """Partitions whose last alert had waited too long."""

    def passes_over(self, record: Record) -> bool:
        """Whether the alert is of another declared type: by its header, else by decoding the tag alone. Where the agent is
        not live, also what it has come too late for: nobody waits for it, and at its first start that is the whole topic."""
        if _type_of(record) in self._others:
            return True
        passes_over = self.mode != "live" and self._is_too_old(record)
        self.statistics.too_old += passes_over
        return passes_over

    def lane(self, record: Record) -> bytes | None:
        """Alerts of one key are handled in order."""
        return record.key

    async def assigned(self, assignment: Assignment, first_unfinished: int) -> None:
        """Learns what is decided already, and how often. Raises: Unavailable, Rejected."""
        self._forget(assignment.partition)
        writer = f"{self.agent.name}/{assignment.partition}/{assignment.epoch}/{self._clock.now_ms()}"
        partition = assignment.partition
        self._logs[partition] = DecisionLog(self._producer, writer, lambda: self._spent_header(partition))
        spent = None
        if self.agent.budget is not None:
            spent = await spent_today(self._reader, self._clock, self.agent.name, self.mode, partition)
        self._gate.assigned(self.agent.name, partition, spent)
        await self._limits.assigned(self._reader, self._clock, self.agent.name, self.mode, assignment.partition)
        await look_back(
            self._reader, self._clock, self.agent.name, self.mode, assignment, first_unfinished, self._decided
        )

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """No more calls about their alerts: they would be cut off, and paid again by the next owner."""
        for assignment in assignments:
            self._gate.revoked(self.agent.name, assignment.partition)

    async def ended(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are another's: nothing about them is kept."""
        for assignment in assignments:
            self._forget(assignment.partition)

    def _spent_header(self, partition: int) -> Headers:
        spent = self._gate.spent(self.agent.name, partition)
        return ((SPENT, spent.encode()),) if spent is not None else ()

    def _forget(self, partition: int) -> None:
        self._gate.ended(self.agent.name, partition)
        self._logs.pop(partition, None)
        self._decided.forget(partition)
        self._limits.ended(partition)
        self._behind.discard(partition)
        for place in [place for place in self._contexts if place[0] == partition]:
            del self._contexts[place]

    async def handle(self, record: Record, attempt: int) -> None:
        """Decides one alert; returns when the decision is acknowledged. attempt: from 1.

        Raises: BadRecord; whatever is worth another attempt (Unavailable, retriable ModelFailure, the handler's own
        exceptions). On cancellation the decision may or may not be written; the next owner looks it up.
        """
        alert = self._decode(record)
        if self._is_repeated(record, alert):
            return
        context = self._context(record, alert)
        if self._is_too_old(record):
            outcome: Decision | Failure = Failure(Reason.TOO_OLD, "the alert had waited too long for a model call")
        elif self._switches.agent_is_off(self.agent.name):
            outcome = Failure(Reason.SWITCHED_OFF, "the agent is switched off; no model was asked")
        else:
            outcome = await answer_of(self.agent, alert, context)
        await self._conclude(record, alert, context, outcome, attempt)

    async def give_up(self, record: Record, error: Exception, attempts: int) -> None:
        """The last word on an alert that no attempt has settled: its fallback's decision, or a dead letter.

        Raises: Rejected by the log, also where that is what ended the attempts: it will refuse again.
        """
        if isinstance(error, Rejected):
            raise error
        if isinstance(error, BadRecord):
            await self._bury(record, error.reason)
            return
        try:
            alert = self._decode(record)
            if not self._is_repeated(record, alert):
                context = self._contexts.get((record.partition, record.offset)) or self._context(record, alert)
                await self._conclude(record, alert, context, failure_of(error, attempts), attempts)
        except (Unavailable, Fenced, Rejected):
            raise
        except BadRecord as bad:
            await self._bury(record, bad.reason)
        except Exception as unforeseen:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            logger.exception("%s: no decision about %s, a dead letter", self.agent.name, place)
            await self._bury(record, f"no decision could be made: {type(unforeseen).__name__}: {one_line(unforeseen)}")

    def _decode(self, record: Record) -> Alert:
        tag = _type_of(record)
        if tag not in self.agent.alert_types:
            raise record.bad(f"unknown alert type {tag!r}" if tag is not None else "has no alert_type")
        if record.key is None:
            raise record.bad("has no key")
        try:
            record.key.decode()
            alert = self._decoder.decode(record.value or b"")
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise record.bad(f"is no {tag}: {error}") from None
        assert isinstance(alert, Alert)
        longest = max(len(record.key), len(alert.alert_id.encode(errors="surrogatepass")))
        if longest > MAX_ID_BYTES:
            raise record.bad(f"its key or alert_id has {longest:,} bytes; {MAX_ID_BYTES:,} are taken")
        return alert

    def _is_repeated(self, record: Record, alert: Alert) -> bool:
        repeated = self._decided.get(record.partition, alert.alert_id) is not None
        self.statistics.repeated += repeated
        if repeated:
            self._contexts.pop((record.partition, record.offset), None)
        return repeated

    def _is_too_old(self, record: Record) -> bool:
        """Each is counted, under its reason; of a backlog as a whole there is one notice."""
        age_ms = self._clock.now_ms() - record.timestamp_ms
        if age_ms <= self.agent.max_age_ms:
            self._behind.discard(record.partition)
            return False
        if record.partition not in self._behind:
            self._behind.add(record.partition)
            logger.warning(
                "%s: alerts of %s/%s are %s s old, older than max_age; until that is over none is sent to a model",
                self.agent.name,
                record.topic,
                record.partition,
                age_ms // 1000,
            )
        return True

    def _context(self, record: Record, alert: Alert) -> Context:
        """For the next attempt, with what earlier ones have begun: the time, the deadline, and the model calls made."""
        place = (record.partition, record.offset)
        earlier = self._contexts.get(place)
        context = Context(
            agent=self.agent.name,
            answer_type=self.agent.decides,
            source=origin_of(record, alert),
            deadline=earlier.deadline if earlier else asyncio.get_running_loop().time() + self.agent.deadline_ms / 1000,
            clock=self._clock,
            gate=self._gate,
            reader=self._features,
            started_ms=earlier.started_ms if earlier else self._clock.now_ms(),
            partition=record.partition,
            models=earlier.carried_models() if earlier else [],
        )
        self._contexts[place] = context
        return context

    async def _conclude(
        self, record: Record, alert: Alert, context: Context, outcome: Decision | Failure, attempt: int
    ) -> None:
        """Policy, then the acknowledged record; a dead letter where nothing safe can be said."""
        agent = self.agent
        concluded = conclude(agent, alert, outcome, context.concerns(), self._barred(record))
        for failure in concluded.judged.failures if concluded is not None else ():
            said = f"{agent.name}: rule {failure.rule} of its policy failed, which is a concern: {failure.text}"
            self._notices.tell(f"rule {failure.rule}", said, failure.error)
        if isinstance(outcome, Failure):
            if concluded is None:
                await self._bury(record, f"{outcome.code}: {outcome.detail}")
                return
            self._notices.tell(
                outcome.code,
                f"{agent.name}: its fallback decides {one_line(alert.alert_id)}: {outcome.code}: {outcome.detail}",
            )
        assert concluded is not None
        if concluded.judged.unsafe:
            judged = concluded.judged
            said = f"{judged.decision.action} may not stand: {', '.join(judged.reasons)}"
            await self._bury(record, f"{said}; there is no fallback")
            return
        try:
            await self._write(record, alert, context, concluded, attempt)
        except RecordTooLarge as error:
            await self._conclude_barely(record, alert, context, concluded.answered, error, attempt)

    def _barred(self, record: Record) -> Barred:
        """What switches and limits do not allow now. What they allow is counted: `_write` gives it back where nothing is
        written."""

        def barred(action: str) -> Reason | None:
            if self._switches.bars(self.agent.name, action):
                return Reason.SWITCHED_OFF
            taken = self._limits.take(record.partition, _entity_of(record), action, self._clock.now_ms())
            return None if taken else Reason.LIMIT_REACHED

        return barred

    async def _conclude_barely(
        self,
        record: Record,
        alert: Alert,
        context: Context,
        answered: Decision | None,
        error: RecordTooLarge,
        attempt: int,
    ) -> None:
        """The fallback's decision with nothing beside it; a dead letter where there is none, or not even that fits."""
        failure = Failure(Reason.TOO_LARGE, one_line(error.reason))
        barely = conclude(self.agent, alert, failure, context.concerns(), self._barred(record))
        if barely is not None:
            try:
                barely = replace(barely, answered=answered)
                await self._write(record, alert, context, barely, attempt, strip=bare)
                return
            except RecordTooLarge as still:
                error = still
        await self._bury(record, f"its decision does not fit {DECISIONS}: {error.reason}")

    async def _write(
        self,
        record: Record,
        alert: Alert,
        context: Context,
        outcome: Outcome,
        attempt: int,
        strip: Callable[[DecisionRecord], DecisionRecord] = lambda whole: whole,
    ) -> None:
        entity, action = _entity_of(record), outcome.judged.decision.action
        log = self._logs.get(record.partition)
        if log is None:  # and with it went what was counted
            raise Fenced(f"{record.topic}/{record.partition}: the partition is another's now")
        decided_ms = self._clock.now_ms()
        hops = context.hops(decided_ms)

        def make(link: Link) -> DecisionRecord:
            whole = DecisionRecord(
                agent=self.agent.name,
                alert_id=alert.alert_id,
                alert_type=str(type(alert).__struct_config__.tag),
                entity=entity,
                alert_topic=record.topic,
                alert_partition=record.partition,
                alert_offset=record.offset,
                origin=context.source.text,
                mode=self.mode,
                decision=raw(outcome.judged.decision),
                answered=raw(outcome.answered),
                policy=change_between(outcome.asked, outcome.judged),
                reasons=outcome.reasons,
                attempt=attempt,
                features=tuple(context.seen),
                models=tuple(context.models),
                hops=hops,
                alert=raw(alert),
                writer=link.writer,
                number=link.number,
                previous=link.previous,
            )
            return strip(whole)

        try:
            await log.write(make)
        except BaseException:
            self._limits.give_back(record.partition, entity, action)
            raise
        self._decided.put(record.partition, alert.alert_id, True, decided_ms)
        self._contexts.pop((record.partition, record.offset), None)
        self.statistics.decided[action] += 1
        self.statistics.fallbacks.update(outcome.codes)

    async def _bury(self, record: Record, reason: str) -> None:
        await self._dead_letters.write(record, reason)
        self._contexts.pop((record.partition, record.offset), None)
        self.statistics.dead_letters += 1


def _entity_of(record: Record) -> str:
    return (record.key or b"").decode()


def _type_of(record: Record) -> str | None:
    header = record.header("alert_type")
    if header is not None:
        return header.decode(errors="replace")
    try:
        return msgspec.json.decode(record.value or b"", type=_Tag).alert_type
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _union(types: tuple[type[Alert], ...]) -> Any:
    union: Any = types[0]
    for other in types[1:]:
        union = union | other
    return union
