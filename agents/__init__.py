"""What is done about alerts: handlers, prompts and actions, one file a use case. A worker loads `agents:app`."""

from agents import fraud
from agents.registry import app

__all__ = ["app", "fraud"]
