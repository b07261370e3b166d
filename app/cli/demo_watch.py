"""Snapshots of a running demo for the view: counts from the worker, hops and latest decisions from the logs."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from app.cli.demo_view import DemoSnapshot, HopLatency, SeenAgent, SeenDecision
from app.core.record import Record
from app.decisions.record import DECISIONS, EFFECTS, HOPS, DecisionRecord, EffectRecord, Hops
from app.demo import Demo

KEPT = 20_000
"""Latencies that are kept of each hop."""

LONG_AGO_MS = 60_000
"""An event, or a window's end, that is older when it is read tells nothing of how long events are under way."""

TO_EFFECT, TOTAL = "decision to effect", "engine to decision"


class _Shown(msgspec.Struct):
    """As much of a decision as is shown."""

    action: str
    reason: str


class DemoWatch:
    """Reads what is new in the logs at each snapshot."""

    def __init__(self, demo: Demo, planned: int) -> None:
        self._demo = demo
        self._planned = planned
        self._started_ms = demo.clock.now_ms()
        self._read: dict[tuple[str, int], int] = {}
        self._times: dict[str, deque[int]] = {
            name: deque(maxlen=KEPT) for name in (*(name for name, _, _ in HOPS), TO_EFFECT, TOTAL)
        }
        self._decided_ms: dict[str, int] = {}
        self._latest: deque[SeenDecision] = deque(maxlen=10)

    def snapshot(self) -> DemoSnapshot:
        """The demo now."""
        for record in self._new(DECISIONS):
            self._see_decision(msgspec.json.decode(record.value or b"", type=DecisionRecord))
        for record in self._new(EFFECTS):
            self._see_effect(msgspec.json.decode(record.value or b"", type=EffectRecord))
        seconds = (self._demo.clock.now_ms() - self._started_ms) / 1000
        summary = self._demo.summary("system", seconds)
        return DemoSnapshot(
            elapsed_s=seconds,
            planned=self._planned,
            events=summary.events,
            malformed=summary.malformed,
            late=summary.late,
            agents=tuple(
                SeenAgent(
                    name=agent.name,
                    alerts={tag: summary.alerts[tag] for tag in agent.alert_types},
                    decisions=summary.decisions[agent.name],
                    severities=agent.decides.severities,
                )
                for agent in self._demo.app.agents.values()
                if agent.name in summary.decisions
            ),
            effects=summary.effects,
            hops=tuple(_latency(name, times) for name, times in self._times.items() if times),
            latest=tuple(self._latest),
        )

    def _new(self, topic: str) -> Iterator[Record]:
        for place, log in self._demo.broker.logs.items():
            if place.topic == topic:
                yield from log[self._read.get(place, 0) :]
                self._read[place] = len(log)

    def _see_decision(self, record: DecisionRecord) -> None:
        hops: Hops = record.hops
        for name, start, end in HOPS:
            took_ms = max(0, getattr(hops, end) - getattr(hops, start))
            if getattr(hops, start) and getattr(hops, end) and took_ms < LONG_AGO_MS:
                self._times[name].append(took_ms)
        self._times[TOTAL].append(hops.decided_ms - hops.received_ms)
        self._decided_ms[record.alert_id] = hops.decided_ms
        self._latest.appendleft(seen(record))

    def _see_effect(self, record: EffectRecord) -> None:
        decided_ms = self._decided_ms.get(record.alert_id)
        if decided_ms is None or not all(effect.state.ended for effect in record.effects.values()):
            return
        for effect in record.effects.values():
            self._times[TO_EFFECT].append(max(0, effect.at_ms - decided_ms))


def seen(record: DecisionRecord) -> SeenDecision:
    """A decision as a person sees it."""
    shown = msgspec.json.decode(record.decision, type=_Shown)
    alert = msgspec.json.decode(record.alert)
    amount = f"${alert['amount_usd']:,.2f}" if "amount_usd" in alert else ""
    reason = shown.reason
    if record.policy is not None and record.policy.answered != shown.action:
        reason = f"{', '.join(record.policy.reasons)}, else {record.policy.answered}"
    return SeenDecision(record.agent, shown.action, record.entity, amount, reason)


def _latency(name: str, times_ms: Sequence[int]) -> HopLatency:
    ordered = sorted(times_ms)
    return HopLatency(name, *(ordered[math.ceil(len(ordered) * rank) - 1] for rank in (0.5, 0.99)))
