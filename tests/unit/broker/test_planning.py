"""The partition rule: 1 to 2 for each consumer thread, and nothing grows in place."""

import pytest

from app.broker.planning import advise, is_read_by_many
from app.broker.topics import TopicSpec, dead_letters_of

ORDERS = TopicSpec(name="raw.orders", partitions=12, key="user_id")


@pytest.mark.parametrize(("threads", "verdict"), [(5, "too many"), (6, "fits"), (12, "fits"), (13, "too few")])
def test_advise_threads_decide_whether_partitions_fit(threads: int, verdict: str) -> None:
    """Twelve partitions suit six to twelve threads."""
    advice = advise(ORDERS, 12, threads)
    assert (verdict, (threads, 2 * threads)) == (advice.verdict, advice.wanted)
    assert (verdict == "fits") == (advice.action == "")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ORDERS, "records of one user_id"),
        (TopicSpec(name="state.x", partitions=12, cleanup="compact"), "newest value"),
        (TopicSpec(name="agent.decisions", partitions=12), "partition number"),
    ],
)
def test_advise_existing_topic_is_not_grown_in_place(spec: TopicSpec, reason: str) -> None:
    """The refusal says who relies on the placement, and what to do instead."""
    action = advise(spec, 12, 20).action
    assert reason in action
    assert "not be grown in place" in action
    assert "new topic of 20" in action


def test_advise_missing_topic_is_declared_anew() -> None:
    """What does not exist yet can simply be declared otherwise."""
    assert "declare it with 20 to 40 partitions; it does not exist yet" == advise(ORDERS, None, 20).action


def test_is_read_by_many_passes_over_companions_and_single_partitions() -> None:
    """Dead letters follow their source, and one partition is one on purpose."""
    assert is_read_by_many(ORDERS)
    assert not is_read_by_many(dead_letters_of(ORDERS))
    assert not is_read_by_many(TopicSpec(name="agent.switches", partitions=1))
