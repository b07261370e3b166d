"""RELIABILITY.md and the table that is printed, from what came of the rows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.faults.checker import Verdict
from tests.faults.results import CHANGED, FIGURES, Result, definition_of, unnoticed
from tests.faults.rows import Row
from tests.faults.soak import FULL, SHORTENED, Load, Soaked

LABELS = {"kills": "faults"}
"""Columns that are not called as the checker's figures are."""

NOTES = {
    "alerts": "published, and acknowledged by the broker",
    "kills": "what breaks off work that is under way: kills, freezes, cut networks; not faults of a model or a store",
    "two_owners": "as they say themselves. This is a violation in 'workers added and removed' and 'SIGTERM under load' alone: "
    "a worker that is frozen or cut off cannot know what it has lost",
}
"""Where the checker's own words do not say it."""

COLUMNS = (
    "fault",
    *(LABELS.get(name, name.replace("_", " ")) for name in FIGURES),
    *("verdict", "ablations noticed", "measured"),
)
ABLATION_COLUMNS = ("fault", "removed", "verdict without it", "noticed", "found", "measured")
CLASSIC_COLUMNS = tuple(column for column in COLUMNS if column != "ablations noticed")

HEAD = """\
# Reliability

What this system promises when parts of it fail, in words that a test can prove wrong, and what the tests measured. The
tables are written by `make faults`, which breaks a running system on purpose: a real Kafka and a real Redis, workers as
processes of their own, a model and a receiver of effects whose logs lie outside of everything that is killed. One pure
function, [`tests/faults/checker.py`](tests/faults/checker.py), judges the whole history; its own tests plant violations in
one and see that it finds them. Single rows: `python -m tests.faults --only NAME`; `--list` says which there are.

## What is promised

An alert is *published* when the broker has acknowledged it. A decision *stands* when it is the first `live` one about its
alert and agent in `agent.decisions`.

1. **Nothing is lost.** Every published alert gets exactly one standing decision: the agent's answer after policy, or its
   fallback's with the reason. Only what cannot be decoded, has no fallback to end in, or fails there in a way that nobody
   foresaw, is a dead letter instead, as is one with an id or key of more than 5,000 bytes. This holds as
   long as the retention of the topics outlasts the outage.
2. **Nothing is done twice.** Each effect of a standing decision is applied at most once at a receiver that honours
   idempotency keys, however often it was attempted; one that is not applied ends as failed, unknown or withheld, with a
   person asked, or as logged, where its action has no address. Within the horizon no effect of any other decision is
   applied.
3. **No commit is early, and none late.** No committed offset, and no done mark in its metadata, covers an alert whose
   decision is not yet in the log, or a decision whose effects have not all come to their end. While the broker answers,
   half of all alerts are committed within 0.6 s of their decision, and, on the newer group protocol, 99 of 100 of those to whose
   worker nothing is done within a second (checked in the rows 'kill -9 of workers' and 'kill at every step').
4. **Repeats are bounded.** After a crash the model is asked again for no more alerts than calls were under way, or
   answered and not yet written, at the worker that died, or in partitions that moved then, where handlers outlasted the
   drain; after a SIGTERM that drains, for none. The rows that kill check the first, 'SIGTERM under load' the second. A
   worker that is frozen, cut off, or loses its session lives on with what it had begun, while its successor begins it again:
   there repeats are counted, and no bound is checked.
5. **It goes on by itself.** When faults end, the lag is 0 again within 60 seconds plus the group's session (45 s by
   default), without anybody's help. Measured with a session of {session} s, where 60 seconds are the limit; with one of 45 s
   in 'broker gone for less than a session'.
6. **Failure never approves.** Whatever fails, is cut, refused, late, or too expensive ends in the agent's fallback or,
   without a fallback, as a dead letter.
7. **State is exact.** After any number of kills, features and final rows are those of a plain reading of the source topic,
   to the cent.
8. **Order is kept.** While a partition has one owner, alerts of one key are handled one at a time, in the order of the topic.

**Deadlines** count from the handler's start, not from the alert's publication: what waits in the topic while no worker has
its partition is not late. How old an alert may be that the model is still asked about is another setting, `max_age`.

**Horizon**: 24 hours or 1,000,000 alerts of an agent in one process, whichever is less. A new owner of a partition knows
less: what its look-back holds, from ten minutes before its first unfinished alert on, and no more than the last 65,536
offsets of the log ([ADR 30](docs/adr/0030-decide-then-act.md)). An alert that is repeated beyond that costs a second model
call. Its first decision still stands as long as the actions remember it: always while its effects are open; then for 24 hours
or 1,000,000 ended decisions in one process (of all agents and partitions together), whichever is less; and a new owner of the
actions reads no more than the last 196,608 offsets of its partition of `agent.effects`. An alert that both have forgotten is a
new one: it is decided and acted upon again, under the same keys where the action is the same (applied once by a receiver that
still remembers them; one that is `at_most_once` or `may_repeat` is called again), and under others, beside the first one's
effects, where it is another.

## What is not promised

- That a handler runs once. It runs at least once; what is written and done counts once.
- That a receiver without idempotency keys applies an effect once: its action is declared `at_most_once` (a person is asked
  when a call breaks off) or `may_repeat`.
- That an alert which is repeated beyond the horizon has one decision, or that an `at_most_once` receiver is called once
  about it.
- That an `at_most_once` receiver is called once about an alert that comes again after `decisions forget` has removed its
  entity: nobody remembers then that it was called ([ADR 32](docs/adr/0032-decisions-on-record.md)).
- An order of alerts with different keys, or of one key across a change of owners.
- That an alert which happened to run when its process died three times is decided by the model: it goes to its fallback,
  and at most one alert of each other partition with it. An effect that ran then ends as failed, before a person, likewise.
- That tables and effects' states outlive an hour without any worker that begins right after a frozen writer woke and wrote:
  compaction may then keep the old value ([ADR 63](docs/adr/0063-old-values-behind-newer-ones.md)).
- That a budget counts model calls which were under way when their process was killed or their partition taken away, or
  those about alerts that became dead letters once the worker is started again.
- That late events count: those behind the watermark of their partition raise alerts, and change no window that is closed.
- That two `dead replay` of one topic at once publish each letter once. Nothing locks a topic.
- That anybody looks at what is put before a person: requests lie in `agent.reviews`, and nothing shows or answers them yet.
- Anything about a broker that loses acknowledged records: replication is the cluster's. What is measured here is one broker.
- That a worker which is killed answers its own alerts in time: they wait for the session's end ({session} s in these runs, a
  setting of the broker) and for a successor.
"""

HOW = """\
The promises about alerts that are too old, too expensive, or nobody's but a dead letter's, and all rules of the model's gate
beyond these rows, rest on the property tests in `tests/property` and the unit tests, under virtual time.

Each row ran once, with one seed: what does not come up in one run is not seen. 'a compromised model' and 'hostile text' use no
broker. 'model without credit or key' tries a refused key again after 6 seconds, where it is five minutes otherwise. Behind a
commit `{changed}` means: with changes that were not committed. An ablation is noticed when the row turns red, in the way
that was expected, without the safeguard that it removes.
"""


def cells(row: Row, result: Result) -> list[str]:
    """A row of the table."""
    figures = [_number(result.figures.get(name)) for name in FIGURES]
    return [result.fault, *figures, result.verdict, _noticed(row, result), _when(result.at, result.commit)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _when(at: str, commit: str) -> str:
    return f"{at[:10]} {commit}".strip() or "-"


def _noticed(row: Row, result: Result) -> str:
    """Of those that the row has now."""
    names = {ablation.name for ablation in row.ablations}
    ran = [one for one in result.ablations if one.name in names]
    if not names:
        return "-"
    if not ran:
        return f"0 of {len(names)} run"
    open_still = f", {len(names) - len(ran)} not run" if len(ran) < len(names) else ""
    return f"{sum(one.noticed for one in ran)} of {len(names)}{open_still}"


def document(
    rows: Sequence[Row], full: Sequence[Result], small: Sequence[Result], soaked: Soaked | None, session_s: float
) -> str:
    """RELIABILITY.md. full, small: what is kept of the rows at full size, and small on the classic group protocol.
    soaked: of the last soak."""
    found, classic = ({result.fault: result for result in results} for results in (full, small))
    parts = [HEAD.replace("{session}", f"{session_s:g}"), "\n## Measured\n", _environment(full, session_s)]
    parts.append(_table(COLUMNS, [cells(row, found[row.name]) for row in rows if row.name in found]))
    parts.append(HOW.replace("{changed}", CHANGED))
    parts.append(_open(rows, found, classic, soaked))
    parts.append("\n### Soak\n")
    parts.append(_soak(soaked))
    parts.append("\n### What each row shows\n")
    parts.append("\n".join(_shown(row, found.get(row.name)) for row in rows))
    parts.append("\n### What the figures mean\n")
    parts.append("\n".join(f"- **{name}**: {meaning}." for name, meaning in legend()))
    parts.append("\n### Ablations\n")
    parts.append(
        _table(
            ABLATION_COLUMNS,
            [ablation for row in rows if row.name in found for ablation in _ablations(row, found[row.name])],
        )
    )
    if small:
        parts.append("\n### Small rows on the classic group protocol\n")
        parts.append(_table(CLASSIC_COLUMNS, [_classic(row, classic[row.name]) for row in rows if row.name in classic]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _classic(row: Row, result: Result) -> list[str]:
    return [cell for column, cell in zip(COLUMNS, cells(row, result), strict=True) if column in CLASSIC_COLUMNS]


def _ablations(row: Row, result: Result) -> list[tuple[str, ...]]:
    known = {one.name: one for one in result.ablations}
    ran = [known[ablation.name] for ablation in row.ablations if ablation.name in known]
    return [
        (
            result.fault,
            one.name,
            one.verdict,
            "yes" if one.noticed else "NO",
            one.evidence,
            _when(one.at or result.at, one.commit or result.commit),
        )
        for one in ran
    ]


def legend() -> list[tuple[str, str]]:
    """What the figures mean, in the words of the checker: its verdict's docstring has `names: meaning` of each."""
    words = re.split(r"(?<=[.;]) ((?:\w+, )*\w+): ", " ".join((Verdict.__doc__ or "").split()))
    told = {names: meaning.rstrip(".;") for names, meaning in zip(words[1::2], words[2::2], strict=True)}
    found = {name: note for name, note in NOTES.items() if name not in told}
    found |= {names: f"{meaning}; {NOTES[names]}" if names in NOTES else meaning for names, meaning in told.items()}
    return [
        (", ".join(map(_label, names.split(", "))), re.sub(r"\w+_\w+", lambda word: _label(word[0]), meaning))
        for names, meaning in found.items()
    ]


def _environment(results: Sequence[Result], session_s: float) -> str:
    if not results:
        return "Nothing has been measured yet: `make faults`.\n"
    seeds = ", ".join(sorted({str(result.seed) for result in results}))
    machines = sorted({result.machine for result in results})
    seconds = [result.seconds for result in results]
    seconds += [one.seconds for result in results for one in result.ablations]
    took = f" {sum(seconds) / 60:.0f} minutes in all." if all(seconds) else ""
    return (
        f"\nSeed {seeds}; {'; '.join(machines)}; a session of {session_s:g} s for groups of the newer protocol, but where "
        f"a row says otherwise.{took} When, and which commit: last column.\n"
    )


def _soak(soaked: Soaked | None) -> str:
    if soaked is None:
        return "Not run yet: `make soak`."
    load = soaked.load
    memory = ", ".join(
        f"{name} {soaked.rss_mb[name]} MB, {grown:g} of the middle" for name, grown in soaked.grown.items()
    )
    when = _when(str(soaked.environment.get("at", "")), str(soaked.environment.get("commit", "")))
    return (
        f"{_load(load)}, {load.keys:,} keys: {soaked.alerts:,} alerts, {soaked.decisions:,} decided when the load ended, "
        f"after {soaked.elapsed_s / 60:.1f} minutes, by rules in the place of a model. The memories of ids are bounded to "
        f"{load.remember:,} each here, so that they are full long before the end (1,000,000 otherwise, which takes longer). "
        f"Memory at the end: {memory}. Measured {when}. "
        + ("Held." if not soaked.failures else f"Not held: {'; '.join(soaked.failures)}.")
        + _shortened(soaked)
    )


def _shortened(soaked: Soaked) -> str:
    """What the soak finds where there is something to find."""
    result = soaked.shortened
    if result is None:
        return ""
    return (
        f"\n\nLeaks were planted in it, one at a time, and it was run for {_load(Load(**result.size))}; without any it "
        f"{'held' if result.verdict == 'held' else 'did not hold'} there too.\n"
        + _table(ABLATION_COLUMNS, _ablations(SHORTENED, result))
    )


def _load(load: Load) -> str:
    return f"{load.minutes:g} minutes at {load.events:,} events and {load.alerts:,} alerts a second"


def _open(
    rows: Sequence[Row], found: Mapping[str, Result], classic: Mapping[str, Result], soaked: Soaked | None
) -> str:
    """What does not hold, or was not measured, said plainly."""
    lines = []
    for row in rows:
        lines += [f"- **{row.name}**: {text}" for text in _open_of_row(row, found.get(row.name))]
    for row in rows:
        result = classic.get(row.name)
        if row.small is not None and result is None:
            lines.append(f"- **{row.name}**, small, classic protocol: not run")
        elif result is not None and result.verdict != "held":
            lines.append(f"- **{row.name}**, small, classic protocol: {'; '.join(result.violations)}")
        elif result is not None and result.definition != definition_of(row):
            lines.append(f"- **{row.name}**, small, classic protocol: measured before its definition changed")
    if soaked is None:
        lines.append("- **soak**: not run")
    else:
        lines += [f"- **soak**: {failure}" for failure in soaked.failures]
        if soaked.load != FULL:
            lines.append(f"- **soak**: ran for {_load(soaked.load)} only")
        if soaked.shortened is None:
            lines.append("- **soak**: its ablations were not run")
        else:
            lines += [f"- **{SHORTENED.name}**: {text}" for text in _open_of_row(SHORTENED, soaked.shortened)]
    return (
        "\n### What does not hold, or was not measured\n\n"
        + ("\n".join(lines) if lines else "Every row holds, and every ablation was noticed.")
        + "\n"
    )


def _open_of_row(row: Row, result: Result | None) -> list[str]:
    if result is None:
        return ["not run at full size"]
    names = {ablation.name for ablation in row.ablations}
    ran = {one.name: one for one in result.ablations if one.name in names}
    found = ["; ".join(result.violations)] if result.violations else []
    if result.definition != definition_of(row):
        found.append("measured before its definition changed")
    for ablation in unnoticed(row, result):
        if ablation.name not in ran:
            found.append(f"ablation {ablation.name} was not run")
        elif not ran[ablation.name].noticed:
            found.append(f"ablation {ablation.name} was not noticed")
        else:
            found.append(f"ablation {ablation.name} was measured before its definition changed")
    return found


def _shown(row: Row, result: Result | None) -> str:
    """In the words of then."""
    size = result.size if result is not None else row.full
    promise = (result.promise if result is not None else "") or row.promise
    return f"- **{row.name}** ({_counts(size)}). {promise}{_more(result)}"


def _more(result: Result | None) -> str:
    found = dict(result.more) if result is not None else {}
    found |= {f"fallbacks, {code}": number for code, number in found.pop("fallbacks", {}).items()}
    more = {
        name: value for name, value in found.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return f" Also counted: {_counts(more)}." if more else ""


def _counts(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items()) or "-"


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " / ".join(str(each) for each in value)
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n" + "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]) + "\n"


def _cell(value: Any) -> str:
    """What a failure says may hold a bar."""
    return str(value).replace("|", "\\|")
