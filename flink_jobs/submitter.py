"""Runs under PyFlink's own Python, and imports nothing of ours: takes jobs as lines of JSON, gives them to the cluster.

    {"configuration": {...}, "statements": ["CREATE ..."], "inserts": ["INSERT ..."], "folder": "/tmp/..."}
        ->  {"job": "<id>"} or {"error": "..."}

One Java for all jobs: the first one takes seconds, the next ones less than two. Answers go to the file descriptor that the first argument
names, since Java may print to the standard ones. Ends with its input.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def submit(order: dict[str, Any]) -> str:
    """The job's id, once the cluster has taken it. By way of a compiled plan: only there do its
    nodes have numbers that can be set."""
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    configuration = Configuration()
    for name, value in order["configuration"].items():
        configuration.set_string(name, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()
    environment = TableEnvironment.create(settings)
    for statement in order["statements"]:
        environment.execute_sql(statement)
    plan = Path(order["folder"]) / "plan.json"
    plan.unlink(missing_ok=True)
    inserts = "".join(f"{insert};\n" for insert in order["inserts"])
    environment.execute_sql(f"COMPILE PLAN 'file://{plan}' FOR STATEMENT SET BEGIN {inserts} END")
    plan.write_text(json.dumps(numbered(json.loads(plan.read_text()))))
    client = environment.execute_sql(f"EXECUTE PLAN 'file://{plan}'").get_job_client()
    assert client is not None
    return str(client.get_job_id())


def numbered(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with its nodes numbered from 1: Flink goes on counting as long as its Java lives, and state is found again by
    these numbers."""
    numbers = {node["id"]: number for number, node in enumerate(plan["nodes"], start=1)}
    for node in plan["nodes"]:
        node["id"] = numbers[node["id"]]
    for edge in plan["edges"]:
        edge["source"], edge["target"] = numbers[edge["source"]], numbers[edge["target"]]
    return plan


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as answers:
        for line in sys.stdin:
            try:
                answer = {"job": submit(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked must be told
                sys.stderr.write(f"{error}\n")
                answer = {"error": (str(error) or type(error).__name__)[:100_000]}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
