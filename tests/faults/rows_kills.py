"""Workers killed with SIGKILL: at any time, and at every step between fetching an alert and committing it."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence

from tests.faults.checker import Verdict
from tests.faults.failpoints import FAILPOINTS
from tests.faults.history import ALERTS_GROUP, Fault
from tests.faults.judging import judged
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Latency, Run
from tests.faults.workers import Worker

AFTER_COMMIT_S = 2.0
COMMITTED_S, LATEST_COMMITTED_S = 0.6, 1.0
"""Commits follow completions within half a second; sampling adds a tenth to half of them, a busy machine more to one in a
hundred. Those are not counted whose worker was killed in between."""
MOST_LATE = 0.01
"""So large a part of the alerts may end by their deadline, where the model takes a third of it."""
AT_A_TIME = 2
"""Workers that are about to die: while the group waits for the end of one's session the other comes to its failpoint."""
HIT_S = 40.0
TRICKLE, TRICKLE_S, TRICKLE_BACKLOG = 6, 0.1, 150
CRASHED = ("crashed",)
"""Alerts that ran when their process died for the third time."""
ANSWERS = ("block:0.5", "hold:0.3")
"""A receiver that knows keys, one that does not; the rest is put before a person."""


async def kill_workers(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: alerts, kills, backlog (alerts published ahead of what is committed), latency, settle_s, causes of fallbacks."""
    async with bench.run("kills", Latency(*size.get("latency", (0.2, 1.2))), answers=ANSWERS) as run:
        workers = run.workers
        await workers.at_work(*(workers.start(ablate=ablate) for _ in range(2)))
        alerts, kills = size["alerts"], size["kills"]
        begun = sorted(run.chance.sample(range(alerts // 20, alerts), kills))
        starting: list[Worker] = []
        for number, published in enumerate(begun, 1):
            await asyncio.gather(run.feed(published, size["backlog"]), workers.at_work(*starting))
            if number % 3 == 0:
                await next_commit(run)
            workers.kill(run.chance.choice(workers.alive))
            bench.say(f"kill {number} of {kills}, {published:,} alerts published")
            starting = [workers.start(ablate=ablate)]
        await asyncio.gather(run.feed(alerts, size["backlog"]), workers.at_work(*starting))
        return await concluded(bench, run, size.get("settle_s", LAG_LIMIT_S), size.get("causes", CRASHED))


async def concluded(bench: Bench, run: Run, settle_s: float, causes: Collection[str]) -> Outcome:
    """They repeat no more than was in flight where work was broken off, and commit in time. causes: of fallbacks."""
    verdict, _, failures = await judged(run, settle_s, causes=causes)
    late = verdict.fallbacks.get("deadline", 0)
    if late > verdict.alerts * MOST_LATE:
        failures.append(f"{late} alerts had no answer within their deadline")
    failures += repeated_beyond(verdict)
    if verdict.commit_p50_s is None or verdict.commit_p50_s > COMMITTED_S:
        failures.append(f"half of the decisions were committed only {verdict.commit_p50_s} s later")
    latest_s = verdict.commit_p99_undisturbed_s
    # A classic group takes nobody's commits from the end of a member's session until all others have joined again.
    if bench.protocol == "consumer" and (latest_s is None or latest_s > LATEST_COMMITTED_S):
        failures.append(f"one in a hundred decisions was committed only {latest_s} s later, its worker alive")
    return Outcome(verdict, failures)


def repeated_beyond(verdict: Verdict) -> list[str]:
    """What is wrong when a call was repeated that was not in flight where work was broken off."""
    if not verdict.repeats_unexplained:
        return []
    return [
        f"{verdict.repeats_unexplained} of {verdict.repeated} model calls repeated for no reason; in flight were "
        f"{verdict.in_flight} at killed workers, {verdict.in_flight_moved} at partitions that moved"
    ]


async def next_commit(run: Run) -> None:
    """Until the agent's group has committed again, or there is nothing to commit."""
    seen = len(run.sampler.changes)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + AFTER_COMMIT_S
    while loop.time() < deadline:
        if any(change.group == ALERTS_GROUP for change in run.sampler.changes[seen:]):
            return
        await asyncio.sleep(0.005)


async def kill_at_every_step(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """Beside a worker that lives there are always two that die at their next failpoints. size: rounds; points, all unless
    given; at_most, how many of a shuffled round."""
    points = list(size.get("points", FAILPOINTS))
    hits = Counter[str]()
    async with bench.run("steps", QUICK, answers=ANSWERS) as run:
        workers = run.workers
        await workers.at_work(workers.start(ablate=ablate))
        sequence = [point for _ in range(size["rounds"]) for point in run.chance.sample(points, len(points))]
        del sequence[size.get("at_most", len(sequence)) :]

        coming = iter(enumerate(sequence, 1))

        def start_ahead() -> tuple[int, str, Worker] | None:
            """One that waits, for the next of them; None behind the last."""
            for number, point in coming:
                hit = run.chance.randint(1, FAILPOINTS[point].hits)
                return number, point, workers.start(ablate=ablate, failpoint=f"{point}:{hit}", waits=True)
            return None

        async def kill_in_turn() -> None:
            following = start_ahead()
            while following is not None:
                number, point, armed = following
                armed.go()
                following = start_ahead()
                is_hit = await _hit(run, armed, point)
                hits[point] += is_hit
                bench.say(f"{number} of {len(sequence)}: {point}: {'hit' if armed.hit(point) else 'NOT HIT'}")

        async with asyncio.TaskGroup() as turns:
            for _ in range(AT_A_TIME):
                turns.create_task(kill_in_turn())
        outcome = await concluded(bench, run, size.get("settle_s", LAG_LIMIT_S), CRASHED)
    due = Counter(sequence)
    outcome.failures += [
        f"{point}: hit {hits[point]} of {due[point]} times" for point in due if hits[point] < due[point]
    ]
    outcome.figures["hits"] = dict(hits)
    return outcome


async def _hit(run: Run, armed: Worker, point: str) -> bool:
    """Publishes until the worker has died; whether it did so at its failpoint."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HIT_S
    while armed.code is None and loop.time() < deadline:
        if run.backlog < TRICKLE_BACKLOG and armed.is_at_work:
            await run.publish(TRICKLE)
            await run.publish_undecodable(1)
        await asyncio.sleep(TRICKLE_S)
    if armed.code is None:
        run.workers.kill(armed)
        return False
    moments = [entry.at_ms for entry in armed.trace() if entry.event == point]
    run.workers.faults += [Fault(f"killed at: {point}", armed.name, moment) for moment in moments]
    return bool(moments)


ROWS = (
    Row(
        "kill -9 of workers",
        "A worker killed at any time loses no alert and repeats no effect, also where the receiver knows no keys; its "
        "successor asks the model again only for what was in flight at it, and for handlers that outlast the drain of a "
        "partition that moves.",
        kill_workers,
        full={"alerts": 100_000, "kills": 20, "backlog": 2_000},
        small={"alerts": 400, "kills": 2, "backlog": 150},
        ablations=(
            Ablation(
                "commit_highest_seen", {"alerts": 400, "kills": 1, "backlog": 200, "settle_s": 12}, ("early_commits",)
            ),
            Ablation(
                "done_before_decided", {"alerts": 400, "kills": 1, "backlog": 200, "settle_s": 12}, ("early_commits",)
            ),
            Ablation("no_drain", {"alerts": 500, "kills": 3, "backlog": 150}, ("repeated for no reason",)),
        ),
    ),
    Row(
        "kill -9 of workers, slow model",
        "The same where the model takes one second, and six for one alert in ten.",
        kill_workers,
        full={"alerts": 10_000, "kills": 20, "backlog": 1_000, "latency": (1.0, 6.0), "causes": (*CRASHED, "deadline")},
        small=None,
    ),
    Row(
        "kill at every step",
        "A worker killed at any await boundary between fetching an alert and committing what came of it: the same zeros, also "
        "around dead letters, requests for a person, and the claim and call of a receiver that knows no keys.",
        kill_at_every_step,
        full={"rounds": 10},
        small={"rounds": 1, "at_most": 5},
        ablations=(
            Ablation(
                "key_of_its_own_each_time",
                {"rounds": 2, "points": ("effect posted", "effect's end not yet written")},
                ("effects_twice",),
            ),
        ),
    ),
)
