"""The toy world: same seed, same picture, and every label agrees with the scene and with the other labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from jodi_core.domains import JODI_DOMAINS
from jodi_core.segmentation import PALETTE_12, SEGMENTATION_NAMES
from training import objects
from training.captions import FACTS, caption, facts
from training.scene import BACK_ROW, COLOURS, FRONT_ROW, SIDES, Scene, Thing
from training.world import colour_word, main, render, sample_scene, write_dataset

SIZE = 128
CLASS_OF = {"house": "building", "car": "vehicle", "person": "person", "dog": "animal", "bench": "furniture",
            "wall": "wall", "tree": "plant"}
PLAIN = Scene("clear", "sand", "", (), 0.5, 1, 0.5, ())


def with_things(*things, **changes):
    return replace(PLAIN, things=things, **changes)


def thing(kind, side="middle", flip=1, **more):
    return Thing(kind, side, (0.22, 0.5, 0.78)[SIDES.index(side)], (BACK_ROW | FRONT_ROW)[kind][0], 1.0, flip, **more)


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(seed) for seed in range(64)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return render(scenes, SIZE, SIZE)


def mask(pictures, row, name):
    colour = PALETTE_12[SEGMENTATION_NAMES.index(name)][:, None, None]
    return (pictures["segmentation"][row] == colour).all(0)


def one(scene, height=SIZE, width=SIZE):
    return {name: picture[0] for name, picture in render([scene], height, width).items()}


def test_class_numbers_are_those_of_the_palette():
    assert [getattr(objects, name.upper()) for name in SEGMENTATION_NAMES] == list(range(12))


def test_scenes_and_pictures_depend_on_the_seed_alone(scenes, pictures):
    assert scenes == [sample_scene(seed) for seed in range(64)] and len(set(scenes)) == 64
    for row in (0, 7):  # whatever else is in the batch
        alone = one(scenes[row])
        assert all(torch.equal(alone[name], pictures[name][row]) for name in JODI_DOMAINS)


@pytest.mark.parametrize("height, width", [(128, 128), (96, 160), (160, 96), (64, 64)])
def test_every_domain_is_a_byte_picture_of_the_size(scenes, height, width):
    result = render(scenes[:8], height, width)
    assert tuple(result) == JODI_DOMAINS
    for picture in result.values():
        assert picture.shape == (8, 3, height, width) and picture.dtype == torch.uint8


def test_number_of_things():
    many = [sample_scene(seed) for seed in range(1000)]
    counts = [len(scene.things) for scene in many]
    assert 1.5 < np.mean(counts) < 3 and min(counts) == 0
    for scene in many:
        kinds = [item.kind for item in scene.things]
        assert len(set(kinds)) == len(kinds)
        for row in (BACK_ROW, FRONT_ROW):
            sides = [item.side for item in scene.things if item.kind in row]
            assert len(set(sides)) == len(sides)


def test_sky_is_infinitely_far_and_faces_us(scenes, pictures):
    for row in range(len(scenes)):
        sky = mask(pictures, row, "sky")
        assert sky.float().mean() > 0.1
        assert (pictures["depth"][row][:, sky] == 0).all()
        assert (pictures["normal"][row][:, sky] == torch.tensor([[128], [128], [255]])).all()
        assert (pictures["depth"][row][0][~sky] > 0).all()


def test_depth_spans_the_range_and_the_ground_comes_nearer():
    depth = one(PLAIN)["depth"][0].float()
    assert depth.min() == 0 and depth.max() >= 252
    assert (depth[70:].diff(dim=0) > 0).all()


def test_normals_have_unit_length(pictures):
    length = (pictures["normal"].float() / 127.5 - 1).norm(dim=1)
    assert (length - 1).abs().max() < 0.02


def test_objects_hide_the_ground_at_their_foot_depth():
    house = one(with_things(thing("house", variant="red")))
    inside = (house["segmentation"] == PALETTE_12[objects.BUILDING][:, None, None]).all(0)
    ground_below = house["depth"][0][:, 64][inside[:, 64].nonzero().max() + 1].float()
    assert abs(house["depth"][0][inside].float().max() - ground_below) < 8


def test_classes_are_those_of_the_things(scenes, pictures):
    for row, scene in enumerate(scenes):
        for kind, name in CLASS_OF.items():
            if scene.thing(kind):
                assert mask(pictures, row, name).sum() > 40, f"{kind} of scene {row} cannot be seen"
            elif kind != "tree":  # grass is a plant, too
                assert not mask(pictures, row, name).any()


def test_albedo_tells_the_colour_word(scenes, pictures):
    for row, scene in enumerate(scenes):
        for kind in ("house", "car", "person"):
            word = facts(scene)[kind]
            if word:
                assert colour_word(pictures["albedo"][row], mask(pictures, row, CLASS_OF[kind])) == word


def test_no_colour_word_where_there_is_no_colour():
    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    assert colour_word(grey, torch.ones(8, 8, dtype=torch.bool)) == ""
    assert colour_word(grey, torch.zeros(8, 8, dtype=torch.bool)) == ""


def test_colour_words_are_far_apart():
    colours = torch.tensor(list(COLOURS.values())).float()
    assert (torch.cdist(colours, colours) + 1000 * torch.eye(len(colours))).min() > 90


@pytest.mark.parametrize("side, third", list(zip(SIDES, range(3))))
def test_sides_are_those_of_the_picture(side, third):
    for size in ((128, 128), (96, 160), (160, 96)):
        picture = one(with_things(thing("car", side, variant="blue")), *size)["segmentation"]
        columns = (picture == PALETTE_12[objects.VEHICLE][:, None, None]).all(0).nonzero()[:, 1].float()
        assert int(3 * columns.mean() / size[1]) == third


def test_light_changes_the_image_and_shadows_its_edges_but_no_other_label():
    left, right = (one(with_things(thing("tree", variant="round"), sun=sun)) for sun in (-1, 1))
    for name in JODI_DOMAINS:
        assert torch.equal(left[name], right[name]) == (name not in ("image", "edge")), name


def test_lineart_is_two_pixels_wide_and_lies_on_face_borders():
    lines = one(PLAIN)["lineart"][0]
    assert set(lines.unique().tolist()) == {0, 255}
    assert lines[63:65].eq(255).all() and lines.sum() == 255 * 2 * 128  # the horizon only


def test_openpose_is_black_without_a_person_and_lies_on_the_person(scenes, pictures):
    for row, scene in enumerate(scenes):
        pose = pictures["openpose"][row].amax(0) > 128
        assert pose.any() == bool(scene.thing("person"))
        beside = pose & ~mask(pictures, row, "person")  # a joint may be a little wider than its limb
        assert beside.sum() <= 0.06 * pose.sum()


@pytest.mark.parametrize("flip", [1, -1])
def test_the_raised_hand_is_the_right_one_unless_mirrored(flip):
    pose = one(with_things(thing("person", flip=flip, variant="blue", pose="waving")))["openpose"]
    y, x = pose.amax(0).gt(128).nonzero()[0].tolist()
    assert (x < 64) == (flip == 1)  # a person who faces us has the right hand on the left
    blue = pose[2, y:y + 4].max().item()
    assert (blue < 20) == (flip == 1)  # the colours of the right arm have no blue, those of the left wrist some


def test_captions_state_every_fact_in_a_small_vocabulary():
    words, orders = set(), set()
    for seed in range(400):
        scene = sample_scene(seed)
        text = caption(scene, seed, shorten=0)
        assert text == caption(scene, seed, shorten=0)
        known = facts(scene)
        assert known.keys() == FACTS.keys() and all(known[name] in FACTS[name] for name in FACTS)
        for name, value in known.items():
            stated = {"cheering": "arms up"}.get(value, value)
            assert stated in text, (name, text)
        words |= set(text.replace(",", "").split())
        orders.add(caption(sample_scene(0), seed, shorten=0))
    assert len(words) < 90 and len(orders) > 50


def test_some_captions_are_shortened_but_never_empty():
    scene = sample_scene(0)
    full = len(caption(scene, 0, shorten=0).split(", "))
    lengths = [len(caption(scene, seed).split(", ")) for seed in range(500)]
    assert 0.03 < np.mean([length < full for length in lengths]) < 0.15 and min(lengths) >= 1


def test_dataset_folder(tmp_path, capsys):
    main([str(tmp_path / "toy"), "--count", "3", "--seed", "5", "--size", "64"])
    metadata = tmp_path / "toy" / "metadata.jsonl"
    assert capsys.readouterr().out.strip() == str(metadata)
    entries = [json.loads(line) for line in metadata.read_text().splitlines()]
    assert len(entries) == 3
    names = ["lineart", "edge", "depth", "normal", "albedo", "seg_12colors", "openpose"]
    truth = render([sample_scene(5)], 64, 64)
    for entry in entries:
        assert entry["info"] == {"height": 64, "width": 64} and entry["caption"]["toy"]
        assert {key for key in entry if key.startswith("annotation")} == {f"annotation_{name}" for name in names}
    for domain, key in zip(JODI_DOMAINS, ["image", *(f"annotation_{name}" for name in names)]):
        stored = np.asarray(Image.open(metadata.parent / entries[0][key]))
        assert (torch.from_numpy(stored.copy()).permute(2, 0, 1) == truth[domain][0]).all()


def test_dataset_is_the_same_in_any_batch(tmp_path):
    texts = [write_dataset(tmp_path / str(batch), 3, 0, 32, batch=batch).read_text() for batch in (1, 2)]
    assert texts[0] == texts[1]


def test_shadows_lie_on_the_ground_and_where_the_picture_is_darker():
    scenes = [sample_scene(seed) for seed in range(8)]
    pictures = render(scenes, 128, 128, shadows=True)
    plain = render(scenes, 128, 128)
    assert list(pictures) == [*plain, "shadow"] and all(torch.equal(pictures[name], plain[name]) for name in plain)
    cast = pictures["shadow"][:, 0] > 200
    assert 0.002 < cast.float().mean() < 0.1
    lit = (pictures["image"].float() / pictures["albedo"].float().clamp_min(1)).mean(1)
    for row in range(8):
        if cast[row].any():
            ground = (pictures["normal"][row, 1] > 250) & ~(pictures["shadow"][row, 0] > 0)
            assert lit[row][cast[row]].mean() < lit[row][ground].mean()


def test_another_style_is_another_image_with_the_same_labels(tmp_path):
    for style in ("plain", "ink"):
        write_dataset(tmp_path / style, 2, 5, 64, style=style)
    def read(style, path):
        with Image.open(tmp_path / style / path) as picture:
            return picture.convert("RGB").copy()
    entry = json.loads((tmp_path / "ink" / "metadata.jsonl").read_text().splitlines()[0])
    assert read("ink", entry["annotation_depth"]).tobytes() == read("plain", entry["annotation_depth"]).tobytes()
    colours = [np.ptp(np.asarray(read(style, entry["image"]), dtype=int), axis=2).mean() for style in ("plain", "ink")]
    assert colours[1] < 30 < colours[0]


def test_pictures_alone_have_their_captions_beside_them(tmp_path):
    main([str(tmp_path / "mine"), "--count", "2", "--seed", "5", "--size", "64", "--pictures-only", "--style", "ink"])
    write_dataset(tmp_path / "set", 2, 5, 64, style="ink")
    entry = json.loads((tmp_path / "set" / "metadata.jsonl").read_text().splitlines()[1])
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "00000005.png", "00000005.txt", "00000006.png", "00000006.txt"]
    assert (tmp_path / "mine" / "00000006.txt").read_text().strip() == entry["caption"]["toy"]
    assert (tmp_path / "mine" / "00000006.png").read_bytes() == (tmp_path / "set" / entry["image"]).read_bytes()
