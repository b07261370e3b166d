"""Where a worker may be killed: every await boundary between fetching an alert and committing what came of it."""

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from app.broker.dead_letters import DeadLetters
from app.broker.kafka.consumer import KafkaConsumer
from app.decisions import effects
from app.decisions.actions import GROUP as ACTIONS
from app.decisions.context import Context
from app.decisions.handling import AgentWork
from app.decisions.ledger import Ledger
from app.decisions.log import DecisionLog
from app.dispatch.offsets import OffsetTracker
from app.http.client import HttpClient
from app.models.anthropic import AnthropicModel
from tests.faults.sink import KEYLESS


@dataclass(frozen=True)
class Failpoint:
    """A place before or after one function. counts: which of its calls are meant, by the first argument (self, of a method)
    and the result; about: by the other arguments. hits: up to which hit a run of a few alerts surely comes."""

    owner: type | ModuleType
    function: str
    side: Literal["before", "after"]
    counts: Callable[[Any, Any], bool] = lambda self, result: True
    hits: int = 6
    about: Callable[..., bool] = lambda *arguments: True


def _of_agent(consumer: Any, result: Any) -> bool:
    return bool(consumer.group != ACTIONS)


def _of_actions(consumer: Any, result: Any) -> bool:
    return bool(consumer.group == ACTIONS)


def _of_keyless(url: str, *arguments: Any) -> bool:
    return url.rpartition("/")[2] in KEYLESS


FAILPOINTS = {
    "alerts polled": Failpoint(
        KafkaConsumer, "poll", "after", lambda self, result: self.group != ACTIONS and bool(result), hits=3
    ),
    "looked back": Failpoint(AgentWork, "assigned", "after", hits=3),
    "handler begins": Failpoint(AgentWork, "handle", "before"),
    "features read": Failpoint(Context, "features", "after"),
    "model asked": Failpoint(AnthropicModel, "decide", "before"),
    "model answered": Failpoint(AnthropicModel, "decide", "after"),
    "decision not yet written": Failpoint(DecisionLog, "write", "before"),
    "decision acknowledged": Failpoint(DecisionLog, "write", "after"),
    "alert handled": Failpoint(AgentWork, "handle", "after"),
    "offset not yet done": Failpoint(OffsetTracker, "finish", "before"),
    "offset done": Failpoint(OffsetTracker, "finish", "after"),
    "alerts not yet committed": Failpoint(KafkaConsumer, "commit", "before", _of_agent, hits=2),
    "alerts committed": Failpoint(KafkaConsumer, "commit", "after", _of_agent, hits=2),
    "decisions polled": Failpoint(
        KafkaConsumer, "poll", "after", lambda self, result: self.group == ACTIONS and bool(result), hits=3
    ),
    "effects not yet entered": Failpoint(Ledger, "enter", "before"),
    "effects entered": Failpoint(Ledger, "enter", "after"),
    "effect not yet posted": Failpoint(HttpClient, "post_json", "before", hits=4),
    "effect posted": Failpoint(HttpClient, "post_json", "after", hits=4),
    "effect's end not yet written": Failpoint(Ledger, "advance", "before"),
    "effect's end written": Failpoint(Ledger, "advance", "after"),
    "effect not yet claimed": Failpoint(Ledger, "claim", "before", hits=2),
    "effect claimed": Failpoint(Ledger, "claim", "after", hits=2),
    "claimed effect not yet posted": Failpoint(HttpClient, "post_json", "before", hits=2, about=_of_keyless),
    "claimed effect posted": Failpoint(HttpClient, "post_json", "after", hits=2, about=_of_keyless),
    "person not yet asked": Failpoint(effects, "write_review", "before", hits=2),
    "person asked": Failpoint(effects, "write_review", "after", hits=2),
    "dead letter not yet written": Failpoint(DeadLetters, "write", "before", hits=1),
    "dead letter written": Failpoint(DeadLetters, "write", "after", hits=1),
    "decisions not yet committed": Failpoint(KafkaConsumer, "commit", "before", _of_actions, hits=2),
    "decisions committed": Failpoint(KafkaConsumer, "commit", "after", _of_actions, hits=2),
}


def arm(name: str, hit: int, tell: Callable[[], None]) -> None:
    """Kills this process at that hit of the failpoint, after `tell`."""
    point = FAILPOINTS[name]
    original, passed = getattr(point.owner, point.function), 0

    def pass_by(self: Any, result: Any, arguments: Any) -> None:
        nonlocal passed
        if point.counts(self, result) and point.about(*arguments):
            passed += 1
            if passed == hit:
                tell()
                os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(original)
    def plain(self: Any, *arguments: Any, **options: Any) -> Any:
        if point.side == "before":
            pass_by(self, None, arguments)
        result = original(self, *arguments, **options)
        if point.side == "after":
            pass_by(self, result, arguments)
        return result

    @functools.wraps(original)
    async def awaiting(self: Any, *arguments: Any, **options: Any) -> Any:
        if point.side == "before":
            pass_by(self, None, arguments)
        result = await original(self, *arguments, **options)
        if point.side == "after":
            pass_by(self, result, arguments)
        return result

    setattr(point.owner, point.function, plain if point.owner is OffsetTracker else awaiting)
