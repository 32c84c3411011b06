"""What the metadata of a folder may point to."""

import json
import os

import pytest
import torch
from PIL import Image

from training.config import SetConfig
from training.folders import FolderSet
from training.samples import load_for_training

DOMAINS = ("image", "depth")


@pytest.fixture
def folder(tmp_path):
    """An empty data set beside a picture that is none of its own."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "private.png")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def sample_of(folder, **values):
    entry = {"image": "a.png", "info": {"height": 32, "width": 32}, "caption": {"mine": "a"}} | values
    (folder / "metadata.jsonl").write_text(json.dumps(entry) + "\n")
    return FolderSet(SetConfig(path=str(folder))).sample(0, DOMAINS)


@pytest.mark.parametrize("path", ["../private.png", "deep/../../private.png", "{outside}/private.png",
                                  "./../set/a.png"])
@pytest.mark.parametrize("field", ["image", "annotation_depth"])
def test_a_path_that_leads_out_is_refused(folder, path, field):
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 1: {field} = .*leads out of the data set's folder"):
        sample_of(folder, **{field: path.format(outside=folder.parent)})


def test_a_link_may_lead_anywhere(folder):
    os.symlink(folder.parent / "private.png", folder / "a.png")
    os.symlink(folder.parent, folder / "elsewhere")
    pictures = sample_of(folder, annotation_depth="elsewhere/./private.png").pictures
    for domain in DOMAINS:
        red = load_for_training(domain, pictures[domain], (32, 32), "nearest")
        assert torch.equal(red.amax((1, 2)), torch.tensor([1.0, -1.0, -1.0]))


@pytest.mark.parametrize("values, message", [
    ({"annotation_depth": 5}, "annotation_depth is 5, but must be a path"),
    ({"caption": "a dog"}, "caption is 'a dog', but must be an object such as")])
def test_metadata_of_another_kind(folder, values, message):
    with pytest.raises(ValueError, match=message):
        sample_of(folder, **values)


def test_a_file_that_is_no_picture_is_named(folder):
    (folder / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot read a picture from .*a.png: no known picture format"):
        load_for_training("image", sample_of(folder).pictures["image"], (32, 32), "nearest")
