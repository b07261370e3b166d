"""The model fails in each of its ways, for some calls or for all, and gets well again."""

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from app.broker.base import Reader
from app.core.record import TopicPartition
from app.decisions.record import DECISIONS, Hops
from app.models.base import FailureCode
from tests.faults.ablations_model import REFUSED_S
from tests.faults.application import DEADLINE_VARIABLE, PARTITIONS
from tests.faults.history import Call, Published
from tests.faults.judging import judged
from tests.faults.lines import read_lines
from tests.faults.model import play
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Latency, Run
from tests.faults.workers import READY_S, Worker

FAULTS = (
    *("rate-limited", "rate-limited-2s", "overloaded", "server-error", "refusal", "truncated", "not-json"),
    *("trickle", "hang", "reset", "cut", "huge"),
)
"""429 without and with `retry-after`, 529, 500, ..., a slow drip, no answer for ever, RST, half an answer, one of 10 MB."""

REFUSALS = ("spend-limit", "unauthorized")
LATE_MS = 1_000
MOST_CALLS = 1.3
"""An alert, where every call fails."""

IN_FLIGHT_MS = 300
"""So long after the first refusal was sent a call may still begin that was on its way."""

ALL_DECIDED_S, RECOVERY_S = 60.0, 45.0
LOOK_S, PROBES = 0.3, 6
SOON = Latency(0.1, 0.6)


class Ended(NamedTuple):
    """How an alert ended. took_ms: from the handler's beginning until the decision was in the log."""

    partition: int
    at_ms: int
    took_ms: int
    action: str
    is_fallback: bool


class _Said(msgspec.Struct):
    action: str


class _Whole(msgspec.Struct):
    """As much of a decision as is asked here."""

    alert_id: str
    hops: Hops
    answered: msgspec.Raw
    decision: _Said


class Decisions:
    """`async with`, before the first one is of interest: the first decision about each alert, as they come."""

    def __init__(self, reader: Reader) -> None:
        self.first: dict[str, Ended] = {}
        self._reader = reader
        self._places = [TopicPartition(DECISIONS, partition) for partition in range(PARTITIONS)]
        self._next: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> "Decisions":
        self._next = dict(await self._reader.end_offsets(self._places))
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._reader.close()

    async def look(self) -> None:
        """Takes in what has been written since."""
        for place, end in (await self._reader.end_offsets(self._places)).items():
            if end > self._next[place]:
                async for records in self._reader.read(place, self._next[place], end):
                    for record in records:
                        whole = msgspec.json.decode(record.value or b"", type=_Whole)
                        took_ms = record.timestamp_ms - whole.hops.agent_ms
                        is_fallback = bytes(whole.answered) == b"null"
                        ended = Ended(place.partition, record.timestamp_ms, took_ms, whole.decision.action, is_fallback)
                        self.first.setdefault(whole.alert_id, ended)
                self._next[place] = end

    async def ends(self, alerts: Collection[Published]) -> list[Ended]:
        """How these alerts ended, when all have, or after a minute; without those that have not ended then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ALL_DECIDED_S
        while not all(one.alert_id in self.first for one in alerts) and loop.time() < deadline:
            await asyncio.sleep(LOOK_S)
            await self.look()
        return [self.first[one.alert_id] for one in alerts if one.alert_id in self.first]


async def model_fails(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """One pair of workers meets every fault. size: faults, shares, alerts of each, deadline_s."""
    of_each: dict[str, dict[str, Any]] = {}
    failures: list[str] = []
    async with (
        bench.run("model", SOON, environment=_in_a_hurry(size["deadline_s"])) as run,
        Decisions(bench.cluster.broker.reader()) as decisions,
    ):
        await run.workers.at_work(*(run.workers.start(ablate=ablate) for _ in range(2)))
        await evenly_spread(run)
        changes = _changes(run)
        await decisions.ends(await run.publish(size["alerts"]))
        for share in size["shares"]:
            for fault in size["faults"]:
                name = f"{fault} {share:.0%}"
                run.workers.note(name, "model", breaks=False)
                play(run.model.address, {fault: share})
                alerts = await run.publish(size["alerts"])
                ended = await decisions.ends(alerts)
                calls = [call for call in _calls(run) if call.alert_id in {one.alert_id for one in alerts}]
                recovery_s = await recovered(run, decisions)
                of_each[name] = _figures(ended, len(calls) / len(alerts), recovery_s)
                failures += [f"{name}: {text}" for text in _wrong(ended, len(alerts), size["deadline_s"])]
                failures += [f"{name}: {text}" for text in _wrong_of_all(of_each[name], ended, share)]
                bench.say(f"{name}: {of_each[name]}")
        if _changes(run) != changes:
            failures.append(f"partitions changed hands {_changes(run) - changes} times")
        outcome = await _concluded(run)
    outcome.failures += failures
    return _with_figures(outcome, of_each)


async def model_refuses(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """Each refusal meets a pair of fresh workers, which begin with one call at a time. size: faults, shares, alerts of each,
    deadline_s."""
    of_each: dict[str, dict[str, Any]] = {}
    failures: list[str] = []
    async with (
        bench.run("refusals", SOON, environment=_in_a_hurry(size["deadline_s"])) as run,
        Decisions(bench.cluster.broker.reader()) as decisions,
    ):
        for share in size["shares"]:
            for fault in size["faults"]:
                name = f"{fault} {share:.0%}"
                pair = [run.workers.start(ablate=(*ablate, "refusals_last_seconds")) for _ in range(2)]
                await run.workers.at_work(*pair)
                await evenly_spread(run)
                changes = _changes(run)
                run.workers.note(name, "model", breaks=False)
                play(run.model.address, {fault: share})
                alerts = await run.publish(size["alerts"] // 2)
                await decisions.ends(alerts)
                alerts += await run.publish(size["alerts"] - len(alerts))
                ended = await decisions.ends(alerts)
                calls = _calls_by_worker(run, alerts)
                recovery_s = await recovered(run, decisions)
                of_each[name] = _figures(ended, sum(map(len, calls.values())) / len(alerts), recovery_s)
                of_each[name]["most_calls_of_a_worker"] = max(map(len, calls.values()), default=0)
                failures += [f"{name}: {text}" for text in _wrong(ended, len(alerts), size["deadline_s"])]
                failures += [f"{name}: {text}" for text in _wrong_refusals(calls, fault, share)]
                failures += [f"{name}: {text}" for text in _not_said_once(pair)]
                if recovery_s is None:
                    failures.append(f"{name}: not recovered {RECOVERY_S:.0f} s after")
                if _changes(run) != changes:
                    failures.append(f"{name}: partitions changed hands")
                bench.say(f"{name}: {of_each[name]}")
                if not await run.settled():
                    failures.append(f"{name}: lag not 0 {LAG_LIMIT_S:.0f} s later")
                failures += [f"a worker ended with {code}" for code in await run.workers.stop() if code != 0]
        outcome = await _concluded(run)
    outcome.failures += failures
    return _with_figures(outcome, of_each)


def _in_a_hurry(deadline_s: float) -> dict[str, str]:
    """Two attempts fit into a deadline."""
    return {DEADLINE_VARIABLE: f"{deadline_s:g}s", "HEADRACE_MODEL_ATTEMPT_MS": f"{deadline_s * 400:.0f}"}


async def evenly_spread(run: Run) -> None:
    """Until every worker holds as many partitions as it is going to. Raises: TimeoutError."""
    async with asyncio.timeout(READY_S):
        while True:
            held = Counter(_owners(run).values())
            if len(held) == len(run.workers.alive) and set(held.values()) == {PARTITIONS // len(held)}:
                return
            await asyncio.sleep(LOOK_S)


def _owners(run: Run) -> dict[int, str]:
    """Which living worker holds which partition."""
    alive = {worker.name for worker in run.workers.alive}
    return {one.partition: one.worker for one in run.workers.owned() if not one.end_ms and one.worker in alive}


def _changes(run: Run) -> int:
    """How often a partition was given to a worker, or taken from it, so far."""
    return sum(len(worker.trace()) for worker in run.workers.all)


def _calls(run: Run) -> list[Call]:
    """Every call that was begun: the log has a line at the beginning of each, and mostly one at its end."""
    calls: dict[tuple[str, int], Call] = {}
    for call in read_lines(run.directory / "model.jsonl", Call):
        if call.end_ms or (call.alert_id, call.number) not in calls:
            calls[call.alert_id, call.number] = call
    return list(calls.values())


def _calls_by_worker(run: Run, alerts: Collection[Published]) -> dict[str, list[Call]]:
    partitions, owners = {one.alert_id: one.partition for one in alerts}, _owners(run)
    found: dict[str, list[Call]] = {}
    for call in _calls(run):
        if call.alert_id in partitions:
            found.setdefault(owners[partitions[call.alert_id]], []).append(call)
    return found


async def recovered(run: Run, decisions: Decisions) -> float | None:
    """Heals the model. Returns: seconds until every worker has decided by an answer again; None where one has not."""
    play(run.model.address, {})
    run.workers.note("healed", "model", breaks=False)
    healed_ms, loop = run.workers.faults[-1].at_ms, asyncio.get_running_loop()
    owners, deadline, probes = _owners(run), loop.time() + RECOVERY_S, list[Published]()
    while loop.time() < deadline:
        probes += await run.publish(PROBES)
        await asyncio.sleep(LOOK_S)
        await decisions.look()
        answered = [decisions.first[one.alert_id] for one in probes if one.alert_id in decisions.first]
        soonest: dict[str, int] = {}
        for one in answered:
            if not one.is_fallback:
                owner = owners.get(one.partition, "")
                soonest[owner] = min(soonest.get(owner, one.at_ms), one.at_ms)
        if soonest.keys() >= set(owners.values()):
            await decisions.ends(probes)
            return round(max(0, max(soonest.values()) - healed_ms) / 1000, 1)
    return None


def _figures(ended: Sequence[Ended], calls_an_alert: float, recovery_s: float | None) -> dict[str, Any]:
    return {
        "calls_an_alert": round(calls_an_alert, 2),
        "fallbacks": sum(one.is_fallback for one in ended),
        "slowest_s": round(max((one.took_ms for one in ended), default=0) / 1000, 2),
        "recovery_s": recovery_s,
    }


def _wrong(ended: Sequence[Ended], alerts: int, deadline_s: float) -> list[str]:
    """Of any fault: nothing late, and no failure that approves."""
    open_still = alerts - len(ended)
    late = sum(one.took_ms > deadline_s * 1000 + LATE_MS for one in ended)
    approved = sum(one.action == "approve" for one in ended)
    acted = sum(one.is_fallback and one.action != "review" for one in ended)
    found = [f"{open_still} alerts have no decision after {ALL_DECIDED_S:.0f} s"] if open_still else []
    found += [f"{late} alerts ended later than a second after their deadline"] if late else []
    found += [f"{approved} alerts were approved, as no model has said"] if approved else []
    return found + ([f"{acted} failures were acted on"] if acted else [])


def _wrong_of_all(figures: Mapping[str, Any], ended: Sequence[Ended], share: float) -> list[str]:
    """Where every call fails: no decision is an answer, and few calls are made. In any case it gets well."""
    found = [f"not recovered {RECOVERY_S:.0f} s after"] if figures["recovery_s"] is None else []
    if share < 1:
        return found
    if figures["calls_an_alert"] > MOST_CALLS:
        found.append(f"{figures['calls_an_alert']} calls an alert")
    if figures["fallbacks"] < len(ended):
        found.append(f"{len(ended) - figures['fallbacks']} alerts are decided by answers that never came")
    return found


def _wrong_refusals(calls: Mapping[str, Sequence[Call]], fault: str, share: float) -> list[str]:
    """After one that was refused no call begins until it is time to try again. Where all are, a worker that begins with
    one call at a time has none in flight meanwhile."""
    found = []
    in_flight_ms = 0 if share == 1 else IN_FLIGHT_MS
    for worker, made in calls.items():
        told_ms, vain = 0, 0
        for call in sorted(made, key=lambda one: one.start_ms):
            vain += told_ms + in_flight_ms < call.start_ms < told_ms + REFUSED_S * 1000
            vain += share == 1 and 0 < call.start_ms <= told_ms
            if call.fault == fault and call.start_ms > told_ms + in_flight_ms:
                told_ms = call.end_ms
        if vain:
            found.append(f"{worker} made {vain} calls in vain after the first that was refused")
    return found


def _not_said_once(workers: Sequence[Worker]) -> list[str]:
    said = {worker.name: worker.log.read_text().count("REFUSES ALL CALLS") for worker in workers}
    return [f"{name} said {times} times that all calls are refused" for name, times in said.items() if times != 1]


async def _concluded(run: Run) -> Outcome:
    """Alerts may fall back for any reason here."""
    verdict, _, failures = await judged(run, causes=[code.value for code in FailureCode])
    return Outcome(verdict, failures)


def _with_figures(outcome: Outcome, of_each: Mapping[str, dict[str, Any]]) -> Outcome:
    again = [one["recovery_s"] for one in of_each.values() if one["recovery_s"] is not None]
    outcome.figures |= {
        "answers_again_s": max(again, default=None),
        "faults_of_the_model": len(of_each),
        "slowest_end_s": max(one["slowest_s"] for one in of_each.values()),
        "of_each": dict(of_each),
    }
    return outcome


ROWS = (
    Row(
        "model",
        "A model that limits, fails, refuses, cuts, drips, hangs, resets or floods: every alert ends by its deadline, which "
        "counts from its handler's start, and one second, in its fallback where there is no answer; at most "
        f"{MOST_CALLS} calls an alert where all fail, no partition changes hands, and it goes on by itself when the model is "
        "well. Failure never approves.",
        model_fails,
        full={"faults": FAULTS, "shares": (1.0, 0.3), "alerts": 150, "deadline_s": 5.0},
        small={"faults": ("overloaded", "hang"), "shares": (1.0,), "alerts": 40, "deadline_s": 2.0},
        ablations=(
            Ablation(
                "breaker_never_opens",
                {"faults": ("server-error",), "shares": (1.0,), "alerts": 120, "deadline_s": 3.0},
                ("calls an alert",),
            ),
            Ablation(
                "deadlines_are_not_kept",
                {"faults": ("hang",), "shares": (1.0,), "alerts": 60, "deadline_s": 2.0},
                ("later than a second after their deadline",),
            ),
            Ablation(
                "failures_approve",
                {"faults": ("truncated",), "shares": (1.0,), "alerts": 60, "deadline_s": 3.0},
                ("approved, as no model has said",),
            ),
        ),
    ),
    Row(
        "model without credit or key",
        "A spend limit or a wrong key costs one call a process, and what was in flight; one line says so, every alert ends in "
        "its fallback at once, and the calls that try it again find when it is put right. Here they do so after "
        f"{REFUSED_S:.0f} seconds, where it is five minutes otherwise.",
        model_refuses,
        full={"faults": REFUSALS, "shares": (1.0, 0.3), "alerts": 150, "deadline_s": 4.0},
        small={"faults": ("spend-limit",), "shares": (1.0,), "alerts": 40, "deadline_s": 2.0},
        ablations=(
            Ablation(
                "refusals_count_as_answers",
                {"faults": ("spend-limit",), "shares": (1.0,), "alerts": 60, "deadline_s": 3.0},
                ("calls in vain",),
            ),
        ),
    ),
)
