"""A seam that freezes a worker of agents where that does most harm; and the safeguards against it, taken out one at a time."""

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.broker.base import Assignment
from app.broker.kafka.confirming import ConfirmingClient
from app.broker.kafka.consumer import KafkaConsumer
from app.core.errors import Fenced
from app.decisions.ledger import Ledger
from app.decisions.record import DECISIONS, EffectRecord, EffectStatus
from app.dispatch.consumer import Dispatcher
from app.dispatch.partitions import Partition
from app.http.client import HttpClient

REFUSED = "a commit of an ended epoch was refused"

MOMENTS: Mapping[str, int] = {
    "decision queued": signal.SIGRTMIN + 1,
    "effect to be claimed": signal.SIGRTMIN + 2,
    "claimed effect to be posted": signal.SIGRTMIN + 3,
    "claimed effect posted": signal.SIGRTMIN + 4,
    "keyed effect to be posted": signal.SIGRTMIN + 5,
}
"""Where a worker can be told to freeze, and the signal that tells it."""

_told: set[str] = set()


def freezes_when_told() -> None:
    """No safeguard: told by a signal, the worker stops itself when it comes to that moment next. It writes down, too, which
    of its commits are refused."""
    produce: Any = ConfirmingClient.produce
    claim: Any = Ledger.claim
    post: Any = HttpClient.post_json
    commit: Any = KafkaConsumer.commit

    def produce_and_freeze(self: Any, token: Any, topic: str, *rest: Any) -> None:
        produce(self, token, topic, *rest)
        if topic == DECISIONS:
            _freeze_at("decision queued")

    async def freeze_and_claim(self: Ledger, *arguments: Any) -> Any:
        _freeze_at("effect to be claimed")
        return await claim(self, *arguments)

    async def freeze_and_post(self: HttpClient, url: str, *arguments: Any) -> None:
        is_claimed = url.endswith("hold_payment")
        _freeze_at("claimed effect to be posted" if is_claimed else "keyed effect to be posted")
        await post(self, url, *arguments)
        if is_claimed:
            _freeze_at("claimed effect posted")

    async def commit_and_note(self: KafkaConsumer, offsets: Any) -> None:
        try:
            await commit(self, offsets)
        except Fenced:
            logging.getLogger(__name__).warning(REFUSED)
            raise

    for name, number in MOMENTS.items():
        signal.signal(number, _teller(name))
    signal.signal(signal.SIGCONT, lambda *_: _told.clear())  # once it goes on, it is not to freeze again
    ConfirmingClient.produce = produce_and_freeze  # type: ignore[method-assign, assignment]
    Ledger.claim = freeze_and_claim  # type: ignore[method-assign, assignment]
    HttpClient.post_json = freeze_and_post  # type: ignore[method-assign, assignment]
    KafkaConsumer.commit = commit_and_note  # type: ignore[method-assign]


def _teller(name: str) -> Callable[[int, Any], None]:
    def tell(number: int, frame: Any) -> None:
        _told.add(name)

    return tell


def _freeze_at(name: str) -> None:
    if name in _told:
        _told.clear()
        os.kill(os.getpid(), signal.SIGSTOP)


def ended_epochs_commit() -> None:
    """Goes on with partitions that were lost, and commits what ends of them."""
    begin: Any = Dispatcher._begin

    async def keep(self: Dispatcher, partitions: Sequence[Any]) -> None:
        """Nothing has ended."""

    def begin_again(self: Dispatcher, assignment: Assignment, committed: Any) -> None:
        self._partitions.pop(assignment.place, None)
        begin(self, assignment, committed)

    def held(self: Dispatcher, assignments: Sequence[Assignment]) -> list[Partition]:
        return [self._partitions[one.place] for one in assignments if one.place in self._partitions]

    Dispatcher.on_lost = keep  # type: ignore[method-assign, assignment]
    Dispatcher._lose = keep  # type: ignore[method-assign]
    Dispatcher._begin = begin_again  # type: ignore[method-assign]
    Dispatcher._held = held  # type: ignore[method-assign, assignment]
    KafkaConsumer._refuse_ended = lambda self, offsets: None  # type: ignore[method-assign]


def nothing_is_claimed() -> None:
    """Calls a receiver that knows no keys without saying so first."""

    async def call_at_once(self: Ledger, entry: EffectRecord, name: str, status: EffectStatus) -> EffectRecord:
        return self._further(entry, name, status)

    Ledger.claim = call_at_once  # type: ignore[method-assign]


def every_decision_stands() -> None:
    """Acts on each decision about an alert, not only on the first one in the log."""
    Ledger.standing_offset = lambda self, alert_id, agent: None  # type: ignore[method-assign]
