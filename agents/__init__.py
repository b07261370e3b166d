"""What is done about alerts: handlers, prompts and actions, one file a use case. `app` is what a worker loads."""

from app.application import App
from features import fraud as fraud_streams
from features import records

app = App(features=[records, fraud_streams])

from agents import fraud  # noqa: E402 - agents declare themselves on `app`

__all__ = ["app", "fraud"]
