"""From decisions to effects: the standing decision of each (alert, agent) is applied, each of its effects once.

The first `live` decision in the log stands; it is entered on `agent.effects` before anything is done, and every later one
is passed over. An effect that fails is tried again under the same key until the dispatcher's bound; then it is `failed`,
a person is asked on `agent.reviews`, and the lane goes on. So it is where an operator has switched off the action by then:
its effect is `withheld`. Nothing is called while this process does not know the switches.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec

from app.broker.base import Assignment, Producer, Reader
from app.broker.dead_letters import DeadLetters
from app.core.clock import Clock
from app.core.errors import BadRecord, Fenced, HeadraceError, Rejected, Unavailable
from app.core.notices import Notices
from app.core.record import Record
from app.core.text import one_line
from app.decisions.agent import Action, Agent
from app.decisions.decided import LOOK_BACK_MS, written_ms
from app.decisions.decision import Decision, Severity
from app.decisions.effects import Effects, Poster, Receivers, review_request, write_review
from app.decisions.ledger import Ledger, Pair, reached
from app.decisions.log import ALERT_CUT
from app.decisions.outages import waited_out
from app.decisions.record import (
    DECISIONS,
    DecisionRecord,
    EffectRecord,
    EffectState,
    EffectStatus,
    entity_of,
    idempotency_key,
    is_forgotten,
    sha256,
)
from app.decisions.remembered import HORIZON_MS, Remembered
from app.decisions.switches import Switches
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import Crashed
from app.streams.graph import Alert

logger = logging.getLogger(__name__)

GROUP = "headrace.actions"

RETRY = RetryPolicy(max_attempts=12, first_delay_ms=500, longest_delay_ms=60_000, jitter=0.5)
"""For about four minutes a receiver may be away before its effects become a person's task."""

MEND_S = 60.0

AFTER_CLAIM_SECONDS = 5.0
"""How long a claimed call waits for the switches. A claim that has come through means that the broker is there, so as a
rule they are known within a second; a drain lasts longer than this."""

HANDLER_SECONDS = 15.0
"""How long a handler may take beyond the time that its receiver has: for its own work, and for writing a review."""


@dataclass(frozen=True)
class Standing:
    """A live decision as the log holds it, decoded with its agent's types."""

    record: DecisionRecord
    offset: int
    written_ms: int
    """By the broker's clock."""
    sha256: str
    agent: Agent[Any]
    decision: Decision
    alert: Alert | None
    """None where not even the alert fitted into the record."""


@dataclass
class ActionStatistics:
    """Counts since the start of this process."""

    effects: Counter[str] = field(default_factory=Counter)
    """Ended effects by `name:state`."""
    superseded: int = 0
    """Live decisions behind the one that stands."""
    not_live: int = 0
    dead_letters: int = 0


class ActionsWork:
    """What a dispatcher does with decisions: a `dispatch.consumer.Work`. The only holder of effect credentials."""

    def __init__(
        self,
        agents: Iterable[Agent[Any]],
        *,
        producer: Producer,
        reader: Reader,
        poster: Poster,
        receivers: Receivers,
        clock: Clock,
        switches: Switches,
    ) -> None:
        self.topics: Sequence[str] = (DECISIONS,)
        self.group = GROUP
        self.statistics = ActionStatistics()
        self._agents = {agent.name: agent for agent in agents}
        self._producer = producer
        self._reader = reader
        self._poster = poster
        self._receivers = receivers
        self._clock = clock
        self._switches = switches
        self._dead_letters = DeadLetters(producer, GROUP)
        self._notices = Notices(logger, logging.WARNING)
        self._ledgers: dict[int, Ledger] = {}
        self._ended: Remembered[Pair, int] = Remembered()
        self._passed_over: set[str] = set()
        self._handler_seconds = receivers.timeout_ms / 1000 + HANDLER_SECONDS

    def passes_over(self, record: Record) -> bool:
        """Decisions that say in their header that they are not live, and those that were forgotten."""
        if is_forgotten(record):
            return True
        mode = record.header("mode")
        not_live = mode is not None and mode != b"live"
        self.statistics.not_live += not_live
        return not_live

    def lane(self, record: Record) -> bytes | None:
        """Decisions about one entity are applied in order."""
        return entity_of(record)

    async def assigned(self, assignment: Assignment, first_unfinished: int) -> None:
        """Restores what stands and how far its effects are. Raises: Unavailable, Rejected."""
        self._ended.forget(assignment.partition)
        self._ledgers[assignment.partition] = await self._restored(assignment, first_unfinished)

    async def _restored(self, assignment: Assignment, first_unfinished: int) -> Ledger:
        """The ledger of a partition: a day back, and farther where an unfinished decision is older."""
        now_ms = self._clock.now_ms()
        writer = f"{GROUP}/{assignment.partition}/{assignment.epoch}/{now_ms}"
        clients = self._producer, self._reader, self._clock
        ledger = Ledger(*clients, assignment.partition, writer, self._ended, self._passed_over)
        oldest_ms = await written_ms(self._reader, self._clock, assignment.place, first_unfinished)
        await ledger.restore(min(now_ms - HORIZON_MS, oldest_ms - LOOK_BACK_MS))
        return ledger

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """An effect waits for nothing but its retry: what runs may end."""

    async def ended(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are another's: nothing about them is kept."""
        for assignment in assignments:
            self._ledgers.pop(assignment.partition, None)
            self._ended.forget(assignment.partition)

    async def mend(self) -> None:
        """Every minute, until cancelled: what a frozen owner wrote behind newer states is overwritten by those."""
        while True:
            await asyncio.sleep(MEND_S)
            for ledger in list(self._ledgers.values()):
                try:
                    written = await ledger.mend()
                except Unavailable as error:
                    self._notices.tell("mend", f"{ledger.place}: not looked for older states, later: {one_line(error)}")
                    break
                if written:
                    logger.warning(
                        "%s: %d states written again behind older ones of another writer", ledger.place, written
                    )

    async def handle(self, record: Record, attempt: int) -> None:
        """Applies one decision where it stands; returns when every effect has come to its end, acknowledged.

        Raises: BadRecord; Rejected by the log; Unavailable, or what an action's handler raised, when an effect must be
        tried again.
        On cancellation an effect may be called without its state saying so: the next owner repeats it under the same
        key, or reports it where the receiver must not be called twice.
        """
        standing = self._decode(record)
        if standing.record.mode != "live":
            self.statistics.not_live += 1
            return
        await self._switches.hold()  # an attempt is for a time when the broker is there
        state = await self._entered(standing)
        if state is None:
            return
        failures: list[Exception] = []
        for name in state.effects:
            if reached(state, name).ended:
                continue
            try:
                state = await self._apply(standing, state, name)
            except (Fenced, Rejected):
                raise
            except Exception as error:  # noqa: BLE001 - whatever an action raises is tried again
                self._say_failed(state.effects[name].key, name, error)
                state = self._ledger(standing).get(standing.record.alert_id, standing.agent.name) or state
                failures.append(error)
        if failures:
            raise failures[0]

    def _say_failed(self, key: str, name: str, error: Exception) -> None:
        """An absent receiver fails many effects at once; only what an action's author did not expect needs its traceback."""
        text = f"effect {one_line(key)} failed, and is tried again: {one_line(error)}"
        if isinstance(error, HeadraceError):
            self._notices.tell(name, text)
        else:
            self._notices.tell(f"{name}: {type(error).__name__}", text, error)

    async def give_up(self, record: Record, error: Exception, attempts: int) -> None:
        """Ends what no attempt has ended: each open effect is `failed`, or `unknown` once called, and a person is asked.

        Raises: Rejected, also where that is what ended the attempts: the log has refused, and will again.
        """
        if isinstance(error, Rejected):
            raise error
        try:
            standing = self._decode(record)
            state = await self._entered(standing) if standing.record.mode == "live" else None
            for name in state.effects if state is not None else ():
                assert state is not None
                at = reached(state, name)
                if not at.ended:
                    ended = EffectState.UNKNOWN if at is EffectState.CALLED else EffectState.FAILED
                    detail = _given_up(state.effects[name], error, attempts)
                    state = await self._report(standing, state, name, ended, detail)
        except (Unavailable, Fenced, Rejected):
            raise
        except BadRecord as bad:
            await self._bury(record, bad.reason)
        except Exception as unforeseen:
            place = f"{record.topic}/{record.partition}/{record.offset}"
            logger.exception("effects of %s cannot be ended, a dead letter", place)
            said = f"its effects could not be ended: {type(unforeseen).__name__}: {one_line(unforeseen)}"
            await self._bury(record, said)

    async def _bury(self, record: Record, reason: str) -> None:
        await self._dead_letters.write(record, reason)
        self.statistics.dead_letters += 1

    def _decode(self, record: Record) -> Standing:
        value = record.value or b""
        try:
            decided = msgspec.json.decode(value, type=DecisionRecord)
            if decided.alert_partition != record.partition:
                raise record.bad(f"stands beside the alerts of another partition, {decided.alert_partition}")
            agent = self._agents.get(decided.agent)
            if agent is None:
                raise record.bad(f"unknown agent {decided.agent!r}; is this the application that decided?")
            decision = msgspec.json.decode(decided.decision, type=agent.decides)
            alert_type = agent.alert_types.get(decided.alert_type)
            if alert_type is None:
                raise record.bad(f"agent {agent.name} declares no alert type {decided.alert_type!r}")
            is_cut = ALERT_CUT in decided.reasons
            alert = None if is_cut else msgspec.json.decode(decided.alert, type=alert_type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise record.bad(f"is no decision: {error}") from None
        return Standing(decided, record.offset, record.timestamp_ms, sha256(value), agent, decision, alert)

    def _ledger(self, standing: Standing) -> Ledger:
        ledger = self._ledgers.get(standing.record.alert_partition)
        if ledger is None:
            raise Fenced(f"{DECISIONS}/{standing.record.alert_partition}: the partition is another's now")
        return ledger

    async def _entered(self, standing: Standing) -> EffectRecord | None:
        """The acknowledged entry of this decision; None when an earlier one stands, or all its effects have ended."""
        ledger = self._ledger(standing)
        pair = standing.record.alert_id, standing.agent.name
        entry = ledger.get(*pair)
        if entry is not None and entry.decision_sha256 == standing.sha256:
            return entry  # also where it was written twice, and compaction has removed the one that was entered
        standing_offset = ledger.standing_offset(*pair)
        if standing_offset is not None:
            self.statistics.superseded += standing_offset != standing.offset
            return None
        now_ms = self._clock.now_ms()
        effects = {
            action.name: EffectStatus(
                EffectState.INTENDED,
                idempotency_key(standing.agent.name, action.name, standing.record.alert_id),
                action.receiver,
                now_ms,
            )
            for action in standing.agent.actions(standing.decision.action)
        }
        entry = EffectRecord(
            alert_id=standing.record.alert_id,
            agent=standing.agent.name,
            action=standing.decision.action,
            decision_offset=standing.offset,
            decision_sha256=standing.sha256,
            effects=effects,
            writer=ledger.writer,
        )
        await ledger.enter(entry)
        return entry

    async def _apply(self, standing: Standing, state: EffectRecord, name: str) -> EffectRecord:
        """Makes one effect and writes how it ended. Raises what is worth another attempt."""
        action = standing.agent.effect(name)
        if action is None:
            detail = f"agent {standing.agent.name} declares it no more"
            return await self._report(standing, state, name, EffectState.FAILED, detail)
        if standing.alert is None:
            detail = f"the alert did not fit; it is {standing.record.alert_topic}/{standing.record.alert_partition}"
            detail = f"{detail}/{standing.record.alert_offset}"
            return await self._report(standing, state, name, EffectState.FAILED, detail)
        at_most_once = state.effects[name].receiver == "at_most_once"
        if at_most_once and reached(state, name) is EffectState.CALLED:
            detail = "the worker that claimed its call has ended; it is not known whether the receiver applied it"
            return await self._report(standing, state, name, EffectState.UNKNOWN, detail)
        withheld = await self._withheld(standing)
        if at_most_once and not withheld:
            called = self._status(state, name, EffectState.CALLED, "")
            state = await self._ledger(standing).claim(state, name, called)
            withheld = await self._withheld_after_claim(standing)
        while not withheld:
            effects, failure = self._effects(standing, state, name, standing.alert), None
            try:
                await self._call(action, standing.decision, effects)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises, it has come to something
                failure = error
            if not effects.came_late:
                return await self._after_call(standing, state, name, effects.outcome, failure)
            withheld = await (self._withheld_after_claim if at_most_once else self._withheld)(standing)
        return await self._report(standing, state, name, EffectState.WITHHELD, withheld)

    def _effects(self, standing: Standing, state: EffectRecord, name: str, alert: Alert) -> Effects:
        return Effects(
            name,
            state.effects[name].key,
            alert=alert,
            record=standing.record,
            decision_offset=standing.offset,
            poster=self._poster,
            receivers=self._receivers,
            producer=self._producer,
            clock=self._clock,
            may_begin=lambda: self._switches.steady and not self._why_withheld(standing),
            at_most_once=state.effects[name].receiver == "at_most_once",
        )

    async def _after_call(
        self, standing: Standing, state: EffectRecord, name: str, outcome: EffectState | None, failure: Exception | None
    ) -> EffectRecord:
        """Writes what a handler's run came to. Raises: what it raised, where it may be tried again."""
        if isinstance(failure, Rejected):
            return await self._report(standing, state, name, EffectState.FAILED, one_line(failure))
        if failure is not None and outcome is not None:
            said = f"effect {one_line(state.effects[name].key)} is made, and its handler failed behind it"
            self._notices.tell(f"{name}: behind its effect", f"{said}: {one_line(failure)}", failure)
        elif failure is not None:
            if state.effects[name].receiver != "at_most_once":
                raise failure
            detail = f"{type(failure).__name__}: {one_line(failure)}"
            return await self._report(standing, state, name, EffectState.UNKNOWN, detail)
        if outcome is None:
            detail = "the handler ended without making its effect"
            return await self._report(standing, state, name, EffectState.FAILED, detail)
        return await self._end(standing, state, name, outcome, "")

    async def _withheld(self, standing: Standing) -> str:
        """Why the effects of a decision may not be made now; empty where they may. Waits while nobody can tell: what an
        operator has switched off may not be known here yet. That is no failed attempt."""
        await self._switches.hold()
        return self._why_withheld(standing)

    def _why_withheld(self, standing: Standing) -> str:
        """As far as it is known now."""
        agent, action = standing.agent, standing.decision.action
        asks_a_person = (
            agent.fallback is not None
            and action == agent.fallback.action
            and standing.decision.severity is Severity.REVIEW
        )
        return self._switches.withholds(agent.name, action, standing.written_ms, asks_a_person=asks_a_person)

    async def _withheld_after_claim(self, standing: Standing) -> str:
        """Asks again, since the claim may have waited for the broker. Who waited here until its worker stops would leave
        a call that nobody made to a next owner who cannot know that: so after a while it is withheld, and said so."""
        with anyio.move_on_after(AFTER_CLAIM_SECONDS):
            return await self._withheld(standing)
        return f"not called: for {AFTER_CLAIM_SECONDS:.0f} s it was not known what is switched off"

    async def _call(self, action: Action, decision: Decision, effects: Effects) -> None:
        """Runs a handler. Raises: TimeoutError when it took too long; what it raises."""
        limit = asyncio.timeout(self._handler_seconds)
        try:
            async with limit:
                await action.handler(decision, effects)
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired() and effects.outcome is None:
            raise TimeoutError(f"the handler did not end within {self._handler_seconds:.0f} s")

    async def _report(
        self, standing: Standing, state: EffectRecord, name: str, ended: EffectState, detail: str
    ) -> EffectRecord:
        """Asks a person, then ends the effect: a crash in between asks once more under the same id.

        While the broker is away this waits: what became of an effect is known by now, and a further attempt would not
        know it.
        """
        reason = f"effect {name} is {ended.value}: {detail}"
        request = review_request(
            standing.record, state.effects[name].key, "effect", reason, standing.offset, self._clock.now_ms()
        )
        await waited_out(f"a review of effect {name}", lambda: write_review(self._producer, request, standing.record))
        return await self._end(standing, state, name, ended, detail)

    async def _end(
        self, standing: Standing, state: EffectRecord, name: str, ended: EffectState, detail: str
    ) -> EffectRecord:
        """Writes how an effect has ended, however long the broker is away: see `_report`."""
        ledger, status = self._ledger(standing), self._status(state, name, ended, detail)
        further = await waited_out(f"the end of effect {name}", lambda: ledger.advance(state, name, status))
        self.statistics.effects[f"{name}:{ended.value}"] += 1
        return further

    def _status(self, state: EffectRecord, name: str, reached_state: EffectState, detail: str) -> EffectStatus:
        return msgspec.structs.replace(
            state.effects[name], state=reached_state, at_ms=self._clock.now_ms(), detail=detail
        )


def _given_up(status: EffectStatus, error: Exception, attempts: int) -> str:
    """What a person must know of an effect that no attempt has ended: whether its receiver may have been called."""
    said = one_line(error) if isinstance(error, Crashed) else f"{one_line(error)} (attempt {attempts})"
    if status.state is EffectState.INTENDED and status.receiver == "at_most_once":
        return f"not called: {said}"
    if isinstance(error, Crashed):
        return f"not called again, and it may have been called before: {said}"
    return said
