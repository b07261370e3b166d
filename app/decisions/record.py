"""What is written down: decisions, the state of effects, and requests for review, and the topics that keep them.

All three go to the partition number of their alert, so one owner of that partition finds everything about it. Keys of
decisions and reviews are unique and say nothing about a person; whom a record concerns stands in its headers. So
compaction removes none of them, but for what is forgotten: that is replaced, or taken back, under its key.
"""

import hashlib
from collections.abc import Sequence
from enum import Enum
from typing import Literal

import msgspec

from app.broker.topics import TopicSpec
from app.core.codec import compact_key
from app.core.record import Headers, Record
from app.decisions.policy import PolicyChange
from app.serving.base import Features

DECISIONS = "agent.decisions"
EFFECTS = "agent.effects"
REVIEWS = "agent.reviews"
SWITCHES = "agent.switches"

MAX_ANSWER_BYTES = 65_536
KEEP_MS = 30 * 86_400_000
MAX_ID_BYTES = 5_000
"""Of an alert's id, and of its key: `agent.effects` repeats them for each effect, and everybody remembers ids."""

EXTRA_BYTES = 1_048_576
"""What a decision takes more than its alert: context, answer and features. Control characters cost six bytes each."""

Mode = Literal["live", "shadow", "dry-run"]
"""live: acts. shadow: decides beside the live one, never acts. dry-run: nothing acts on it, for trials."""


class Hops(msgspec.Struct, frozen=True):
    """When each hop was reached, ms since 1970-01-01 UTC; 0 where it is not known."""

    event_ms: int
    """The event's own time."""
    received_ms: int
    """The engine read the event."""
    alert_ms: int
    """The broker stamped the alert."""
    agent_ms: int
    """The handler began, at its first attempt."""
    enriched_ms: int
    """The last features that were asked for had arrived."""
    decided_ms: int
    """Policy had judged the answer."""


HOPS = (
    ("event time to engine", "event_ms", "received_ms"),
    ("engine to alert", "received_ms", "alert_ms"),
    ("alert to agent", "alert_ms", "agent_ms"),
    ("agent to fresh features", "agent_ms", "enriched_ms"),
    ("features to decision", "enriched_ms", "decided_ms"),
)
"""What people call the way between two moments of `Hops`, and which two."""


class Answer(msgspec.Struct, frozen=True):
    """Model text as it came: its first 64 KiB, with length and hash of the whole."""

    text: str
    bytes: int
    sha256: str


class ModelUse(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model. prompt_sha256: of the instructions. context: the exact text shown. failure: the code where
    there was no usable answer."""

    model: str
    prompt_sha256: str
    context: str
    answer: Answer | None
    stop_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model_ms: int = 0
    failure: str = ""


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about one alert. The first `live` one of an (alert, agent) in the log stands.

    decision: after policy. answered: what the agent said, null where its fallback spoke. attempt: from 1.
    writer, number, previous: this writer's chain; `previous` is the sha256 of the value of its record before this one.
    """

    agent: str
    alert_id: str
    alert_type: str
    entity: str
    alert_topic: str
    alert_partition: int
    alert_offset: int
    origin: str
    mode: Mode
    decision: msgspec.Raw
    answered: msgspec.Raw
    policy: PolicyChange | None
    reasons: tuple[str, ...]
    attempt: int
    features: tuple[Features, ...]
    models: tuple[ModelUse, ...]
    hops: Hops
    alert: msgspec.Raw
    writer: str
    number: int
    previous: str


class ForgottenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the place of a decision whose entity was forgotten: its place in its writer's chain, and the sha256
    of the value that stood there. forgotten_ms: wall ms."""

    writer: str
    number: int
    previous: str
    sha256: str
    forgotten_ms: int


class EffectState(Enum):
    """How far one effect is; it moves only forward, in this order."""

    INTENDED = "intended"
    CALLED = "called"
    WITHHELD = "withheld"
    """An operator had switched it off before it was made: a person must look."""
    UNKNOWN = "unknown"
    """The call of an `at_most_once` receiver broke off: a person must look."""
    FAILED = "failed"
    """The receiver refused, or did not answer for too long: a person must look."""
    LOGGED = "logged"
    """No address is configured."""
    DONE = "done"

    @property
    def rank(self) -> int:
        return _RANKS[self]

    @property
    def ended(self) -> bool:
        return self.rank > EffectState.CALLED.rank


_RANKS = {state: rank for rank, state in enumerate(EffectState)}


class EffectStatus(msgspec.Struct, frozen=True):
    """State of one effect, when it was reached (wall ms), and what there is to say about it."""

    state: EffectState
    key: str
    receiver: str
    at_ms: int
    detail: str = ""


class EffectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The standing decision of one (alert, agent) and how far each of its effects is. writer: who wrote this state."""

    alert_id: str
    agent: str
    action: str
    decision_offset: int
    decision_sha256: str
    effects: dict[str, EffectStatus]
    writer: str

    @property
    def key(self) -> bytes:
        return effect_key(self.alert_id, self.agent)


class ReviewRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", tag="review_request"):
    """Something that a person must decide. The same `review_id` may be written again: it is one request.

    kind: a decision that says so, or an effect that could not be completed. reason: in the decision's own words.
    codes: why policy or a failure had a say, empty where the answer itself asks for a person.
    """

    review_id: str
    kind: Literal["decision", "effect"]
    agent: str
    alert_id: str
    alert_type: str
    entity: str
    reason: str
    codes: tuple[str, ...]
    decision_offset: int
    requested_ms: int
    alert: msgspec.Raw


def decision_key(writer: str, number: int) -> bytes:
    """Key on `agent.decisions`: the place in a chain, which only one decision has."""
    return compact_key(writer=writer, number=number)


def review_key(record: Literal["review_request", "review_verdict"], review_id: str) -> bytes:
    """Key on `agent.reviews`: one request, and one verdict, a review. The id names the alert, so only its hash is shown."""
    return compact_key(record=record, review=sha256(review_id.encode()))


def effect_key(alert_id: str, agent: str) -> bytes:
    """Key on `agent.effects`."""
    return compact_key(alert_id=alert_id, agent=agent)


def idempotency_key(agent: str, effect: str, alert_id: str) -> str:
    """The same for every repeat of one effect, whoever makes it."""
    return f"{agent}:{effect}:{alert_id}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept_answer(text: str) -> Answer:
    """At most 64 KiB of a model's text, cut between characters."""
    data = text.encode(errors="replace")
    kept = data[:MAX_ANSWER_BYTES].decode(errors="ignore")
    return Answer(kept, len(data), sha256(data))


def decision_headers(record: DecisionRecord) -> Headers:
    """What readers may choose by without decoding."""
    return (
        ("agent", record.agent.encode()),
        ("alert_id", record.alert_id.encode()),
        ("entity", record.entity.encode()),
        ("mode", record.mode.encode()),
    )


FORGOTTEN = "forgotten"
"""Header of what stands in the place of a forgotten decision: when it was forgotten, ms. Other readers pass over it."""

_PERSONAL = ("alert_id", "entity")
"""Headers that say whom a decision concerns."""


def forgotten_headers(headers: Headers, forgotten_ms: int) -> Headers:
    """The headers of a decision without those that name a person."""
    kept = tuple(header for header in headers if header[0] not in _PERSONAL)
    return (*kept, (FORGOTTEN, b"%d" % forgotten_ms))


def is_forgotten(record: Record) -> bool:
    """Whether a record of `agent.decisions` stands in the place of a forgotten one; by its header alone."""
    return record.header(FORGOTTEN) is not None


class _Concerned(msgspec.Struct):
    """As little of a record as tells whom it concerns."""

    entity: str


def entity_of(record: Record) -> bytes | None:
    """Whom a decision or a review concerns: by its header, else by its value; None where neither says so."""
    header = record.header("entity")
    if header is not None:
        return header
    try:
        return msgspec.json.decode(record.value or b"", type=_Concerned).entity.encode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def decision_topic(alert_topics: Sequence[TopicSpec]) -> TopicSpec:
    """`agent.decisions`, as many partitions as the largest alert topic."""
    return TopicSpec(
        name=DECISIONS,
        partitions=max(spec.partitions for spec in alert_topics),
        cleanup="compact,delete",
        retention_ms=KEEP_MS,
        max_message_bytes=max(spec.max_message_bytes for spec in alert_topics) + EXTRA_BYTES,
    )


def effect_topic(decisions: TopicSpec) -> TopicSpec:
    """`agent.effects`. A compaction lag of an hour keeps each state long enough to see who reached it first."""
    return TopicSpec(
        name=EFFECTS,
        partitions=decisions.partitions,
        cleanup="compact,delete",
        retention_ms=KEEP_MS,
        min_compaction_lag_ms=3_600_000,
    )


def switch_topic() -> TopicSpec:
    """`agent.switches`: one partition, so that every process reads the same order; the last word on each name stays. Old
    heartbeats go after minutes, so that a start has little to read."""
    return TopicSpec(name=SWITCHES, partitions=1, cleanup="compact", retention_ms=None, segment_ms=600_000)


def review_topic(decisions: TopicSpec) -> TopicSpec:
    """`agent.reviews`."""
    return TopicSpec(
        name=REVIEWS,
        partitions=decisions.partitions,
        cleanup="compact,delete",
        retention_ms=KEEP_MS,
        max_message_bytes=decisions.max_message_bytes,
    )
