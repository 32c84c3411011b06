"""What `check-data` found, added up: tables for people, report.json for programs, a sheet of pictures."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from PIL import Image, ImageOps

from jodi_core.fitting import cover_size
from jodi_core.models.jodi_config import JodiConfig
from jodi_core.pictures import tile_sheet

from .check_picture import Finding, Look
from .config import SetConfig, TrainConfig

TILE = 192            # pixels, longer side
EXAMPLES = 5          # problems of a kind on the screen; the report has all
REMEMBERED = 10_000   # pictures of a domain and kind of lines that can be named
ABSENT = (70, 70, 70)


@dataclass(frozen=True)
class Problem:
    """Something wrong and its place. A fault makes training skip the sample, or stop; a warning does not."""

    set: str
    sample: str         # its place in the set, as "line 3"
    line: int | None    # of the metadata, for sets that are folders
    file: str
    domain: str
    kind: str
    message: str
    fault: bool


@dataclass
class Seen:
    """One sample, looked at."""

    set: str
    target: tuple[int, int]            # (height, width) that training brings it to
    tile: int = 0                      # longer side of its pictures on the sheet; 0: it is not on it
    where: str = ""                    # its place in the metadata
    line: int | None = None
    metadata: str = ""                 # the file that names it
    captions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)    # of the domains that it has
    looks: dict[str, Look] = field(default_factory=dict)   # of the files that could be read
    problems: list[Problem] = field(default_factory=list)

    def tell(self, finding: Finding, file: str, domain: str = "") -> None:
        self.problems.append(Problem(self.set, self.where, self.line, file, domain, **vars(finding)))


@dataclass
class BinTally:
    samples: int = 0              # with repeats
    cropped: float = 0.0          # sum of the shares that are cut away
    most_cropped: float = 0.0
    upscaled: int = 0

    def summary(self) -> dict:
        return {"samples": self.samples, "cropped_mean": round(self.cropped / self.samples, 4),
                "cropped_most": round(self.most_cropped, 4), "upscaled": self.upscaled}


@dataclass
class SameCaption:
    set: str
    source: str
    text: str
    where: list[str]           # of the first few
    samples: int = 1


@dataclass
class CaptionTally:
    words: list[int] = field(default_factory=list)
    same: int = 0                 # captions that another sample has as well

    def summary(self) -> dict:
        return {"captions": len(self.words), "words_least": min(self.words), "words_median": median(self.words),
                "words_most": max(self.words), "not_unique": self.same}


@dataclass
class DomainTally:
    present: int = 0
    absent: int = 0
    unreadable: int = 0
    upscaled: int = 0
    empty: int = 0                # openpose: nobody
    mean: float = 0.0             # sums over pictures
    square: float = 0.0
    low: float = 1.0
    high: float = 0.0
    forms: Counter = field(default_factory=Counter)
    grounds: Counter = field(default_factory=Counter)

    def add(self, look: Look, target: tuple[int, int]) -> None:
        self.present += 1
        self.empty += look.empty
        self.upscaled += look.size[0] < target[0] or look.size[1] < target[1]
        self.mean, self.square = self.mean + look.mean, self.square + look.square
        self.low, self.high = min(self.low, look.low), max(self.high, look.high)
        self.forms[look.form] += 1
        if look.ground:
            self.grounds[look.ground] += 1

    def summary(self) -> dict:
        told = {"present": self.present, "absent": self.absent, "unreadable": self.unreadable}
        if self.present:
            mean = self.mean / self.present
            told |= {"mean": round(mean, 4), "std": round(max(0.0, self.square / self.present - mean * mean) ** 0.5, 4),
                     "low": round(self.low, 4), "high": round(self.high, 4), "upscaled": self.upscaled,
                     "empty": self.empty, "forms": dict(self.forms), "lines": dict(self.grounds)}
        return told


class Report:
    """Takes one sample after the other (`add`), keeps no pictures but those of the sheet."""

    def __init__(self, config: TrainConfig, model_config: JodiConfig):
        self.config, self.model = config, model_config
        self.problems: list[Problem] = []
        self.sets: dict[str, dict] = {}
        self.bins: dict[tuple[int, int], BinTally] = defaultdict(BinTally)
        self.captions: dict[tuple[str, str], CaptionTally] = defaultdict(CaptionTally)
        self.domains = {domain: DomainTally() for domain in model_config.domains}
        self.parts: dict[str, SetConfig] = {}
        self.first: dict[int, str] = {}            # hash of a set and a caption -> the first sample with it
        self.same: dict[int, SameCaption] = {}     # captions that more samples have
        self.lines: dict[tuple[str, str], list] = defaultdict(list)    # (domain, ground) -> places
        self.common: dict[bool, set[str]] = {}     # of evaluation? -> labels that all samples have
        self.tiles: list[tuple[str, Image.Image]] = []

    @property
    def faults(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.fault]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.fault]

    # ---- collecting -----------------------------------------------------------------------------------------------

    def open(self, part: SetConfig) -> str:
        """The name that a set of the configuration has in the report."""
        name = part.path + (f" ({part.split})" if part.split else "")
        name += ", evaluation" if len(self.sets) >= len(self.config.data.sets) else ""
        name += f", set {len(self.sets) + 1}" if name in self.sets else ""
        self.parts[name], self.sets[name] = part, {"samples": 0, "repeat": part.repeat, "looked_at": 0}
        return name

    def of_evaluation(self, name: str) -> bool:
        return list(self.sets).index(name) >= len(self.config.data.sets)

    def note(self, kind: str, message: str, *, set: str = "", sample: str = "", line: int | None = None, file: str = "",
             domain: str = "", fault: bool = False) -> None:
        self.problems.append(Problem(set, sample, line, file, domain, kind, message, fault))

    def count_size(self, size: tuple[int, int], target: tuple[int, int], repeat: int) -> None:
        tally = self.bins[target]
        tally.samples += repeat
        try:
            cover = cover_size(size, target)
        except ValueError:    # too elongated: its picture is refused
            return
        cropped = 1 - target[0] * target[1] / (cover[0] * cover[1])
        tally.cropped += repeat * cropped
        tally.most_cropped = max(tally.most_cropped, cropped)
        tally.upscaled += repeat * (cover[0] > size[0])

    def add(self, seen: Seen) -> None:
        self.problems += seen.problems
        self.sets[seen.set]["looked_at"] += 1
        for domain, tally in self.domains.items():
            look = seen.looks.get(domain)
            if look:
                tally.add(look, seen.target)
            else:
                tally.unreadable += domain in seen.files
                tally.absent += domain not in seen.files
            if look and look.ground and len(self.lines[domain, look.ground]) < REMEMBERED:
                self.lines[domain, look.ground].append((seen.set, seen.where, seen.line, seen.files[domain]))
        evaluation, labels = self.of_evaluation(seen.set), set(seen.files) - {self.model.domains[0]}
        self.common[evaluation] = self.common.get(evaluation, labels) & labels
        self.add_captions(seen)
        if seen.tile:
            self.draw(seen)

    def add_captions(self, seen: Seen) -> None:
        texts = {}
        for source, text in seen.captions.items():
            self.captions[seen.set, source].words.append(len(text.split()))
            if text.strip():
                texts.setdefault(text.strip(), source)
        for text, source in texts.items():
            key = hash((seen.set, text))
            if key not in self.first:
                self.first[key] = seen.where
                continue
            same = self.same.setdefault(key, SameCaption(seen.set, source, text, [self.first[key]]))
            same.samples += 1
            same.where += [seen.where] if len(same.where) < EXAMPLES else []

    def draw(self, seen: Seen) -> None:
        """Its row of the sheet, a picture per domain."""
        wrong = {problem.domain: problem.kind for problem in reversed(seen.problems)}
        place = f"set {list(self.sets).index(seen.set) + 1}, " if len(self.sets) > 1 else ""
        for domain in self.model.domains:
            look = seen.looks.get(domain)
            title = f"{place}{seen.where}: {domain}" if domain == self.model.domains[0] else domain
            fault = wrong.get(domain, "" if domain in seen.files else "absent")
            tile = look.tile if look else ImageOps.contain(Image.new("RGB", seen.target[::-1], ABSENT), (TILE, TILE))
            self.tiles.append((f"{title}: {fault}" if fault else title, tile))

    # ---- what only all samples together tell ----------------------------------------------------------------------

    def finish(self) -> None:
        self.find_same_captions()
        self.find_unused_sources()
        self.find_odd_lines()
        for size, tally in self.bins.items():
            if tally.samples < self.config.batch:
                self.note("small bin", f"samples in the bin of {size[1]}x{size[0]}: {tally.samples}, fewer than the "
                          f"{self.config.batch} of a batch, which holds some of them twice or more")
        pose = self.domains.get("openpose")
        if pose and pose.present and pose.empty == pose.present:
            self.note("nobody", "every openpose label that was looked at is empty", domain="openpose")
        self.find_common_labels()

    def find_common_labels(self) -> None:
        """In training with in_turn, and in evaluation, all samples of a micro-batch make the same labels."""
        config = self.config
        nobody = {"openpose"} & set(self.model.domains) if config.data.empty_pose else set()
        for evaluation, labels in self.common.items():
            if labels | nobody or "perceive" not in config.tasks or config.micro_batch == 1:
                continue
            if evaluation:
                self.note("no common label", "no label is in all evaluation samples, but those of a micro-batch are "
                          "asked for the same ones: training stops at the first without. Use micro_batch = 1, or other "
                          "samples", fault=True)
            elif config.in_turn:
                self.note("no common label", "in_turn = true asks all samples of a micro-batch for the same labels, "
                          "but no label is in all samples: training stops at the first without. Use in_turn = false",
                          fault=True)

    def find_same_captions(self) -> None:
        for same in self.same.values():
            self.captions[same.set, same.source].same += same.samples
            self.note("same caption", f"{same.samples} samples have the caption {same.text[:60]!r}: "
                      + ", ".join(same.where) + (", ..." if same.samples > len(same.where) else ""), set=same.set,
                      sample=same.where[0])

    def find_unused_sources(self) -> None:
        for name, part in self.parts.items():
            found = [source for where, source in self.captions if where == name]
            for source in part.captions if found else ():
                if source not in found:
                    self.note("no such caption", f"captions.{source} has a weight, but no sample that was looked at "
                              f"has such a caption; there are {', '.join(found)}", set=name)

    def find_odd_lines(self) -> None:
        for domain, tally in self.domains.items():
            (usual, _), *others = tally.grounds.most_common() or [("", 0)]
            for ground, _ in others:
                for name, where, line, file in self.lines[domain, ground]:
                    self.note("other lines", f"it is {ground}, but most {domain} labels are {usual}", set=name,
                              sample=where, line=line, file=file, domain=domain)

    # ---- out ------------------------------------------------------------------------------------------------------

    def summary(self) -> dict:
        return {"faults": [asdict(problem) for problem in self.faults],
                "warnings": [asdict(problem) for problem in self.warnings],
                "sets": self.sets,
                "bins": {f"{height}x{width}": tally.summary() for (height, width), tally in sorted(self.bins.items())},
                "captions": [{"set": name, "source": source} | tally.summary()
                             for (name, source), tally in self.captions.items()],
                "domains": {domain: tally.summary() for domain, tally in self.domains.items()}}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.summary(), indent=1, ensure_ascii=False), encoding="utf-8")
        if self.tiles:
            tile_sheet(self.tiles, len(self.model.domains)).save(folder / "contact_sheet.png")

    def text(self) -> str:
        parts = [self.sets_table(), self.bins_table(), self.captions_table(), self.domains_table(),
                 listed("faults: training skips these samples, or stops", self.faults),
                 listed("warnings: training goes on", self.warnings)]
        count = sum(row["looked_at"] for row in self.sets.values())
        parts.append(f"{count} samples looked at: {len(self.faults)} faults, {len(self.warnings)} warnings")
        return "\n\n".join(part for part in parts if part)

    def sets_table(self) -> str:
        count = {fault: Counter(problem.set for problem in self.problems if problem.fault == fault)
                 for fault in (True, False)}
        return table(["data set", "samples", "repeat", "looked at", "faults", "warnings"], [
            [name, row["samples"], row["repeat"], row["looked_at"], count[True][name], count[False][name]]
            for name, row in self.sets.items()])

    def bins_table(self) -> str:
        total = sum(tally.samples for tally in self.bins.values())
        return table(["bin, width x height", "samples", "share", "cut away", "at most", "enlarged"], [
            [f"{width}x{height}", tally.samples, f"{tally.samples / total:.1%}", f"{tally.cropped / tally.samples:.1%}",
             f"{tally.most_cropped:.1%}", tally.upscaled] for (height, width), tally in sorted(self.bins.items())])

    def captions_table(self) -> str:
        return table(["captions", "number", "words: least", "median", "most", "not unique"], [
            [f"{name}: {source}", *tally.summary().values()] for (name, source), tally in self.captions.items()])

    def domains_table(self) -> str:
        rows = []
        for domain, tally in self.domains.items():
            told = tally.summary()
            values = [f"{told['mean']:.3f}", f"{told['std']:.3f}", f"{told['low']:.2f}..{told['high']:.2f}",
                      told["upscaled"]] if tally.present else ["", "", "", ""]
            notes = [f"{count} {form}" for form, count in (tally.forms + tally.grounds).most_common()]
            rows.append([domain, tally.present, tally.absent, tally.unreadable, *values,
                         ", ".join(notes + [f"{tally.empty} empty"] * (tally.empty > 0))])
        return table(["domain", "present", "absent", "unreadable", "mean", "std", "range", "enlarged", "files"], rows)


def table(head: list[str], rows: list[list]) -> str:
    """Columns under their heads: the first and words to the left, numbers to the right. Empty without rows."""
    if not rows:
        return ""
    cells = [head, *([f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    last = len(head) - 1 if head[-1] == "files" else None
    return "\n".join("  ".join(cell.ljust(width) if number in (0, last) else cell.rjust(width)
                               for number, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in cells)


def listed(title: str, problems: list[Problem]) -> str:
    """By kind, the first of each with their places."""
    if not problems:
        return ""
    kinds: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind, problem.domain].append(problem)
    lines = [f"{title} ({len(problems)})"]
    for (kind, domain), members in kinds.items():
        lines.append(f"  {len(members)} x {domain + ': ' if domain else ''}{kind}")
        for problem in members[:EXAMPLES]:
            known = problem.sample and problem.sample in problem.file    # files of shards say it themselves
            place = ", ".join(filter(None, (problem.file or problem.set, "" if known else problem.sample)))
            lines.append(f"      {place}{': ' if place else ''}{problem.message}")
        if len(members) > EXAMPLES:
            lines.append(f"      and {len(members) - EXAMPLES} more, see report.json")
    return "\n".join(lines)
