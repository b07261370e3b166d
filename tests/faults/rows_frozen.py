"""A worker of agents that stands still for longer than its session, at any time and where that does most harm."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from tests.faults.ablations_frozen import MOMENTS, REFUSED
from tests.faults.judging import judged, not_taken_over
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.workers import Worker

SEAM = "freezes_when_told"
ANY_TIME = "any time"
EVERY_MOMENT = (*MOMENTS, ANY_TIME)
BEYOND_SESSION_S = 3.0
FREEZES_WITHIN_S = 4.0
BACK_WITHIN_S = 15.0
STOOD_STILL = ("deadline", "crashed")
"""Why alerts fall back whose handlers stood still with their worker, or ran when it was taken for dead for the third time."""


async def frozen(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: times; alerts a time, backlog; moments, all in turn unless given; settle_s."""
    hit = Counter[str]()
    async with bench.run("frozen", QUICK, answers=("hold:0.5", "block:0.4")) as run:
        workers = run.workers
        await workers.at_work(*(workers.start(ablate=(SEAM, *ablate)) for _ in range(2)))
        moments = size.get("moments", EVERY_MOMENT)
        for number, moment in enumerate(islice(cycle(moments), size["times"]), 1):
            feeding = asyncio.create_task(run.feed(number * size["alerts"], size["backlog"]))
            await asyncio.sleep(0.5 + run.chance.random())
            victim = run.chance.choice(_owners(run))
            at = await _freeze(run, victim, moment)
            hit[at] += 1
            bench.say(f"freeze {number} of {size['times']}: {victim.name}, {at}")
            await asyncio.sleep(bench.session_s + BEYOND_SESSION_S)
            workers.thaw(victim)
            await feeding
            await run.until(lambda worker=victim: _is_back(run, worker), BACK_WITHIN_S)  # type: ignore[misc]
        verdict, history, failures = await judged(run, size.get("settle_s", LAG_LIMIT_S), causes=STOOD_STILL)
    failures += not_taken_over(history.faults, history.held)
    failures += [f"no worker was frozen at: {moment}" for moment in moments[: size["times"]] if not hit[moment]]
    refused = sum(worker.log.read_text(errors="replace").count(REFUSED) for worker in run.workers.all)
    return Outcome(verdict, failures, {"frozen_at": dict(hit), "commits_refused": refused})


def _owners(run: Run) -> list[Worker]:
    """Who has something to lose."""
    owners = {one.worker for one in run.workers.owned() if not one.end_ms}
    return [worker for worker in run.workers.alive if worker.name in owners]


async def _freeze(run: Run, victim: Worker, moment: str) -> str:
    """Stops it at the moment, or at any time where it does not come to that soon; says which."""
    if moment in MOMENTS:
        victim.send(MOMENTS[moment])
        if await run.until(lambda: _is_stopped(victim), FREEZES_WITHIN_S):
            run.workers.freeze(victim)
            return moment
    run.workers.freeze(victim)
    return ANY_TIME


def _is_stopped(worker: Worker) -> bool:
    return Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _is_back(run: Run, worker: Worker) -> bool:
    """Whether it has been given partitions since it was thawed, or has ended."""
    thawed_ms = max(fault.at_ms for fault in run.workers.faults if fault.whom == worker.name)
    return worker.code is not None or any(
        entry.event == "assigned" and entry.at_ms > thawed_ms for entry in worker.trace()
    )


ROWS = (
    Row(
        "frozen worker, agents",
        "A worker that stands still for longer than its session and wakes with decisions queued, effects begun and offsets "
        "finished commits nothing of what it has lost, and no effect is applied a second time, also by a receiver that knows "
        "no keys.",
        frozen,
        full={"times": 12, "alerts": 400, "backlog": 200},
        small={
            "times": 2,
            "alerts": 120,
            "backlog": 100,
            "moments": ("decision queued", "claimed effect to be posted"),
        },
        ablations=(
            Ablation(
                "ended_epochs_commit",
                {"times": 2, "alerts": 250, "backlog": 150, "moments": (ANY_TIME,), "settle_s": 15},
                ("late_commits",),
            ),
            Ablation(
                "nothing_is_claimed",
                {"times": 2, "alerts": 120, "backlog": 100, "moments": ("claimed effect posted",)},
                ("effects_twice",),
            ),
            Ablation(
                "every_decision_stands",
                {"times": 2, "alerts": 120, "backlog": 100, "moments": ("decision queued",)},
                ("conflicting", "effects_twice"),
            ),
        ),
    ),
)
