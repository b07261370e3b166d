"""What happened in one run, as seen from outside the processes that were killed. All times are wall ms of one machine."""

from collections.abc import Mapping

import msgspec

from app.dispatch.marks import Mark, decode_marks

ALERTS_GROUP, ACTIONS_GROUP = "agent", "actions"
"""Whose offsets: of the alerts, and of the decisions."""


class Published(msgspec.Struct, frozen=True):
    """An alert that the broker has acknowledged."""

    alert_id: str
    partition: int
    offset: int
    at_ms: int


class Raw(msgspec.Struct, frozen=True):
    """The bytes of a record that is no alert; or of its dead letter, where the place is the record's."""

    partition: int
    offset: int
    at_ms: int
    value: bytes


class Call(msgspec.Struct, frozen=True):
    """A call of the model. number: from 1 for each alert. end_ms: when it was answered; 0 where nobody waited any more.
    fault: what came instead of an answer, empty for nothing."""

    alert_id: str
    number: int
    start_ms: int
    end_ms: int
    fault: str = ""


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """A record of `agent.decisions`. at_ms: when the broker appended it. codes: why it is not simply the answer."""

    alert_id: str
    partition: int
    offset: int
    at_ms: int
    mode: str
    action: str
    reason: str
    is_fallback: bool
    codes: tuple[str, ...] = ()
    attempt: int = 1
    writer: str = ""


class EffectEntry(msgspec.Struct, frozen=True):
    """A record of `agent.effects`. states: by name of the effect. ended: whether all of them are at their end."""

    alert_id: str
    partition: int
    offset: int
    at_ms: int
    decision_offset: int
    states: Mapping[str, str]
    ended: bool


class Post(msgspec.Struct, frozen=True):
    """One attempt at the effect sink. applied: False where it knew the key already. reason: the decision's, as posted."""

    key: str
    effect: str
    alert_id: str
    reason: str
    at_ms: int
    applied: bool


class Committed(msgspec.Struct, frozen=True):
    """A committed offset as it was found. at_ms: after the answer, so the commit was no later."""

    group: str
    partition: int
    offset: int
    metadata: str
    at_ms: int

    def done_beyond(self) -> list[int]:
        """Offsets behind the committed one that are recorded as done."""
        known = decode_marks(self.offset, self.metadata)
        return sorted(at for at, mark in known.marks.items() if mark is Mark.DONE) if known else []


class Fault(msgspec.Struct, frozen=True):
    """What was done to whom. breaks: whether work in progress ends by it without an answer."""

    what: str
    whom: str
    at_ms: int
    breaks: bool = True

    @property
    def is_death(self) -> bool:
        """Whether whoever it was done to is gone: "kill -9", "killed at …"."""
        return self.what.startswith("kill")


class Owned(msgspec.Struct, frozen=True):
    """A worker held a partition of the alerts. end_ms: 0 where it never said so: it died. revoked_ms: when it was told to
    give it up; 0 where it was not told, or where the partition was lost."""

    worker: str
    partition: int
    start_ms: int
    end_ms: int
    revoked_ms: int = 0


class Asked(msgspec.Struct, frozen=True):
    """A record of `agent.reviews` in which a decision asks for a person. at_ms: when the broker appended it."""

    review_id: str
    alert_id: str
    decision_offset: int
    at_ms: int


class Ended(msgspec.Struct, frozen=True):
    """How a worker ended. code: minus the signal's number where one ended it; None where it still ran. told: what was done
    to end it, "kill" or "SIGTERM"; empty for nothing."""

    worker: str
    code: int | None
    told: str
    log: str


class Held(msgspec.Struct, frozen=True):
    """A consumer was given a partition of any topic, whose later commits count until another is given it."""

    worker: str
    topic: str
    partition: int
    at_ms: int


class Accepted(msgspec.Struct, frozen=True):
    """A commit that the broker took. at_ms: when the worker was about to send it."""

    worker: str
    topic: str
    partition: int
    offset: int
    at_ms: int
    metadata: str = ""


class History(msgspec.Struct, kw_only=True):
    """posting: which effects an action posts to the sink; reviewing: which of them ask for a person. dead: ids of alerts
    that are dead letters, and since when. undecodable: records among the alerts that are none; letters: their dead letters.
    asked: keys of effects about which a person was asked, since they could not be
    completed; reviews: what decisions themselves have asked. sample_gap_ms: the longest time without a look at commits."""

    published: list[Published] = []
    calls: list[Call] = []
    decisions: list[Decided] = []
    effects: list[EffectEntry] = []
    posts: list[Post] = []
    commits: list[Committed] = []
    faults: list[Fault] = []
    owned: list[Owned] = []
    dead: dict[str, int] = {}
    undecodable: list[Raw] = []
    letters: list[Raw] = []
    asked: list[str] = []
    posting: Mapping[str, tuple[str, ...]] = {}
    reviewing: Mapping[str, tuple[str, ...]] = {}
    reviews: list[Asked] = []
    ended: list[Ended] = []
    held: list[Held] = []
    accepted: list[Accepted] = []
    sample_gap_ms: int = 0
