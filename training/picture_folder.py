"""A folder of pictures on its way to a data set (spec 8.1): what is in it, what it lacks, its metadata written anew."""

import json
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from PIL import ExifTags, Image

from jodi_core.domains import nearest_bin
from jodi_core.files import atomic_target

from .folders import captions_of, fields_of, inside, size_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
BESIDE, FOR_ALL = "txt", "all"    # caption sources: the .txt file beside a picture, one text for all without


@dataclass(frozen=True)
class Job:
    """The labels that one picture lacks."""

    line: int                    # of PictureFolder.lines
    picture: str                 # path in the folder
    target: tuple[int, int]      # (height, width) of the size bin that it is trained at
    labels: dict[str, str]       # domain -> path in the folder


class PictureFolder:
    """Looks around when it is made: `jobs` says which labels are missing. `add` notes what was made since.

    Lines of the metadata keep all that they have and gain what is missing. A picture that no metadata file of the
    folder names becomes a line of its own as soon as it has all labels. A label file that is there under the name that
    it would get counts as made. faults: what cannot be used, one message each.

    domains: the labels that every picture shall have. ValueError if there is no such folder or its metadata is damaged.
    """

    def __init__(self, folder: Path, domains: tuple[str, ...], bins: dict, *, split: str = "", caption: str = "",
                 overwrite: bool = False):
        self.folder, self.bins, self.caption, self.overwrite = folder, bins, caption, overwrite
        self.fields = fields_of(("image", *domains))
        self.metadata = folder / (f"metadata.{split}.jsonl" if split else "metadata.jsonl")
        for path, known in ((folder, folder.is_dir()), (self.metadata, not split or self.metadata.is_file())):
            if not known:
                raise ValueError(f"{path}: there is no such {'folder' if path == folder else 'file'}")
        self.lines: list[tuple[str, bytes]] = []    # (picture, its line; b"" for a new one)
        self.gains: dict[int, dict] = {}            # of lines
        self.jobs: list[Job] = []
        self.faults: list[str] = []
        self.owners: dict[str, str] = {}            # label file -> its picture
        self.without_caption: set[int] = set()      # lines
        self.there = 0
        listed = self.read_lists()
        self.lines += [(picture, b"") for picture in ([] if split else self.unlisted(listed))]
        for number, (picture, line) in enumerate(self.lines):
            try:
                self.look_at(number, picture, json.loads(line or b"{}"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                self.faults.append(f"{folder / picture}: {error}")

    # ---- what is there ------------------------------------------------------------------------------------------

    def read_lists(self) -> set[str]:
        """The lines of the metadata; and the paths of all pictures and labels that any metadata of the folder names."""
        listed = set()
        for path in sorted(self.folder.glob("metadata*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    picture = Path(entry["image"]).as_posix()
                    labels = [Path(value).as_posix() for key, value in entry.items()
                              if value and key.startswith("annotation_")]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}: no object with the path of an image ({error!r}); was the "
                                     "file cut short?") from None
                listed.update((picture, *labels))
                self.owners |= dict.fromkeys(labels, picture)
                if path == self.metadata:
                    self.lines.append((picture, line))
        return listed

    def unlisted(self, listed: set[str]) -> list[str]:
        """Pictures that no metadata names, by name; hidden files and folders of labels aside."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        names = {path.as_posix() for path in paths if not path.parts[0].startswith("annotation_")
                 and not any(part.startswith(".") for part in path.parts)}
        return sorted(names - listed)

    def look_at(self, number: int, picture: str, entry: dict) -> None:
        """Note what a line lacks. ValueError or OSError if the picture cannot be used."""
        path = inside(self.folder, picture, "image")
        gain = {}
        if not entry:
            gain["image"] = picture
        if not entry.get("info"):
            height, width = upright_size(path)
            gain["info"] = {"height": height, "width": width}
        if not captions_of(entry, "the line"):
            gain["caption"] = self.caption_of(path)
        missing = {}
        for domain, key in list(self.fields.items())[1:]:
            own = f"{key}/{Path(picture).with_suffix('.png').as_posix()}"
            owner = self.owners.setdefault(own, picture)
            if owner != picture:
                raise ValueError(f"its label {own} would be that of {owner}: rename one of them")
            found = next((name for name in (entry.get(key), own)
                          if name and inside(self.folder, name, key).is_file()), None)
            if found is None or self.overwrite:
                missing[domain] = own
            elif found != entry.get(key):
                gain[key] = found
        whole = entry | gain
        size = size_of(json.dumps(whole).encode(), "the line")
        if missing:
            self.jobs.append(Job(number, picture, nearest_bin(*size, self.bins), missing))
        self.there += len(self.fields) - 1 - len(missing)
        if not whole["caption"]:
            self.without_caption.add(number)
        self.gains[number] = {key: value for key, value in gain.items() if value}

    def caption_of(self, picture: Path) -> dict[str, str]:
        """From the .txt file beside a picture, or the one for all; UnicodeDecodeError unless UTF-8."""
        beside = picture.with_suffix(".txt")
        text = " ".join(beside.read_text("utf-8-sig").split()) if beside.is_file() else ""
        return {BESIDE: text} if text else {FOR_ALL: self.caption} if self.caption else {}

    # ---- what comes -----------------------------------------------------------------------------------------------

    def add(self, job: Job, fault: str | None) -> None:
        """A job is done: all its labels are there, or its picture cannot be used."""
        if fault:
            self.faults.append(fault)
            self.without_caption.discard(job.line)
            return
        self.gains[job.line] |= {self.fields[domain]: path for domain, path in job.labels.items()}

    def add_caption(self, line: int, text: str) -> None:
        """A caption that was written beside the picture since."""
        self.gains[line]["caption"] = {BESIDE: text}
        self.without_caption.discard(line)

    def write(self) -> None:
        """The metadata with what is known so far; by name if it was so, else new lines come last."""
        rows = []
        for number, (picture, line) in enumerate(self.lines):
            gain = self.gains.get(number, {})
            if line or all(key in gain for key in self.fields.values()):
                rows.append((picture, json.dumps(json.loads(line or b"{}") | gain, ensure_ascii=False).encode()
                             if gain else line))
        listed = [picture for picture, line in self.lines if line]
        if listed == sorted(listed):
            rows.sort(key=itemgetter(0))
        with atomic_target(self.metadata, overwrite=True) as partial:
            partial.write_bytes(b"".join(line + b"\n" for _, line in rows))

    def remove_unfinished(self) -> None:
        """Labels that a killed process left half written."""
        for place in {Path(path).parent for job in self.jobs for path in job.labels.values()}:
            for file in (self.folder / place).glob(".*.part"):
                file.unlink()


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as it is seen, from its header."""
    with Image.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)
