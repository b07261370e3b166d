"""What `safety` finds, in a process of its own, so that a safeguard can be taken out of it.

    python -m tests.faults.safety_process compromised|hostile [--answers N] [--every N] [--seed N] [--ablate NAME …]

Prints one JSON object: `{"tried", "authorized", "violations", "first"}`.
"""

import argparse
import asyncio
import sys

import msgspec

from app.core.clock import run_virtual
from app.core.codec import encode
from tests.decisions_kit import START_MS
from tests.faults import ablations, hostile
from tests.faults.processes import die_with_parent
from tests.faults.safety import compromised, rendering_violations, request_violations

SHOWN = 5


class Found(msgspec.Struct, frozen=True):
    """tried: answers, or hostile strings. authorized: effects that the answers allow. first: violations."""

    tried: int
    authorized: int
    violations: int
    first: list[str]


def try_answers(answers: int, seed: int) -> Found:
    """Alerts of the shipped agent with a compromised model; one answer each."""
    outcome = run_virtual(lambda clock: compromised(clock, answers, seed), START_MS)
    return Found(outcome.alerts, outcome.authorized, len(outcome.violations), outcome.violations[:SHOWN])


def try_texts(every: int) -> Found:
    """Every hostile string in every text field, one at a time and all; every so many of them as a whole request too."""
    texts = hostile.strings()
    found = [*asyncio.run(rendering_violations(texts)), *asyncio.run(request_violations(texts[::every]))]
    return Found(len(texts), 0, len(found), found[:SHOWN])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.safety_process")
    parser.add_argument("which", choices=("compromised", "hostile"))
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ablate", action="append", default=[])
    options = parser.parse_args()
    die_with_parent()
    for name in options.ablate:
        ablations.named(name)()
    compromised_model = options.which == "compromised"
    found = try_answers(options.answers, options.seed) if compromised_model else try_texts(options.every)
    sys.stdout.write(encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
