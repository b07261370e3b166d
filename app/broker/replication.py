"""How many copies a new topic gets on the cluster there is."""

import logging

logger = logging.getLogger(__name__)

SAFE_REPLICATION = 3
"""From this many copies on, a write is acknowledged by two of them, so that one broker may be lost."""


def copies_on(brokers: int, wanted: int, address: str) -> tuple[int, dict[str, str]]:
    """The copies of each partition, and the topic settings that belong to so many; fewer than wanted are said aloud."""
    copies = min(wanted, brokers)
    if copies < wanted:
        logger.info("%s has %d brokers: topics get %d copies instead of %d", address, brokers, copies, wanted)
    return copies, {"min.insync.replicas": "2"} if copies >= SAFE_REPLICATION else {}
