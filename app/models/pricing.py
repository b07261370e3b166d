"""What a call costs. Money is whole micro-dollars; prices are dollars per million tokens, by the model's configured name."""

import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec

from app.core.errors import SetupError
from app.models.base import Usage

_NANO_USD = 1_000
"""A dollar per million tokens is a micro-dollar a token; prices have up to three decimals."""


class Price(msgspec.Struct, frozen=True):
    """Nano-dollars a token, by kind. The prompt cache has prices of its own."""

    input: int
    output: int
    cache_read: int
    cache_write: int

    def cost(self, usage: Usage) -> int:
        """Micro-dollars, rounded up."""
        nano = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
        )
        return math.ceil(Decimal(nano) / _NANO_USD)

    def most(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-dollars at the most, whatever the prompt cache does."""
        return math.ceil(
            Decimal(input_tokens * max(self.input, self.cache_write) + output_tokens * self.output) / _NANO_USD
        )


FREE = Price(0, 0, 0, 0)

KNOWN_PRICES: Mapping[str, Price] = {"rules": FREE, "claude-sonnet-4-6": Price(3_000, 15_000, 300, 3_750)}


def parse_prices(text: str) -> dict[str, Price]:
    """The known prices and those of the setting `model_prices`: `name=input/output/cache read/cache write, ...`.

    Raises: SetupError.
    """
    prices = dict(KNOWN_PRICES)
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, numbers = entry.partition("=")
        try:
            values = [_nano(number) for number in numbers.split("/")]
            prices[name.strip()] = Price(*values)
        except (ValueError, TypeError, InvalidOperation):
            raise SetupError(
                "model_prices",
                f"{entry!r} is no price; write name=input/output/cache-read/cache-write in dollars per million tokens, "
                "such as claude-sonnet-4-6=3/15/0.30/3.75",
            ) from None
    return prices


def _nano(number: str) -> int:
    nano = Decimal(number.strip()) * _NANO_USD
    if not nano.is_finite() or nano < 0 or nano != nano.to_integral_value():
        raise ValueError(number)
    return int(nano)
