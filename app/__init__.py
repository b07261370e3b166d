"""Headrace: real-time context for AI agents.

The names an application is written with. They are loaded when they are first used, so that importing one room loads no
client of a server that it does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.application import App as App
    from app.core.codec import Usd as Usd
    from app.decisions.context import Context as Context
    from app.decisions.decision import Decision as Decision
    from app.decisions.decision import review as review
    from app.decisions.effects import Effects as Effects
    from app.decisions.policy import Limit as Limit
    from app.decisions.policy import Policy as Policy
    from app.models.budget import Budget as Budget
    from app.serving.base import Features as Features
    from app.streams.expressions import col as col
    from app.streams.graph import Alert as Alert
    from app.streams.graph import Topic as Topic
    from app.streams.graph import count as count
    from app.streams.graph import total as total

_HOMES = {
    "Alert": "app.streams.graph",
    "App": "app.application",
    "Budget": "app.models.budget",
    "Context": "app.decisions.context",
    "Decision": "app.decisions.decision",
    "Effects": "app.decisions.effects",
    "Features": "app.serving.base",
    "Limit": "app.decisions.policy",
    "Policy": "app.decisions.policy",
    "Topic": "app.streams.graph",
    "Usd": "app.core.codec",
    "col": "app.streams.expressions",
    "count": "app.streams.graph",
    "review": "app.decisions.decision",
    "total": "app.streams.graph",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'app' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
