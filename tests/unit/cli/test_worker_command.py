"""`worker`: which parts it runs, and how signals end it."""

import asyncio
import os
import signal
from typing import Any

import pytest

from app.cli import worker as module
from app.cli.main import run
from app.core.settings import Settings
from app.worker import PARTS


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        run(["worker", "--model", "rules", "--broker", "kafka://127.0.0.1:1", "--store", "memory://", *arguments])
    return left.value.code


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), PARTS),
        (("--mode", "shadow"), ("agents",)),
        (("--mode", "dry-run"), ("agents",)),
        (("--mode", "shadow", "--only", "streams", "--only", "agents"), ("streams", "agents")),
        (("--only", "actions"), ("actions",)),
    ],
)
def test_worker_in_another_mode_runs_agents_alone_unless_told(
    arguments: tuple[str, ...], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams and features of a trial would take partitions from the live workers."""
    asked: list[object] = []

    async def work(app: object, settings: object, parts: object) -> None:
        asked.append(parts)

    monkeypatch.setattr(module, "_work", work)
    assert 0 == exit_code(*arguments)
    assert [expected] == asked


@pytest.mark.parametrize(
    ("signals", "stubborn", "expected"),
    [
        ((signal.SIGTERM,), False, 0),
        ((signal.SIGINT,), False, 0),
        ((signal.SIGINT, signal.SIGINT), True, 130),
        ((signal.SIGINT, signal.SIGTERM), True, 143),
    ],
)
def test_worker_that_a_second_signal_ends_leaves_with_its_code(
    signals: tuple[signal.Signals, ...], stubborn: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it learns that it was not in order."""

    class Stubborn:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            pass

        async def run(self, stopping: asyncio.Event) -> None:
            for each in signals:
                await asyncio.sleep(0.05)  # the receiver listens a moment after it was started
                os.kill(os.getpid(), each)
            await stopping.wait()
            if stubborn:
                await asyncio.Event().wait()

    monkeypatch.setattr("app.worker.Worker", Stubborn)
    assert expected == exit_code()


def test_worker_defaults_are_those_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """Help names the variable that counts where an option is not given, and the same default as the settings."""
    with pytest.raises(SystemExit):
        run(["worker", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in ("model", "mode"):
        assert f"[default: HEADRACE_{name.upper()}, or {getattr(Settings(), name)}]" in shown
