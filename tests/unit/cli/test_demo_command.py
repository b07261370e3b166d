"""`demo` acts on nothing but its own memory."""

import pytest

from app.cli import demo
from app.core.settings import Settings


def test_demo_addresses_of_real_receivers_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invented blocks must not reach a payment service, nor invented outages a person, whatever the environment says."""
    monkeypatch.setenv("HEADRACE_ACTION_URL_BLOCK_TRANSACTION", "https://payments.example.com/block")
    monkeypatch.setenv("HEADRACE_ACTION_TOKEN", "s3cret")
    monkeypatch.setenv("HEADRACE_PAGERDUTY_ROUTING_KEY_FILE", "no/such/file")
    seen: list[Settings] = []

    def remember(app: object, values: Settings, clock: object) -> object:
        seen.append(values)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_make", remember)
    with pytest.raises(KeyboardInterrupt):
        demo.demo(events=10, json=True)
    assert ({}, "", "") == (seen[0].action_urls, seen[0].action_token, seen[0].pagerduty_routing_key)
