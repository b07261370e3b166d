"""Every error of the project, by what the caller can do about it.

    HeadraceError
    ├── SetupError          before the start: a setting or a server is wrong; exit code 2, names it
    ├── RecordError         this one record only; its neighbours go on
    │   ├── BadRecord       it cannot be decoded or breaks a declared rule
    │   ├── RecordTooLarge  the broker would refuse it, and its whole batch with it
    │   └── RecordTooEarly  its time lies too far in the future
    ├── Unavailable         a server does not answer: try again later
    ├── Fenced              the partition or position is another's now: drop the work
    └── Rejected            will be refused again: authorization, spend limit, unknown topic

A user sees one line: what is wrong and what to do. Tracebacks only with --debug.
"""

from collections.abc import Iterator


class HeadraceError(Exception):
    """Base of everything this project raises on purpose. `str(error)` is one line for a person."""

    retry_after_ms: int | None = None
    """How long a server asked to wait before the next try; None where it said nothing."""
    was_tried: bool = True
    """False where nothing was begun: such a refusal uses up no attempt."""


class SetupError(HeadraceError):
    """A setting, a declaration or an address is wrong. `setting` names it as the user wrote it."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting


class RecordError(HeadraceError):
    """One record cannot be handled. Partition and offset are -1 where it has none yet."""

    def __init__(self, reason: str, *, topic: str = "", partition: int = -1, offset: int = -1) -> None:
        place = f"{topic}/{partition}/{offset}: " if offset >= 0 else f"{topic}: " if topic else ""
        super().__init__(f"{place}{reason}")
        self.reason = reason
        self.topic = topic
        self.partition = partition
        self.offset = offset


class BadRecord(RecordError):
    """The record cannot be decoded, or breaks a rule that its topic declares."""


class RecordTooLarge(RecordError):
    """Key, value and headers together exceed what the topic takes."""


class RecordTooEarly(RecordError):
    """The record's time lies further in the future than the topic takes."""


class Unavailable(HeadraceError):
    """A server does not answer. Retriable; the message names the address and since when."""


class Fenced(HeadraceError):
    """The partition, epoch or position belongs to somebody else now: nothing was changed."""


class Rejected(HeadraceError):
    """The server understood and refused, and will refuse again: never retried."""


def cause_of(group: BaseExceptionGroup) -> BaseException:
    """What a task group that failed is to raise: of an outage that several of its tasks have met the first, since it is one;
    what is no outage goes before; the group itself where that are several."""
    _, others = group.split(Unavailable)
    if others is None:
        return next(_leaves(group))
    found = list(_leaves(others))
    return found[0] if len(found) == 1 else group


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
