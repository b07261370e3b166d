"""Documents against what they describe: rooms, modules, links, and the index of decisions."""

import re
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

DESIGN = (ROOT / "DESIGN.md").read_text()
ADRS = sorted((ROOT / "docs" / "adr").glob("0*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
ROOMS = sorted(path for path in (ROOT / "app").iterdir() if (path / "__init__.py").exists() and path.name != "cli")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_design_map_names_every_module_of_a_room(room: Path) -> None:
    """Whoever looks for a module finds in which room it is, and what for; the command line has a file a group."""
    (row,) = re.findall(rf"^\| `app/{room.name}/` \|.*$", DESIGN, re.MULTILINE)
    named = set(re.findall(r"`(\w+)/?`", row))
    assert set() == {path.stem for path in room.iterdir() if not path.name.startswith("__")} - named


def test_design_map_has_every_room() -> None:
    """And every module beside the rooms."""
    names = {path.name for path in (ROOT / "app").iterdir() if not path.name.startswith("__")}
    assert set() == {name for name in names if f"`app/{name}" not in DESIGN}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_what_is_there(document: Path) -> None:
    """Each file, and each heading in it."""
    text = document.read_text()
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert [] == broken


@pytest.mark.parametrize("adr", ADRS, ids=lambda path: path.stem)
def test_adrs_have_one_form_and_a_line_in_the_index(adr: Path) -> None:
    """Number and name first, then the status; the index has the same name."""
    title, empty, status, *_ = adr.read_text().splitlines()
    number = int(adr.name[:4])
    assert title.startswith(f"# {number}. ")
    assert "" == empty
    assert re.match(r"Status: (accepted|proposed|replaced by ADR \d+)$", status)
    assert (
        f"| [{number}]({adr.name}) | {title.removeprefix(f'# {number}. ')} |" in (adr.parent / "README.md").read_text()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_files_that_are_there(document: Path) -> None:
    """A path in code marks is one of the repository, or of the room that the page is about."""
    paths = re.findall(r"`((?:app|tests|benchmarks|features|agents|docs|deploy)/[\w./-]+)`", document.read_text())
    made = ("benchmarks/results",)
    assert [] == [path for path in paths if not (ROOT / path).exists() and not path.startswith(made)]
