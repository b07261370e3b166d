"""Up to when everything that was published has been read: what makes old features tell their age."""

from collections import deque
from itertools import islice

MOST_ENDS = 60


class AsOf:
    """Of one partition. It is asked now and then where the partition ends; whoever has read up to the answer has read all that was
    published before the question. No event's own time takes part."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, int]] = deque()
        self._as_of_ms = 0

    def learn_end(self, asked_ms: int, end: int) -> None:
        """Notes when it was asked where the partition ends, and the answer."""
        if len(self._ends) >= MOST_ENDS:
            self._ends = deque(islice(self._ends, 0, None, 2))
        self._ends.append((asked_ms, end))

    def at(self, position: int) -> int:
        """Wall time before which everything published lies before the position; 0 while that is not known."""
        while self._ends and position >= self._ends[0][1]:
            self._as_of_ms = self._ends.popleft()[0]
        return self._as_of_ms
