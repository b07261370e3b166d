"""`agents`: who decides which alerts, and what follows."""

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, load_app

commands = typer.Typer(help="The declared agents.")


@commands.callback(invoke_without_command=True)
def agents(app: AppOption = DEFAULT_APP, json: output.JsonOption = False) -> None:
    """List the agents: alerts they decide, bounds, fallback and actions.

    Example: `python -m app agents --json`
    """
    rows = []
    for name, agent in load_app(app).agents.items():
        alerts, fallback = sorted(agent.alert_types), agent.fallback.action if agent.fallback else None
        actions = {action: [effect.name for effect in agent.actions(action)] for action in agent.actions_allowed}
        if json:
            output.json_line(
                {
                    "name": name,
                    "topic": agent.topic,
                    "alerts": alerts,
                    "decides": agent.decides.__name__,
                    "fallback": fallback,
                    "concurrency": agent.concurrency,
                    "deadline_ms": agent.deadline_ms,
                    "actions": actions,
                }
            )
        follows = "; ".join(f"{action}: {', '.join(names) or 'nothing'}" for action, names in actions.items())
        rows.append((name, agent.topic, ", ".join(alerts), fallback, follows))
    if not json:
        output.table(("name", "topic", "alerts", "fallback", "actions"), rows)
