"""The memory of what was done is bounded by number and by age, over all partitions."""

from app.decisions.remembered import HORIZON_MS, Remembered


def test_remembered_keeps_the_newest_of_all_partitions() -> None:
    """Beyond its capacity the oldest entries go, whichever partition they are of."""
    remembered: Remembered[str, int] = Remembered(capacity=3)
    for number in range(5):
        remembered.put(number % 2, f"a:{number}", number, 1_000 + number)
    assert 3 == len(remembered)
    assert [None, None, 2, 3, 4] == [remembered.get(number % 2, f"a:{number}") for number in range(5)]


def test_remembered_old_entries_go() -> None:
    """At a day an entry is still known, after it it is forgotten."""
    remembered: Remembered[str, bool] = Remembered()
    remembered.put(0, "a:1", True, 1_000)
    remembered.put(0, "a:2", True, 1_000 + HORIZON_MS)
    assert remembered.get(0, "a:1")
    remembered.put(0, "a:2", True, 1_001 + HORIZON_MS)
    assert (None, True, 1) == (remembered.get(0, "a:1"), remembered.get(0, "a:2"), len(remembered))


def test_remembered_put_again_counts_once_and_as_new() -> None:
    """A repeated key takes one place, the newest."""
    remembered: Remembered[str, int] = Remembered(capacity=2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        remembered.put(0, key, value, 1_000)
    assert [3, None, 4] == [remembered.get(0, key) for key in "abc"]


def test_remembered_forget_gives_the_room_back() -> None:
    """A lost partition takes its entries along, however often it comes back."""
    remembered: Remembered[str, bool] = Remembered(capacity=2)
    remembered.put(1, "kept", True, 1_000)
    for _ in range(3):
        remembered.put(0, "a:1", True, 1_000)
        remembered.forget(0)
    remembered.put(0, "a:2", True, 2_000)
    assert [None, True, True] == [remembered.get(0, "a:1"), remembered.get(0, "a:2"), remembered.get(1, "kept")]
