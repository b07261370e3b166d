"""A compromised model, and hostile text: no fault of servers, so no cluster is used, but a promise like the others."""

import asyncio
import sys
from collections.abc import Sequence

import msgspec

from app.local.process import ROOT
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size
from tests.faults.safety_process import Found


async def compromised_model(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: answers."""
    found = await _found(["compromised", "--answers", str(size["answers"]), "--seed", str(bench.seed)], ablate)
    failures = list(found.first)
    if found.tried != size["answers"]:
        failures.append(f"{found.tried} of {size['answers']} answers were given")
    if not 0 < found.authorized < 2 * found.tried:
        failures.append(f"{found.authorized} effects are allowed by {found.tried} answers: nothing was put to the test")
    figures = {"alerts": found.tried, "unauthorized_effects": found.violations, "authorized_effects": found.authorized}
    return Outcome(None, failures, figures)


async def hostile_text(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: every, of so many strings one is sent to the API's stub as a whole request too."""
    found = await _found(["hostile", "--every", str(size["every"])], ablate)
    return Outcome(None, list(found.first), {"alerts": found.tried, "altered_contexts": found.violations})


async def _found(arguments: Sequence[str], ablate: Sequence[str]) -> Found:
    """Raises: RuntimeError when the process breaks off. On cancellation it is killed."""
    seams = [text for name in ablate for text in ("--ablate", name)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.safety_process", *arguments, *seams),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise RuntimeError(f"exit {process.returncode}: {log.decode()[-500:]}")
    return msgspec.json.decode(output, type=Found)


ROWS = (
    Row(
        "a compromised model",
        "Whatever a model answers the shipped fraud agent (other ids, unknown actions, markup, forged JSON, tool calls) about "
        "alerts with hostile ids, every call of a receiver and every request to a person is one that its valid answer and the "
        "agent's policy allow, and its target is the alert's. The agent's limits are on, and alerts come too slowly to reach "
        "them: each call that is allowed is made. No broker is used.",
        compromised_model,
        full={"answers": 10_000},
        small={"answers": 2_000},
        ablations=(
            Ablation("stop_reason_ignored", {"answers": 2_000}, ("which no answer allows",)),
            Ablation("target_from_the_answer", {"answers": 2_000}, (" was made with ",)),
        ),
    ),
    Row(
        "hostile text",
        "Text that wants to be instructions, structure or invisible, in any text field of the fraud agent's alert or of its "
        "features, also in the place of a feature's number, reaches the model as that field's text and as nothing else: what "
        "the shipped agent asks has its own instructions alone, and reads back identical, escaped, within the caps. No broker "
        "is used.",
        hostile_text,
        full={"every": 1},
        small={"every": 9},
        ablations=(
            Ablation("nothing_escaped", {"every": 9}, ("not drawn as what they are", "breaks out of a header")),
            Ablation("data_among_instructions", {"every": 9}, ("reached the instructions",)),
        ),
    ),
)
