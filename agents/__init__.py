"""What is done about alerts: handlers, prompts and actions, one file a use case. A worker loads `agents:app`."""

from agents import carts, churn, fraud, fraud_patterns, outage
from agents.registry import app

__all__ = ["app", "carts", "churn", "fraud", "fraud_patterns", "outage"]
