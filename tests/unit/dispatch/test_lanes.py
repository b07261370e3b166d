"""Whose turn it is."""

from app.dispatch.lanes import Lane, Lanes


def heads(lanes: Lanes[str], how_many: int) -> list[str]:
    """The heads of the next lanes, which then run."""
    taken = [lanes.take() for _ in range(how_many)]
    return [lane.head for lane in taken if lane is not None]


def take(lanes: Lanes[str]) -> Lane[str]:
    lane = lanes.take()
    assert lane is not None
    return lane


def test_lanes_same_key_only_head_runs() -> None:
    """The second record of a key waits for the first, while other keys run."""
    lanes: Lanes[str] = Lanes()
    for key, item in ((b"a", "a1"), (b"a", "a2"), (b"b", "b1")):
        lanes.add("p0", key, item)
    first = take(lanes)
    assert ["b1"] == heads(lanes, 5)
    lanes.finish(first)
    assert ["a2"] == heads(lanes, 5)


def test_lanes_keys_are_exact() -> None:
    """Keys with equal hashes would be two lanes; the same key in two partitions is two lanes too."""
    lanes: Lanes[str] = Lanes()
    lanes.add("p0", b"a", "1")
    lanes.add("p1", b"a", "2")
    lanes.add("p0", b"", "3")
    assert ["1", "2", "3"] == heads(lanes, 5)


def test_lanes_without_key_all_run_at_once() -> None:
    """Records without a key have no order to keep."""
    lanes: Lanes[str] = Lanes()
    for item in ("1", "2", "3"):
        lanes.add("p0", None, item)
    assert ["1", "2", "3"] == heads(lanes, 5)


def test_lanes_long_lane_takes_turns_with_others() -> None:
    """A key with many records does not starve the others: its next one goes to the back."""
    lanes: Lanes[str] = Lanes()
    for item in ("a1", "a2", "a3"):
        lanes.add("p0", b"a", item)
    lanes.add("p0", b"b", "b1")
    order = []
    while (lane := lanes.take()) is not None:
        order.append(lane.head)
        lanes.finish(lane)
    assert ["a1", "b1", "a2", "a3"] == order


def test_lanes_parked_lane_holds_only_its_own_key() -> None:
    """While a head waits for its retry nothing of its key runs, and everything else does."""
    lanes: Lanes[str] = Lanes()
    for key, item in ((b"a", "a1"), (b"a", "a2"), (b"b", "b1")):
        lanes.add("p0", key, item)
    failed = take(lanes)
    lanes.park(failed)
    assert 1 == lanes.parked
    assert ["b1"] == heads(lanes, 5)
    lanes.unpark(failed)
    assert 0 == lanes.parked
    assert ["a1"] == heads(lanes, 5)


def test_lanes_due_retries_go_first_in_their_order() -> None:
    """What has begun has a deadline, what has not begun has none yet."""
    lanes: Lanes[str] = Lanes()
    begun = []
    for item in ("first", "second", "third"):
        lanes.add("p0", item.encode(), item)
        begun.append(take(lanes))
        lanes.park(begun[-1])
    lanes.add("p0", b"fresh", "fresh")
    for lane in begun:
        lanes.unpark(lane)
    assert lanes.take_due(begun[1])
    assert not lanes.take_due(begun[1])
    assert ["first", "third", "fresh"] == heads(lanes, 5)


def test_lanes_drop_forgets_owner_and_nobody_else() -> None:
    """Of a partition that went nothing starts any more: ready, parked and waiting records alike."""
    lanes: Lanes[str] = Lanes()
    for key, item in ((b"a", "a1"), (b"a", "a2"), (b"b", "b1"), (b"c", "c1"), (b"e", "e1")):
        lanes.add("p0", key, item)
    lanes.add("p1", b"d", "d1")
    running, parked, due = take(lanes), take(lanes), take(lanes)
    lanes.park(parked)
    lanes.park(due)
    lanes.unpark(due)
    lanes.drop("p0")
    assert [True] * 3 == [lane.gone for lane in (running, parked, due)]
    assert 0 == lanes.parked
    assert ["d1"] == heads(lanes, 5)


def test_lanes_new_epoch_does_not_meet_stale_lane() -> None:
    """Parallel-consumer #875: a record of a new epoch was put onto what the old epoch had left, and never ran."""
    lanes: Lanes[str] = Lanes()
    old, new = object(), object()
    lanes.add(old, b"a", "old")
    take(lanes)
    lanes.drop(old)
    lanes.add(new, b"a", "new")
    assert ["new"] == heads(lanes, 5)


def test_lanes_finished_lane_leaves_nothing_behind() -> None:
    """Memory follows the keys that wait now, not all that ever came."""
    lanes: Lanes[str] = Lanes()
    for number in range(100):
        lanes.add("p0", str(number).encode(), "item")
        lanes.finish(take(lanes))
    assert 0 == len(lanes)
    assert lanes.take() is None


def test_lanes_taken_out_of_turn_is_not_taken_again() -> None:
    """Its place in the queue is nobody's until it is ready again."""
    lanes: Lanes[str] = Lanes()
    lanes.add("p0", b"a", "a1")
    urgent = lanes.add("p0", b"b", "b1")
    assert urgent is not None
    assert lanes.add("p0", b"b", "b2") is None
    lanes.take_out_of_turn(urgent)
    first = lanes.take()
    assert first is not None
    assert "a1" == first.head
    assert lanes.take() is None
    lanes.finish(urgent)
    assert urgent is lanes.take()
    assert lanes.take() is None
