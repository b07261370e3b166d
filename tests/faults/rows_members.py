"""Workers that come and go in order: SIGTERM under load, and members added and removed."""

import asyncio
from collections.abc import Iterable, Sequence

from tests.faults.history import Call, Fault
from tests.faults.judging import judged
from tests.faults.lines import read_lines
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.workers import GRACE_S, Worker

MOST_WORKERS = 4


async def sigterm(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """The older of two workers is told to end, again and again, while alerts keep coming. size: times, backlog, alerts a
    time."""
    seconds: list[float] = []
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    async with bench.run("sigterm", QUICK) as run:
        workers = run.workers
        await workers.at_work(*(workers.start(ablate=ablate) for _ in range(2)))
        for number in range(1, size["times"] + 1):
            victim, began = workers.alive[0], loop.time()
            feeding = asyncio.create_task(run.feed(number * size["alerts"], size["backlog"]))
            await asyncio.sleep(0.3 + run.chance.random())
            began = loop.time()
            code = await workers.terminate(victim)
            seconds.append(loop.time() - began)
            if code != 0:
                failures.append(f"{victim.name} ended with {code}: see {victim.log}")
            bench.say(f"SIGTERM {number} of {size['times']}: exit {code} after {seconds[-1]:.1f} s")
            await asyncio.gather(feeding, workers.at_work(workers.start(ablate=ablate)))
        outcome = await in_order(run, size.get("settle_s", LAG_LIMIT_S))
    under_way = calls_under_way(read_lines(run.directory / "model.jsonl", Call), run.workers.faults)
    if not under_way:
        failures.append("no call was under way when a worker was told to end, so this run shows nothing")
    outcome.failures += failures
    outcome.figures |= {"slowest_exit_s": round(max(seconds), 1), "calls_under_way": under_way}
    return outcome


def calls_under_way(calls: Iterable[Call], faults: Iterable[Fault]) -> int:
    """How many, of all workers, when one of them was told to end."""
    told = [fault.at_ms for fault in faults if fault.what == "SIGTERM"]
    return sum(call.start_ms < at_ms < call.end_ms for call in calls for at_ms in told)


async def members(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """One to four workers, one more or one less at each change. size: changes, alerts a change, backlog."""
    async with bench.run("members", QUICK) as run:
        workers = run.workers
        running: list[Worker] = [workers.start(ablate=ablate)]
        await workers.at_work(*running)
        leaving: list[asyncio.Task[int | None]] = []
        for number in range(1, size["changes"] + 1):
            grows = len(running) == 1 or (len(running) < MOST_WORKERS and run.chance.random() < 0.5)
            if grows:
                joined = workers.start(ablate=ablate)
                running.append(joined)
                workers.note("added", joined.name, breaks=False)
                await asyncio.gather(run.feed(number * size["alerts"], size["backlog"]), workers.at_work(joined))
            else:
                gone = running.pop(run.chance.randrange(len(running)))
                leaving.append(asyncio.create_task(workers.terminate(gone)))
                await run.feed(number * size["alerts"], size["backlog"])
            bench.say(f"change {number} of {size['changes']}: {len(running)} workers")
        codes = await asyncio.gather(*leaving)
        outcome = await in_order(run, size.get("settle_s", LAG_LIMIT_S))
    outcome.failures += [f"a worker ended with {code}" for code in codes if code != 0]
    return outcome


async def in_order(run: Run, settle_s: float) -> Outcome:
    """Nobody was killed: nothing is repeated, and each partition has one owner at a time."""
    verdict, _, failures = await judged(run, settle_s)
    if verdict.repeated:
        failures.append(f"{verdict.repeated} model calls repeated")
    if verdict.two_owners:
        failures.append(f"{verdict.two_owners} times two workers held one partition")
    return Outcome(verdict, failures)


ROWS = (
    Row(
        "SIGTERM under load",
        f"A worker that is told to end finishes what runs, commits, and exits with 0 within {GRACE_S:.0f} s; nothing is "
        "lost, and nothing repeated where the drain suffices.",
        sigterm,
        full={"times": 50, "alerts": 500, "backlog": 300},
        small={"times": 1, "alerts": 150, "backlog": 120},
        ablations=(Ablation("no_drain", {"times": 1, "alerts": 200, "backlog": 150}, ("repeated",)),),
    ),
    Row(
        "workers added and removed",
        "Workers may come and go at any time: the same zeros, and each partition has one owner at a time.",
        members,
        full={"changes": 30, "alerts": 500, "backlog": 300},
        small={"changes": 2, "alerts": 120, "backlog": 100},
        ablations=(
            Ablation("revoked_is_kept", {"changes": 2, "alerts": 200, "backlog": 150, "settle_s": 15}, ("two_owners",)),
        ),
    ),
)
