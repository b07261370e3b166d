"""docs/operations.md, held to the settings and to what is logged."""

import re
from pathlib import Path

import msgspec
import pytest

from app.core.settings import PREFIX, SECRETS, Settings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()
ROW = re.compile(rf"\| `{PREFIX}(\w+)` \| (?:`(.+?)`|none) \| (.+) \|")
SETTINGS = {field.name: field for field in msgspec.structs.fields(Settings)}
SAID = [
    "does not answer since",
    "effects are held: no heartbeat",
    "effects are made again",
    "is off since",
    "is in mode",
    "the breaker opens, alerts fall back",
    "REFUSES ALL CALLS",
    "answers again",
    "features wait: ",
    "features go on",
    "older than max_age",
    "records were deleted before they were read",
    "handlers swallow their cancellation",
    "stopped",
    "stopping",
]


def test_operations_has_every_setting_in_order_with_its_default() -> None:
    """A setting that is added, renamed or given another default is found here."""
    documented = {name.lower(): default for name, default, _ in ROW.findall(TEXT)}
    assert list(SETTINGS) == list(documented)
    for name, text in documented.items():
        default = getattr(Settings(), name)
        assert default == msgspec.convert(text or ("" if default == "" else {}), SETTINGS[name].type, strict=False), (
            name
        )


def test_operations_names_the_file_of_every_secret() -> None:
    """Whoever looks for a secret finds that it need not stand in a variable."""
    assert [] == [secret for secret in SECRETS if f"{PREFIX}{secret.upper()}_FILE" not in TEXT]


@pytest.mark.parametrize("line", SAID)
def test_operations_explains_lines_that_are_logged(line: str) -> None:
    """In the words of the code, so that one finds them."""
    assert line.strip(": ") in TEXT
    assert any(line in file.read_text() for file in (ROOT / "app").rglob("*.py")), line
