"""First contact with weight files: does a file hold what the specification says that it holds?

Everything that was written down without the published files at hand is a row: the layout of the file, its list of
tensors, finite values, the stored caption against the text encoder, what one evaluation gives. Rows that a file
cannot answer say why.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .files import PICKLE_SUFFIXES, Header, WeightsError, locate, pickle_layout, read_header, read_tensors, sha256
from .weights import HOST_FOLDERS, TINY, kind_of, kinds_in, part_names, part_of

OK, FAIL, SKIPPED = "ok", "FAIL", "not checked"


@dataclass(frozen=True)
class Row:
    """One line of the report; verdict is OK, FAIL or SKIPPED, and `found` says why in the last case."""

    file: str
    check: str
    expected: str
    found: str
    verdict: str


@dataclass
class Part:
    """One kind of part in a file, as far as it could be understood; `config` is None if it could not."""

    path: Path
    kind: str
    header: Header
    names: dict[str, str]      # stored -> plain
    config: object = None
    problem: str = ""          # why it cannot be loaded, if it cannot

    @property
    def shapes(self) -> dict[str, tuple]:
        return {plain: self.header.shapes[stored] for stored, plain in self.names.items()}

    def tensor(self, plain: str) -> torch.Tensor:
        """One tensor, read from disk now."""
        stored = next(stored for stored, name in self.names.items() if name == plain)
        return read_tensors(self.path, [stored])[stored]

    def row(self, check: str, expected, found, good: bool | None) -> Row:
        """A row of this part; good: None for what is not checked."""
        return Row(self.path.name, f"{self.kind}: {check}", str(expected), str(found),
                   SKIPPED if good is None else OK if good else FAIL)


def verify(refs) -> list[Row]:
    """The report on weight files, folders in bundle layout, or "tiny". WeightsError for what does not exist."""
    from .verify_rows import across, rows_of
    rows, parts = [], []
    for path in [path for ref in refs for path in _paths(ref)]:
        told, found = _file(path)
        rows += told
        for part in found:
            rows += rows_of(part)
        parts += found
    return rows + across({part.kind: part for part in parts})


def _paths(ref) -> list[Path]:
    if str(ref) != "tiny" and not Path(ref).is_dir():
        return [locate(ref)]
    folder = TINY if str(ref) == "tiny" else Path(ref)
    paths = [folder / f"{kind}.safetensors" for kind in HOST_FOLDERS]
    if not any(path.is_file() for path in paths):
        raise WeightsError(f"{ref} has none of {', '.join(path.name for path in paths)}: give the files themselves; a "
                           "Gemma-2 folder is made one file by `python -m jodi_core convert`")
    return [path for path in paths if path.is_file()]


def _file(path: Path) -> tuple[list[Row], list[Part]]:
    """Rows on the file as such, and the parts in it."""
    rows = []

    def row(check, expected, found, good):
        rows.append(Row(path.name, f"file: {check}", expected, str(found), OK if good else FAIL))

    row("size and SHA-256", "any", f"{path.stat().st_size} bytes, {sha256(path)}", True)
    try:
        header = read_header(path)
    except WeightsError as error:
        row("can be read", "complete, tensors alone", error, False)
        return rows, []
    row("can be read", "complete, tensors alone", f"{len(header.shapes)} tensors", True)
    if path.suffix in PICKLE_SUFFIXES:
        row("layout", "tensors under 'state_dict', or at the top", pickle_layout(path), True)
    kinds = kinds_in(header.shapes)
    row("kind", "a part of a joint model", " + ".join(kinds) or kind_of(header.shapes) or "unknown", bool(kinds))
    parts = []
    for kind in kinds:
        try:
            _, names, _ = part_of(path, kind)
        except WeightsError as error:    # its metadata
            row("metadata", "none, or readable", error, False)
            names = part_names(header.shapes, kind)
        parts.append(Part(path, kind, header, names))
    return rows, parts


def table(rows: list[Row]) -> str:
    """The report as text to attach somewhere: rows under the file that they are about, verdict first."""
    lines, file = [], None
    for row in rows:
        if row.file != file:
            lines += ["", row.file]
            file = row.file
        lines.append(f"  {row.verdict:<12}{row.check}: expected {row.expected}; found {row.found}")
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in (OK, FAIL, SKIPPED)}
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]).lstrip("\n")


def as_json(rows: list[Row]) -> str:
    """The report for programs."""
    return json.dumps({"format": 1, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}, indent=1)


def finite_values(part: Part) -> tuple[str, bool]:
    """(what was found, whether all is finite)."""
    bad, largest, count = [], 0.0, 0
    for stored, tensor in read_tensors(part.path, part.names).items():    # mapped: in memory one after the other
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
            peak = max(abs(float(low)), abs(float(high)))    # aminmax hands NaN on
            bad += [] if math.isfinite(float(low) + float(high)) else [part.names[stored]]
            largest, count = max(largest, peak if math.isfinite(peak) else 0.0), count + tensor.numel()
    told = f"{len(bad)} tensors with infinity or NaN: {', '.join(bad[:3])}" if bad else f"{count} finite values"
    return f"{told}; largest {largest:.4g}", not bad
