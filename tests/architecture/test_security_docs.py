"""docs/security.md against the code: its variables, roles and examples are ours."""

import re
from pathlib import Path

import msgspec
import yaml

from app.core.settings import PREFIX, SECRETS, Settings, load_settings
from app.rights import ROLES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMES = {field.name for field in msgspec.structs.fields(Settings)} | {f"{secret}_file" for secret in SECRETS}


def test_security_variables_are_settings() -> None:
    """What is told to set can be set."""
    named = {name.lower() for name in re.findall(rf"{PREFIX}([A-Z_]+)", TEXT)}
    assert set() == named - NAMES


def test_security_settings_are_all_told() -> None:
    """No setting of security is left out."""
    wanted = {name for name in NAMES if name.startswith(("broker_", "store_"))}
    assert set() == {name for name in wanted if f"{PREFIX}{name.upper()}" not in TEXT}


def test_security_roles_are_those_of_the_table() -> None:
    """One row a role."""
    table = TEXT.partition("| role | topics |")[2].partition("\n\n")[0]
    assert list(ROLES) == re.findall(r"^\| (\w+)", table, re.MULTILINE)


def test_security_compose_example_loads(tmp_path: Path) -> None:
    """The variables of the example fit each other, once its secrets are there."""
    example = yaml.safe_load(TEXT.partition("```yaml\n")[2].partition("```")[0])
    (tmp_path / "secret").write_text("s3cret")
    variables = {
        name: str(tmp_path / "secret") if name.endswith("_FILE") else value
        for name, value in example["services"]["worker"]["environment"].items()
    }
    loaded = load_settings(variables)
    assert ("s3cret", "s3cret", True) == (loaded.broker_password, loaded.store_password, loaded.broker_tls)
    assert set(example["secrets"]) == set(example["services"]["worker"]["secrets"])
