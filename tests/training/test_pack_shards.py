"""pack: same folder, same bytes; killed anywhere it goes on; it reads and writes nothing outside the two folders."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from training import cli, pack as packing
from training.config import DataConfig, SetConfig
from training.folders import FolderSet
from training.pack import pack
from training.shards import ShardSet

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, PER_SHARD = 10, 3
PATTERN = "shard-{000000..000003}.tar"
DOMAINS = ("image", "depth", "heat")


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, a domain of one's own, other metadata; depth is missing once."""
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    entries = []
    for number in range(SAMPLES):
        entry = {"image": f"deep/{number}.PNG", "info": {"height": 8, "width": 9, "taken": "1999"},
                 "caption": {"mine": f"caption é {number}"}, "source": "a walk"}
        for name in ("image", "annotation_depth", "annotation_heat"):
            entry.setdefault(name, f"deep/{number}.{name}.png")
            Image.new("RGB", (9, 8), (number, len(name), 0)).save(folder / entry[name])
        entries.append(entry)
    del entries[7]["annotation_depth"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def change(folder: Path, line: int, **values) -> None:
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | values)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def content(folder: Path) -> dict:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_lost(folder, tmp_path):
    before = content(tmp_path)
    assert pack(str(folder), tmp_path / "out", per_shard=PER_SHARD) == 0
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before, "what was there"
    assert len(after) == len(before) + 8 and all(name.startswith("out/shard-") for name in set(after) - set(before))
    shards = ShardSet(SetConfig(path=str(tmp_path / "out" / PATTERN)), DataConfig(on_error="stop"))
    plain = FolderSet(SetConfig(path=str(folder)))
    assert shards.sizes == plain.sizes == [(8, 9)] * SAMPLES
    for number in range(SAMPLES):
        one, other = shards.sample(number, DOMAINS), plain.sample(number, DOMAINS)
        assert one.captions == other.captions and list(one.pictures) == list(other.pictures)
        assert all(one.pictures[k].read_bytes() == other.pictures[k].read_bytes() for k in one.pictures)
    with tarfile.open(tmp_path / "out" / "shard-000002.tar") as tar:
        assert tar.getnames()[:4] == ["00000007.json", "00000007.image.png", "00000007.annotation_depth.png",
                                      "00000007.annotation_heat.png"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
        described = json.load(tar.extractfile("00000008.json"))
    assert described == {"info": {"height": 8, "width": 9, "taken": "1999"}, "caption": {"mine": "caption é 7"},
                         "source": "a walk"}


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path, capsys):
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "set"))
    for path in copy.rglob("*"):
        os.utime(path, (5e8, 5e8))
    for source, target in ((folder, "one"), (copy, "two")):
        cli.main(["pack", str(source), str(tmp_path / target), "--samples-per-shard", "3"])
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert f'path = "{tmp_path / "two" / PATTERN}"' in capsys.readouterr().out
    shutil.copy(folder / "metadata.jsonl", folder / "metadata.mine.jsonl")
    assert not cli.main(["pack", str(folder), str(tmp_path / "three"), "--split", "mine"])
    assert 'shard-000000.tar"' in capsys.readouterr().out


def test_whole_shards_are_kept_and_others_written_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    pack(str(folder), out, per_shard=PER_SHARD)
    whole = content(out)
    os.truncate(out / "shard-000000.tar", 3000)
    (out / "shard-000002.tar").unlink()
    (out / ".writing_shard-000002.tar").write_text("half")
    capsys.readouterr()
    pack(str(folder), out, per_shard=PER_SHARD)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in told[:4]] == ["3", "kept", "3", "kept"]
    assert content(out) == whole
    change(folder, 4, caption={"mine": "other"})
    Image.new("RGB", (9, 8), (0, 0, 0)).save(folder / "deep" / "9.PNG")
    os.utime(folder / "deep" / "9.PNG", (4e9, 4e9))
    pack(str(folder), out, per_shard=PER_SHARD)
    changed = {name for name, digest in content(out).items() if digest != whole[name]}
    assert changed == {f"shard-{number:06d}.tar{end}" for number in (1, 3) for end in ("", ".index")}


@pytest.mark.parametrize("moment", ["half a shard", "before its index", "between index and shard"])
def test_killed_in_the_middle(folder, tmp_path, monkeypatch, moment):
    pack(str(folder), tmp_path / "whole", per_shard=PER_SHARD)
    out, calls = tmp_path / "out", []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return was(*arguments)
    name = {"half a shard": (Path, "read_bytes"), "before its index": (packing, "flush"),
            "between index and shard": (os, "replace")}[moment]
    with monkeypatch.context() as patch:
        was = getattr(*name)
        patch.setattr(*name, killed)
        if moment == "between index and shard":
            calls.append(0)    # the index comes before its shard
        with pytest.raises(KeyboardInterrupt):
            pack(str(folder), out, per_shard=PER_SHARD)
    assert content(out) != content(tmp_path / "whole")
    pack(str(folder), out, per_shard=PER_SHARD)
    assert content(out) == content(tmp_path / "whole")


def test_kill_minus_nine(folder, tmp_path):
    """A process that is slow, killed as soon as a shard is there."""
    pack(str(folder), tmp_path / "whole", per_shard=PER_SHARD)
    code = ("import sys, time; from pathlib import Path; from training import pack; read = Path.read_bytes\n"
            "Path.read_bytes = lambda path: time.sleep(0.1) or read(path)\n"
            f"pack.pack(sys.argv[1], Path(sys.argv[2]), per_shard={PER_SHARD})")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(tmp_path / "out")], cwd=ROOT)
    while not (tmp_path / "out" / "shard-000001.tar").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = content(tmp_path / "out")
    assert 4 <= len(left) < 8 and ".writing_shard-000000.tar" not in left
    pack(str(folder), tmp_path / "out", per_shard=PER_SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("values, message", [
    ({"image": "../secret.png"}, "image = .* leads out of the data set's folder"),
    ({"annotation_depth": "/etc/hostname"}, "annotation_depth = .* leads out of"),
    ({"annotation_heat": "deep/none.png"}, "annotation_heat: .*deep/none.png does not exist"),
    ({"image": None}, "it has no image")])
def test_what_cannot_be_read_is_named_and_left_out(folder, tmp_path, values, message, capsys):
    Image.new("RGB", (9, 8)).save(folder.parent / "secret.png")
    change(folder, 1, **values)
    for _ in range(2):    # also when the other samples are there already
        assert cli.main(["pack", str(folder), str(tmp_path / "out"), "--samples-per-shard", "3"]) == 1
        told = capsys.readouterr().out
        assert "left out: " in told and "metadata.jsonl, line 2" in told and "9 samples in 4 shards, 1 left out" in told
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert not any(name.startswith("00000002") for name in tar.getnames()) and len(tar.getnames()) == 8


def test_a_picture_that_cannot_be_opened(folder, tmp_path, monkeypatch, capsys):
    def refuse(path, read=Path.read_bytes):
        if path.name == "4.annotation_depth.png":
            raise PermissionError(f"{path}: not yours")
        return read(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert pack(str(folder), tmp_path / "out", per_shard=PER_SHARD) == 1
    assert "left out: sample 00000005: " in capsys.readouterr().out
    assert pack(str(folder), tmp_path / "out", per_shard=PER_SHARD) == 0, "tried again"
    assert len(ShardSet(SetConfig(path=str(tmp_path / "out" / PATTERN)), DataConfig())) == SAMPLES


def test_a_folder_that_holds_something_else(folder, tmp_path):
    out = tmp_path / "out"
    pack(str(folder), out, per_shard=PER_SHARD)
    whole = content(out)
    with pytest.raises(ValueError, match="shard-000000.tar is no part of set/metadata.jsonl, 5 samples per shard"):
        pack(str(folder), out, per_shard=5)
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:5]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="shard-000002.tar is no part of"):
        pack(str(folder), out, per_shard=PER_SHARD)
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(ValueError, match="shard-000000.tar is no part of other/metadata.jsonl"):
        pack(str(tmp_path / "other"), out, per_shard=PER_SHARD)
    assert content(out) == whole
    with pytest.raises(ValueError, match="0 samples per shard are too few"):
        pack(str(folder), out, per_shard=0)
    with pytest.raises(SystemExit):
        cli.main(["pack", str(folder), str(out), "data.cache=1"])


def test_links_in_the_target_are_not_followed(folder, tmp_path):
    """Nothing outside of it is written."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    for name in (".writing_shard-000000.tar", "shard-000001.tar.index", ".writing_shard-000001.tar.index"):
        outside.write_text("precious")
        os.symlink(outside, out / name)
    pack(str(folder), out, per_shard=PER_SHARD)
    assert outside.read_text() == "precious" and not any(path.is_symlink() for path in out.iterdir())
