"""log.jsonl: what a run has told, a JSON object per line with its step. What else shows a run can be made of it."""

import json
import os
from pathlib import Path

NAME = "log.jsonl"


def read(path: Path) -> list[dict]:
    """All lines but a last one that was cut short. ValueError names any other that is not JSON."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {line[:60]!r}") from None
    return found


def append(path: Path, line: dict) -> None:
    with open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
        log.flush()
        os.fsync(log.fileno())    # a checkpoint that follows is never ahead of it


def cut(path: Path, step: int) -> None:
    """Drop what comes after a step: it is trained again. The file is replaced as a whole or not at all."""
    if not path.exists():
        return
    kept = "".join(json.dumps(line) + "\n" for line in read(path) if line["step"] <= step)
    if kept != path.read_text(encoding="utf-8"):
        temporary = path.with_suffix(".writing")
        temporary.write_text(kept, encoding="utf-8")
        os.replace(temporary, path)
