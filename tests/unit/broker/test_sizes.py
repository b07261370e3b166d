"""Record sizes, against sizes that Kafka's own arithmetic gives."""

import pytest

from app.broker.sizes import LARGEST_OVERHEAD_BYTES, batch_bytes
from app.core.record import Headers


@pytest.mark.parametrize(
    ("value", "key", "headers", "expected"),
    [
        (None, None, (), 61 + 1 + 6),
        (b"v", b"k", (), 61 + 1 + 8),
        (b"x" * 63, None, (), 61 + 2 + 69),  # the body passes 63 bytes: its length takes two
        (b"x" * 64, None, (), 61 + 2 + 71),  # so does the value's length
        (b"", b"", (("n", b"12"),), 61 + 1 + 6 + 2 + 3),
    ],
)
def test_batch_bytes_counts_header_lengths_and_fields(
    value: bytes | None, key: bytes | None, headers: Headers, expected: int
) -> None:
    """Lengths are zigzag varints: one byte up to 63, two up to 8,191."""
    assert expected == batch_bytes(value, key, headers)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 8_191, 8_192, 1_048_575, 1_048_576])
def test_batch_bytes_overhead_never_exceeds_the_largest(size: int) -> None:
    """What the quick check allows for is enough at every size."""
    assert batch_bytes(b"x" * size, b"y" * size) - 2 * size <= LARGEST_OVERHEAD_BYTES
