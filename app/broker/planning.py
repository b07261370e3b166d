"""How many partitions a topic should have, and why it does not get more of them in place.

The rule: 1 to 2 partitions for each consumer thread. Fewer leave threads without work; more cost the broker and give none
of them anything. A worker process polls a topic with one thread for each group.
"""

from dataclasses import dataclass
from typing import Literal

from app.broker.topics import TopicSpec

PARTITIONS_PER_THREAD = (1, 2)

COMPANIONS = (".dead", ".late")
"""Topics that lie beside another and keep its partition numbers; nobody's speed depends on them."""


@dataclass(frozen=True)
class Advice:
    """What the rule says of one topic. wanted: fewest and most partitions. `action` is empty for a topic that fits."""

    topic: str
    partitions: int
    wanted: tuple[int, int]
    verdict: Literal["fits", "too few", "too many"]
    action: str = ""


def advise(spec: TopicSpec, existing: int | None, threads: int) -> Advice:
    """Judges a topic that `threads` consumer threads read together; threads >= 1.

    existing: its partitions on the cluster, None where it was not created yet and its declaration can still be changed.
    """
    least, most = (threads * each for each in PARTITIONS_PER_THREAD)
    partitions = spec.partitions if existing is None else existing
    if least <= partitions <= most:
        return Advice(spec.name, partitions, (least, most), "fits")
    if partitions > most:
        action = f"run up to {partitions} threads, or let it be: partitions cannot be taken away"
    else:
        action = f"will not be grown in place: {relied_on_for(spec)}; replay into a new topic of {least} partitions"
    if existing is None:
        action = f"declare it with {least} to {most} partitions; it does not exist yet"
    return Advice(spec.name, partitions, (least, most), "too many" if partitions > most else "too few", action)


def relied_on_for(spec: TopicSpec) -> str:
    """What would break if keys were placed anew: of all our topics, somebody relies on it."""
    if spec.key is not None:
        return f"records of one {spec.key} would lie in two partitions, out of order"
    if spec.cleanup != "delete":
        return "the newest value of a key would lie in another partition than the older ones"
    return "its records lie at the partition number of what they were made from"


def is_read_by_many(spec: TopicSpec) -> bool:
    """Whether the rule concerns the topic: not one partition on purpose, and no companion of another topic."""
    return spec.partitions > 1 and not spec.name.endswith(COMPANIONS)
