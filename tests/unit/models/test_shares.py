"""A process's part of the limits is that of its partitions."""

from app.models.shares import Shares


def test_shares_without_agents_is_all() -> None:
    """Nobody has said that there are others."""
    assert 1.0 == Shares().share


def test_shares_count_partitions_of_all_agents() -> None:
    """Two agents on twelve partitions each: of twenty-four."""
    shares = Shares()
    shares.declare("a", 12)
    shares.declare("b", 12)
    assert 1 / 24 == shares.share
    for partition in range(6):
        shares.assigned("a", partition)
        shares.assigned("a", partition)
    assert 0.25 == shares.share
    shares.ended("a", 0)
    shares.ended("b", 0)
    assert 5 / 24 == shares.share
