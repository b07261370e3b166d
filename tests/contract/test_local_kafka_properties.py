"""Properties that we give Kafka are ones that it has; it would only warn about others in its log."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from app.local.java import find_java
from app.local.kafka import JARS, PROPERTIES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def known(kafka_address: str) -> set[str]:
    """Every broker property, as that Kafka lists them itself (the session's broker has fetched its jars)."""
    command = [str(find_java()), "-cp", f"{JARS}/*", "kafka.server.KafkaConfig"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    names = set(re.findall(r'<a id="([a-z.]+)"></a>', listed))
    assert len(names) > 200
    return names


def test_kafka_properties_of_the_local_broker_exist(known: set[str]) -> None:
    """A misspelt session timeout would make tests of kills long, and nobody would know why."""
    given = set(re.findall(r"^([a-z.]+)=", PROPERTIES, re.MULTILINE))
    assert set() == given - known


def test_kafka_properties_of_compose_exist(known: set[str]) -> None:
    """The image turns KAFKA_A_B into a.b and asks nobody."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    variables = compose["services"]["kafka"]["environment"]
    given = {variable.removeprefix("KAFKA_").lower().replace("_", ".") for variable in variables}
    assert set() == given - known
