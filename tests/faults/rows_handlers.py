"""Handlers that raise, once or always, and handlers that take their process with them."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from tests.faults.application import KILLED_BY, KILLS, PARTITIONS, RAISES_ALWAYS, RAISES_ONCE
from tests.faults.checker import standing_decisions
from tests.faults.history import Decided, History
from tests.faults.judging import judged
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.rows_kills import CRASHED, repeated_beyond
from tests.faults.run import LAG_LIMIT_S, Latency
from tests.faults.workers import Worker

DEATHS, MOST_DEATHS = 3, 4
"""After three processes an alert is decided by its fallback; after four where it lies behind a backlog."""
OVERTAKEN_MS = 1_000
"""An alert that waits while its worker decides others of other partitions, so much younger, waits for its partition."""

RAISED = ("handler_failed",)
POISON_KEY = "poison"
ODD = 1_000
"""One alert in so many is published twice, and beside as many stands a record that is none: three a piece at least."""
BRISK = Latency(0.02, 0.2)
"""Answers come before the attempts at a poisonous alert are over, or it could not be seen that its partition goes on."""


async def raising(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: alerts, backlog. One alert in a hundred raises at its first attempt, all of one key at every attempt. A few
    come twice, and a few records between them are none."""
    async with bench.run("raising", BRISK) as run:
        workers = run.workers
        await workers.at_work(*(workers.start(ablate=ablate) for _ in range(2)))
        alerts, pieces = size["alerts"], size.get("pieces", 3)
        for piece in range(1, pieces + 1):
            await run.publish(1, RAISES_ALWAYS, f"{run.name}-{POISON_KEY}")
            await run.publish(max(1, alerts // 100 // pieces), RAISES_ONCE)
            await run.feed(alerts * piece // pieces, size["backlog"])
            odd = max(3, alerts // ODD // pieces)
            await asyncio.gather(run.publish_undecodable(odd), run.publish_again(odd))
            bench.say(f"{len(run.published):,} of {alerts:,} alerts published")
        verdict, history, failures = await judged(run, size.get("settle_s", LAG_LIMIT_S), causes=RAISED)
    deaths = verdict.workers_died
    if deaths:
        failures.append(f"{deaths} workers died")
    if verdict.repeated:
        failures.append(f"{verdict.repeated} model calls repeated")
    if verdict.dead_again:
        failures.append(f"{verdict.dead_again} dead letters written again")
    if verdict.decided_again:
        failures.append(f"{verdict.decided_again} alerts decided again")
    failures += _judged_as_raised(history)
    if verdict.recovery_s is None or verdict.recovery_s > LAG_LIMIT_S:
        failures.append(f"lag 0 after {verdict.recovery_s} s")
    twice = len(history.published) - len({one.alert_id for one in history.published})
    return Outcome(
        verdict,
        failures,
        {"worker_deaths": deaths, "published_twice": twice, "undecodable": len(history.undecodable)},
    )


def _kind(alert_id: str) -> str:
    return alert_id.rpartition(":")[2].partition("-")[0]


def _judged_as_raised(history: History) -> list[str]:
    """What is wrong with the decisions about alerts whose handlers raised, and of those behind the poison."""
    standing = standing_decisions(history)
    failures = []
    for alert_id, decision in standing.items():
        kind = _kind(alert_id)
        if kind == RAISES_ONCE and (decision.attempt != 2 or decision.is_fallback):
            failures.append(f"{alert_id} raised once: attempt {decision.attempt}, {decision.codes}")
        if kind == RAISES_ALWAYS and not (decision.is_fallback and "handler_failed" in decision.codes):
            failures.append(f"{alert_id} raises always: {decision.action} {decision.codes}")
        if kind not in (RAISES_ONCE, RAISES_ALWAYS) and decision.is_fallback:
            failures.append(f"{alert_id} fell back: {decision.codes}")
    poisons = [one for one in standing.values() if _kind(one.alert_id) == RAISES_ALWAYS]
    went_on = {one.alert_id: _went_on(history, one, standing) for one in poisons}
    failures += [
        f"no alert behind {alert_id} was decided before it" for alert_id, went in went_on.items() if went is False
    ]
    if True not in went_on.values():
        failures.append("no partition was seen to go on")
    return failures[:5]


def _went_on(history: History, poison: Decided, standing: dict[str, Decided]) -> bool | None:
    """Whether one behind it in its partition was decided before it, in the order of the log, whose times are one where the
    broker stood still. False where none was, though their worker decided younger ones of other partitions meanwhile; None
    where there was no time for either."""
    place = next(one for one in history.published if one.alert_id == poison.alert_id)
    first = {one.alert_id: one for one in reversed(history.published)}  # an alert may be published again
    decided = [one for one in first.values() if one.alert_id in standing]
    behind = [one for one in decided if one.partition == place.partition and one.offset > place.offset]
    if any(standing[one.alert_id].offset < poison.offset for one in behind):
        return True
    owner = {one.partition: one.worker for one in history.owned}
    waiting = [one.at_ms for one in behind if _kind(one.alert_id) not in (RAISES_ONCE, RAISES_ALWAYS)]
    meanwhile = [
        one.at_ms
        for one in decided
        if one.partition != place.partition
        and owner.get(one.partition) == owner.get(place.partition)
        and standing[one.alert_id].at_ms < poison.at_ms
    ]
    is_overtaken = bool(waiting and meanwhile) and min(waiting) + OVERTAKEN_MS < max(meanwhile)
    return False if is_overtaken else None


async def killing(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """Workers are started again as a platform would. size: alerts, poisons, backlog."""
    async with bench.run("killing", QUICK) as run:
        workers = run.workers
        await workers.at_work(*(workers.start(ablate=ablate) for _ in range(2)))
        deaths = Counter[str]()

        async def supervise() -> None:
            seen = set(workers.all)
            while True:
                for worker in [one for one in seen if one.code is not None]:
                    seen.discard(worker)
                    culprit = _culprit(worker)
                    if culprit:  # else it has died by itself, which the checker counts
                        workers.note("killed by its handler", worker.name)
                    deaths[culprit] += 1
                    bench.say(f"worker death {deaths.total()}")
                    if deaths.total() <= size.get("most_deaths", 20):
                        seen.add(workers.start(ablate=ablate))
                await asyncio.sleep(0.05)

        supervising = asyncio.create_task(supervise())
        poisons = size["poisons"]
        for _ in range(poisons):
            await run.publish(1, KILLS)
            await run.feed(len(run.published) + size["alerts"] // poisons, size["backlog"])
            await run.settled(size.get("settle_s", LAG_LIMIT_S))
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        verdict, history, failures = await judged(run, size.get("settle_s", LAG_LIMIT_S), causes=CRASHED)
    crashed = {
        alert_id
        for alert_id, decision in standing_decisions(history).items()
        if decision.is_fallback and "crashed" in decision.codes
    }
    culprits = {one.alert_id for one in history.published if _kind(one.alert_id) == KILLS}
    failures += [f"{alert_id} kills its process and is no fallback" for alert_id in sorted(culprits - crashed)]
    innocents = len(crashed - culprits)
    if innocents > poisons * (PARTITIONS - 1):
        failures.append(f"{innocents} others fell back with {poisons} that kill their process")
    failures += [
        f"{deaths[alert_id]} workers died of {alert_id}"
        for alert_id in sorted(culprits)
        if not DEATHS <= deaths[alert_id] <= MOST_DEATHS
    ]
    failures += repeated_beyond(verdict)
    return Outcome(verdict, failures, {"worker_deaths": deaths.total(), "others_in_fallback": innocents})


def _culprit(worker: Worker) -> str:
    """Whose handler has killed it; empty for none."""
    lines = worker.log.read_text(errors="replace").splitlines()
    return next((line.removeprefix(KILLED_BY) for line in lines if line.startswith(KILLED_BY)), "")


ROWS = (
    Row(
        "handlers that raise",
        "An alert whose handler raises is tried again; one that raises every time ends in its fallback, while its "
        "partition goes on. What is no alert ends as one dead letter with its bytes, and an alert that is published twice "
        "is judged, decided and acted on once. No worker ends.",
        raising,
        full={"alerts": 10_000, "backlog": 200},
        small={"alerts": 300, "backlog": 200},
        ablations=(
            Ablation("partitions_are_one_lane", {"alerts": 600, "backlog": 200}, ("was decided before it", "to go on")),
            Ablation("no_order_is_kept", {"alerts": 600, "backlog": 200}, ("out_of_order",)),
            Ablation("failures_are_done", {"alerts": 200, "backlog": 200, "settle_s": 12}, ("lost",)),
            Ablation("nothing_is_buried", {"alerts": 200, "backlog": 200, "settle_s": 12}, ("dead_missing",)),
            Ablation(
                "nothing_is_known_again", {"alerts": 200, "backlog": 200, "settle_s": 12}, ("alerts decided again",)
            ),
        ),
    ),
    Row(
        "handlers that kill their process",
        "An alert that takes its process with it three times (four where it lies behind a backlog) ends in its fallback. "
        "At most one other alert a partition, which was on trial in that moment, goes to its fallback with it.",
        killing,
        full={"alerts": 3_000, "poisons": 5, "backlog": 500},
        small={"alerts": 100, "poisons": 1, "backlog": 100},
        ablations=(
            Ablation(
                "crashes_not_counted",
                {"alerts": 100, "poisons": 1, "backlog": 100, "settle_s": 25, "most_deaths": 4},
                ("lost",),
            ),
        ),
    ),
)
