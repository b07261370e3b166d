"""Prices are exact, known for one model, and otherwise set."""

import pytest

from app.core.errors import SetupError
from app.models.base import Usage
from app.models.pricing import KNOWN_PRICES, Price, parse_prices

SONNET = KNOWN_PRICES["claude-sonnet-4-6"]


def test_price_counts_each_kind_of_token_at_its_own() -> None:
    """A million of each: 3, 15, 0.30 and 3.75 dollars."""
    million = 1_000_000
    kinds = [Usage(*(million if kind == place else 0 for kind in range(4))) for place in range(4)]
    assert [3_000_000, 15_000_000, 300_000, 3_750_000] == [SONNET.cost(usage) for usage in kinds]


def test_price_rounds_up_to_a_micro_dollar() -> None:
    """One token from the cache costs 0.3 micro-dollars; nothing is free but nothing."""
    assert [1, 0] == [SONNET.cost(Usage(0, 0, 1, 0)), SONNET.cost(Usage(0, 0, 0, 0))]


def test_price_at_the_most_writes_all_input_to_the_cache() -> None:
    """The dearest way."""
    assert 1_000 * 3.75 + 100 * 15 == SONNET.most(1_000, 100)


def test_parse_prices_adds_to_what_is_known_and_may_replace_it() -> None:
    """Several, separated by commas; sonnet's price is built in."""
    prices = parse_prices("claude-haiku-5-5=1/5/0.10/1.25, claude-opus-5-5 = 5/25/0.5/6.25")
    assert Price(1_000, 5_000, 100, 1_250) == prices["claude-haiku-5-5"]
    assert Price(5_000, 25_000, 500, 6_250) == prices["claude-opus-5-5"]
    assert SONNET == prices["claude-sonnet-4-6"]
    assert Price(1_000, 1_000, 1_000, 1_000) == parse_prices("claude-sonnet-4-6=1/1/1/1")["claude-sonnet-4-6"]
    assert KNOWN_PRICES == parse_prices("")


@pytest.mark.parametrize("text", ["claude", "claude=1/2/3", "claude=1/2/3/x", "claude=1/2/3/-4", "claude=1/2/3/nan",
                                  "claude=1/2/3/0.00001", "claude=1/2/3/4/5"])  # fmt: skip
def test_parse_prices_what_is_no_price_names_the_setting(text: str) -> None:
    """One line with the form that is right."""
    with pytest.raises(SetupError, match=r"^model_prices: .*=3/15/0.30/3.75$"):
        parse_prices(text)
