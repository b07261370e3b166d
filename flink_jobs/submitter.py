"""Runs under PyFlink's own Python, and imports nothing of ours: takes jobs as lines of JSON, gives them to the cluster.

    {"configuration": {...}, "statements": ["CREATE ..."], "inserts": ["INSERT ..."]}  ->  {"job": "<id>"} or {"error": "..."}

One Java for all jobs: the first one takes seconds, the next ones less than two. Answers go to the file descriptor that the first argument
names, since Java may print to the standard ones. Ends with its input.
"""

import json
import os
import sys
from typing import Any


def submit(order: dict[str, Any]) -> str:
    """The job's id, once the cluster has taken it."""
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    configuration = Configuration()
    for name, value in order["configuration"].items():
        configuration.set_string(name, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()
    environment = TableEnvironment.create(settings)
    for statement in order["statements"]:
        environment.execute_sql(statement)
    inserts = environment.create_statement_set()
    for insert in order["inserts"]:
        inserts.add_insert_sql(insert)
    client = inserts.execute().get_job_client()
    assert client is not None
    return str(client.get_job_id())


def main() -> None:
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as answers:
        for line in sys.stdin:
            try:
                answer = {"job": submit(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked must be told
                sys.stderr.write(f"{error}\n")
                answer = {"error": str(error) or type(error).__name__}
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
