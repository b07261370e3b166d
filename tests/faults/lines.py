"""Append-only logs of JSON lines, written by processes that may die and read when they are gone."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from app.core.codec import encode

T = TypeVar("T")


class LineLog:
    """Every line is handed to the kernel in one write, so it outlives a SIGKILL of whoever wrote it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, entry: msgspec.Struct) -> None:
        os.write(self._handle, encode(entry) + b"\n")

    def close(self) -> None:
        os.close(self._handle)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """What stands in a log; nothing where there is none."""
    if not path.exists():
        return []
    decoder = msgspec.json.Decoder(kind)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]
