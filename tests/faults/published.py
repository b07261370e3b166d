"""The results that RELIABILITY.md is written from. They are part of the repository: a row may be measured again alone, and
the page is held against them by a test."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from app.local.process import ROOT
from tests.faults import soak
from tests.faults.cluster import SESSION_MS
from tests.faults.report import document
from tests.faults.results import FOLDER, keep, latest
from tests.faults.rows import Row

PUBLISHED = ROOT / "tests" / "faults" / "measured"


def page(rows: Sequence[Row], published: Path = PUBLISHED) -> str:
    """RELIABILITY.md: the rows at full size, the small ones on the classic group protocol, and the soak."""
    full = [latest(published, row, small=False, protocol="consumer") for row in rows]
    classic = [latest(published, row, small=True, protocol="classic") for row in rows]
    soaked = soak.latest(published)
    return document(rows, [one for one in full if one], [one for one in classic if one], soaked, SESSION_MS / 1000)


def publish(rows: Sequence[Row], measured: Path = FOLDER, published: Path = PUBLISHED) -> None:
    """Takes over what was measured here since, of each row and of each ablation: what is newer stays."""
    for row in [*rows, soak.SHORTENED]:
        for small, protocol in ((False, "consumer"), (True, "classic")):
            new = latest(measured, row, small=small, protocol=protocol)
            before = latest(published, row, small=small, protocol=protocol)
            if new is not None:
                both = [new] if before is None else [before, new]
                tried = sorted((one for result in both for one in result.ablations), key=lambda one: one.at)
                latest_of_each = list({one.name: one for one in tried}.values())
                newest = max(reversed(both), key=lambda result: result.at)
                keep(published, msgspec.structs.replace(newest, ablations=latest_of_each))
    soaked, known = soak.latest(measured), soak.latest(published)
    if soaked and (known is None or known.environment["at"] < soaked.environment["at"]):
        soak.keep(published, soaked)
