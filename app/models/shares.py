"""The part of the global limits that is this process's: as many partitions of its agents' topics as it owns, of all."""


class Shares:
    """Who owns nothing, or says nothing about partitions, may use at least one partition's part."""

    def __init__(self) -> None:
        self._partitions: dict[str, int] = {}
        self._owned: set[tuple[str, int]] = set()

    def declare(self, agent: str, partitions: int) -> None:
        """How many partitions the agent's topic has."""
        self._partitions[agent] = partitions

    def assigned(self, agent: str, partition: int) -> None:
        self._owned.add((agent, partition))

    def ended(self, agent: str, partition: int) -> None:
        self._owned.discard((agent, partition))

    @property
    def share(self) -> float:
        """0 to 1; all of it where no agent has said how many partitions there are."""
        whole = sum(self._partitions.values())
        return max(1, min(whole, len(self._owned))) / whole if whole else 1.0
