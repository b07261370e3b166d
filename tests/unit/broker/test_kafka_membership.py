"""What a consumer's client is told about its group, and whether those times fit each other."""

import inspect

from confluent_kafka import KafkaError

from app.application import App
from app.broker.kafka.lost import LOST_SECONDS
from app.broker.kafka.membership import (
    HEARTBEAT_MS,
    INSTANCE_SESSION_MS,
    LONGEST_REBALANCE_MS,
    SESSION_MS,
    Membership,
)
from app.core.durations import parse_duration_ms
from app.dispatch.commits import LAST_COMMIT_SECONDS
from app.dispatch.consumer import CANCELLED_WITHIN_SECONDS
from app.dispatch.work import DispatchConfig

KAFKA_SHORTEST_SESSION_MS = 6_000
"""Below it brokers refuse a member. Source: group.min.session.timeout.ms."""


def test_membership_newer_protocol_leaves_sessions_to_the_broker() -> None:
    """A client refuses settings that the protocol does not know."""
    settings = Membership().settings(2)
    assert ("consumer", "range") == (settings["group_protocol"], settings["group_remote_assignor"])
    assert not {"session_timeout_ms", "heartbeat_interval_ms", "partition_assignment_strategy"} & settings.keys()


def test_membership_classic_joined_topics_stay_together_others_move_singly() -> None:
    """Several topics need the range assignor, which is eager; one topic's partitions are handed over one by one."""
    classic = Membership("classic")
    assert "range" == classic.settings(2)["partition_assignment_strategy"]
    assert "cooperative-sticky" == classic.settings(1)["partition_assignment_strategy"]
    assert [False, True] == [classic.is_eager(topics) for topics in (1, 2)]
    assert not Membership().is_eager(2)


def test_membership_lost_client_of_a_named_member_waits_for_the_end_of_its_session() -> None:
    """Before that the newer protocol refuses its successor, which would end the process."""
    assert INSTANCE_SESSION_MS / 1000 == Membership(instance="pod-1").lost_after_s
    assert {LOST_SECONDS} == {one.lost_after_s for one in (Membership(), Membership("classic", "pod-1"))}


def test_membership_times_fit_each_other() -> None:
    """Heartbeats within sessions, sessions within deadlines, hand-overs within what a member may take."""
    deadline_ms = parse_duration_ms(inspect.signature(App.agent).parameters["deadline"].default)
    config = DispatchConfig()
    hand_over_ms = config.revoke_drain_ms + (LAST_COMMIT_SECONDS + CANCELLED_WITHIN_SECONDS) * 1000
    assert 3 * HEARTBEAT_MS < SESSION_MS < deadline_ms < INSTANCE_SESSION_MS
    assert KAFKA_SHORTEST_SESSION_MS < SESSION_MS
    assert hand_over_ms < LONGEST_REBALANCE_MS


def test_membership_instance_is_known_by_its_name_for_a_longer_session() -> None:
    """A member that may come back is waited for."""
    settings = Membership("classic", "pod-1").settings(1)
    assert ("pod-1", INSTANCE_SESSION_MS) == (settings["group_instance_id"], settings["session_timeout_ms"])
    assert "group_instance_id" not in Membership("classic").settings(1)


def test_membership_name_taken_is_told_by_the_client_s_words() -> None:
    """Only a fatal error about the instance says that a name is taken, and only where there is a name."""
    taken = KafkaError(KafkaError._FATAL, "The instance ID is still used by another member")
    member = Membership("consumer", "pod-1")
    assert "HEADRACE_INSTANCE: 'pod-1'" in str(member.name_taken(taken, "g"))
    assert member.name_taken(KafkaError(KafkaError._FATAL, "out of memory"), "g") is None
    assert Membership().name_taken(taken, "g") is None
