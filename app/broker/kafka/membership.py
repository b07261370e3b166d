"""How consumers belong to their groups: by which protocol, and whether as a member that may come back.

Sessions of KIP-848 are a setting of the broker (45 s unless changed there); those of the classic protocol are ours.
"""

from typing import Any, NamedTuple

from confluent_kafka import KafkaError

from app.broker.kafka.lost import LOST_SECONDS
from app.core.errors import SetupError

PROTOCOLS = ("consumer", "classic")

SESSION_MS = 10_000
"""After this a silent member of a classic group is taken for dead: half the time that an alert has by default."""

HEARTBEAT_MS = 1_000
"""Members hear of a rebalance by the answer to one."""

INSTANCE_SESSION_MS = 45_000
"""The same for a member with an instance: it has so long to come back, which is what its name is for."""

LONGEST_REBALANCE_MS = 300_000
"""How long a listener may take, to drain or to restore tables, until its member is expelled; the classic protocol makes
the others wait as long."""


class Membership(NamedTuple):
    """protocol: `consumer` (KIP-848, brokers from 4.0 on) or `classic`. instance: a name that no other process has and that
    this one has after each restart, or nothing: then it is another member each time."""

    protocol: str = PROTOCOLS[0]
    instance: str = ""

    def is_eager(self, topics: int) -> bool:
        """Whether all partitions are given up at each rebalance. Joined topics must keep together, which of the classic
        assignors only eager ones promise."""
        return self.protocol == "classic" and topics > 1

    @property
    def lost_after_s(self) -> float:
        """How long a client must have been without a broker until another one may join in its place. The newer protocol
        knows the instance of a lost one until its session ends, and would refuse it."""
        return INSTANCE_SESSION_MS / 1000 if self.instance and self.protocol == "consumer" else LOST_SECONDS

    def name_taken(self, error: KafkaError, group: str) -> SetupError | None:
        """What to tell when the broker knows another living member by this instance: the newer protocol refuses the second
        one, the classic one the first. The client calls both fatal, and says why in words only."""
        if not self.instance or error.code() != KafkaError._FATAL or "instance" not in error.str():
            return None
        return SetupError(
            "HEADRACE_INSTANCE",
            f"{self.instance!r} is used by another process in group {group}, or by one that died within its session, "
            f"{INSTANCE_SESSION_MS // 1000} s by default; give each process a name of its own",
        )

    def settings(self, topics: int) -> dict[str, Any]:
        """Of a client whose group has so many topics."""
        chosen: dict[str, Any] = {"group_protocol": self.protocol, "max_poll_interval_ms": LONGEST_REBALANCE_MS}
        if self.instance:
            chosen["group_instance_id"] = self.instance
        if self.protocol == "consumer":
            return {**chosen, "group_remote_assignor": "range"}
        return {
            **chosen,
            "partition_assignment_strategy": "range" if self.is_eager(topics) else "cooperative-sticky",
            "session_timeout_ms": INSTANCE_SESSION_MS if self.instance else SESSION_MS,
            "heartbeat_interval_ms": HEARTBEAT_MS,
        }


UNNAMED = Membership()
"""By the newer protocol, and another member at each start."""
