"""The whole way: recorded runs of the original, exactness of the savings, defaults, and input that cannot be."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jodi_core.convert import convert
from jodi_core.domains import JointRoles, Role, nearest_bin
from jodi_core.files import WeightsError
from jodi_core.pipeline import JodiPipeline, TextFeatures
from jodi_core.weights import load_autoencoder, load_text, load_transformer

GOLDEN = Path(__file__).parents[1] / "golden" / "jodi"
RECORDED = json.loads((GOLDEN / "model_a.pipeline.json").read_text())


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return JodiPipeline.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def picture():
    return torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(5))


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ---- parity -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def recorded_pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    for kind, name in (("transformer", "model_a"), ("autoencoder", "dcae")):
        config = json.loads((GOLDEN / f"{name}.json").read_text())
        convert(GOLDEN / f"{name}.weights.safetensors", folder / f"{kind}.safetensors",
                config=config.get("model", config), dtype=torch.float32)
    return JodiPipeline(load_transformer(folder), load_autoencoder(folder))


@pytest.mark.parametrize("run", RECORDED["runs"], ids=lambda run: run["name"])
def test_recorded_runs_are_reproduced_stage_by_stage(recorded_pipe, run):
    pipe, name, data = recorded_pipe, run["name"], load_file(GOLDEN / "model_a.pipeline.safetensors")
    roles = JointRoles(pipe.domains, tuple(run["role"]))
    given = {pipe.domains[i]: data[f"{name}.input{i}.u8"].permute(2, 0, 1)[None] / 255
             for i in roles.active if roles.roles[i] == Role.CONDITION}
    bins = {float(ratio): size for ratio, size in RECORDED["bins"].items()}
    clean_BCDHW = pipe.encode_conditions(roles, given, nearest_bin(run["h"], run["w"], bins))
    for slot in roles.condition_slots:
        assert relative(clean_BCDHW[:, :, slot], data[f"{name}.clean_latent{roles.active[slot]}"]) < 2e-6
    features = data[f"{name}.y_first_call"].flatten(0, 1)
    text = None if roles.image_given else TextFeatures(features, data[f"{name}.mask"], 2)
    latent_BCDHW = pipe.sample(data[f"{name}.z"], roles, clean_BCDHW, text, steps=run["steps"], guidance=run["g"])
    decoded = pipe.decode(latent_BCDHW, roles, (run["h"], run["w"]))
    kept = [pipe.domains[i] for i in run["keep"] if pipe.domains[i] in decoded]
    assert kept
    for domain in kept:
        assert relative(decoded[domain], data[f"{name}.out{pipe.domains.index(domain)}"]) < 1e-4


# ---- exactness --------------------------------------------------------------------------------------------------

class Refused:
    """Stands where something must not be touched."""

    def __call__(self, *args, **kwargs):
        pytest.fail("must not be called")


def test_perception_needs_no_text_and_no_guidance(pipe, picture, monkeypatch):
    monkeypatch.setattr(pipe, "_load_text_encoder", Refused())
    monkeypatch.setattr(JodiPipeline, "text_encoder", property(Refused()))
    plain = pipe(conditions={"image": picture}, generate=["depth"], seed=3, steps=3)
    guided = pipe("a cat", conditions={"image": picture}, generate=["depth"], seed=3, steps=3, guidance=7.0)
    assert torch.equal(plain.pictures["depth"], guided.pictures["depth"])


def test_only_generated_domains_are_decoded_and_conditions_stay_clean(pipe, picture, monkeypatch):
    decoded = []
    decode = pipe.autoencoder.decode
    monkeypatch.setattr(pipe.autoencoder, "decode", lambda z: decoded.append(len(z)) or decode(z))
    result = pipe("a house", conditions={"depth": picture}, count=2, seed=1, steps=2)
    assert decoded == [2] and set(result.pictures) == {"image"}
    assert result.roles.active_names == ("image", "depth")
    given = pipe.autoencoder.encode(torch.nn.functional.interpolate(
        picture * 2 - 1, (48, 48), mode="bilinear", antialias=True)) * pipe.config.latent_scale
    assert torch.allclose(result.latent_BCDHW[:, :, 1], given.expand(2, -1, -1, -1), atol=1e-6)


def test_a_seed_means_the_same_noise_whichever_domains_take_part(pipe):
    noise_BLCHW = pipe.noise(2, (32, 64), 11)
    assert noise_BLCHW.shape == (2, 8, 8, 4, 8)
    assert torch.equal(noise_BLCHW, torch.randn(2, 8, 8, 4, 8, generator=torch.Generator().manual_seed(11)))


def test_several_pictures_of_one_prompt_equal_the_same_prompt_repeated(pipe):
    calls = {"seed": 4, "steps": 2, "generate": ["image", "depth"]}
    shared = pipe("a red house", count=3, **calls)
    repeated = pipe(["a red house"] * 3, **calls)
    assert torch.allclose(shared.latent_BCDHW, repeated.latent_BCDHW, atol=2e-5)
    assert not torch.allclose(shared.latent_BCDHW[0], shared.latent_BCDHW[1], atol=0.1)


def test_prompts_of_different_length_do_not_disturb_each_other(pipe):
    prompts = ["a red house beside a lake", "a tree", ""]
    together = pipe(prompts, seed=4, steps=2, generate=["image"])
    noise_BLCHW = pipe.noise(3, (48, 48), 4)
    for row, prompt in enumerate(prompts):
        alone = pipe.sample(noise_BLCHW[row:row + 1], together.roles, None, pipe.encode_text([prompt], "", 4.5),
                            steps=2, guidance=4.5)
        assert torch.allclose(alone[0], together.latent_BCDHW[row], atol=2e-5)


def test_each_prompt_has_its_own_condition(pipe):
    pictures = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(6))
    both = pipe(["a house", "a tree"], conditions={"depth": pictures}, count=2, seed=2, steps=2)
    assert both.pictures["image"].shape == (4, 3, 48, 48)
    first = pipe.encode_conditions(both.roles, {"depth": pictures[:1]}, (48, 48))
    alone = pipe.sample(pipe.noise(4, (48, 48), 2)[:2], both.roles, first, pipe.encode_text(["a house"], "", 4.5),
                        steps=2, guidance=4.5)
    assert torch.allclose(alone, both.latent_BCDHW[:2], atol=2e-5)


def test_guidance_one_is_the_conditional_branch_and_zero_the_unconditional_one(pipe):
    calls = {"generate": ["image"], "seed": 2, "steps": 2}
    conditional = pipe("a red house", guidance=1.0, **calls).latent_BCDHW
    assert torch.allclose(conditional, pipe("a red house", guidance=1.0 + 1e-6, **calls).latent_BCDHW, atol=1e-4)
    unconditional = pipe("a red house", guidance=0.0, **calls).latent_BCDHW
    null = TextFeatures(pipe.transformer.y_embedder.y_embedding[None, :pipe.encode_text(["a red house"])
                        .features_TMC.shape[1]], None, 1)
    roles = JointRoles.of(pipe.domains, ["image"])
    assert torch.allclose(unconditional, pipe.sample(pipe.noise(1, (48, 48), 2), roles, None, null, steps=2), atol=1e-5)


def test_a_negative_prompt_acts_and_is_forgotten(pipe, monkeypatch):
    calls = {"generate": ["image"], "seed": 2, "steps": 2}
    asked = []
    encode_negative = pipe.text_encoder.encode_negative
    monkeypatch.setattr(pipe.text_encoder, "encode_negative",
                        lambda texts, rows: asked.append((texts, rows)) or encode_negative(texts, rows))
    before = pipe("a tree", **calls).latent_BCDHW
    assert not asked, "the stored empty caption serves an empty negative prompt"
    negative = pipe("a tree", negative_prompt="a blue car --ar 3:4", **calls).latent_BCDHW
    assert asked == [(["a blue car"], pipe.encode_text(["a tree"]).features_TMC.shape[1])]
    assert not torch.allclose(before, negative, atol=1e-3)
    assert torch.equal(before, pipe("a tree", **calls).latent_BCDHW)


# ---- defaults and sizes -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("given, generated, steps", [
    ((), "all", 20), (("depth", "edge"), ("image",), 20),
    (("image",), ("lineart", "edge", "depth", "normal", "albedo", "segmentation", "openpose"), 10)])
def test_defaults_follow_from_what_is_given(pipe, picture, given, generated, steps, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "velocity",  # only the number of steps matters
                        lambda x, t, context: x.repeat(context.branches, 1, 1, 1, 1))
    told = []
    result = pipe("a house", conditions={name: picture for name in given}, seed=1,
                  callback=lambda step, of, x, x0: told.append((step, of)))
    assert tuple(result.pictures) == (pipe.domains if generated == "all" else generated)
    assert told == [(step + 1, steps) for step in range(steps)]
    for pictures in result.pictures.values():
        assert pictures.shape == (1, 3, 48, 48) and pictures.dtype == torch.float32
        assert 0 <= pictures.min() and pictures.max() <= 1 and pictures.isfinite().all()


def test_a_new_seed_every_time_unless_one_is_given(pipe):
    calls = {"generate": ["image"], "steps": 1}
    first, second = pipe("x", **calls), pipe("x", **calls)
    assert first.seed != second.seed
    assert torch.equal(pipe("x", seed=first.seed, **calls).latent_BCDHW, first.latent_BCDHW)


@pytest.mark.parametrize("size, sampled", [((30, 70), (32, 64)), ((1, 1), (48, 48)), ((100, 50), (64, 32))])
def test_sizes_outside_the_bins_are_stretched_from_the_nearest(pipe, size, sampled):
    result = pipe("x", generate=["image"], steps=1, seed=0, height=size[0], width=size[1])
    assert result.pictures["image"].shape[-2:] == size
    assert tuple(8 * side for side in result.latent_BCDHW.shape[-2:]) == sampled


@pytest.mark.parametrize("source", [
    Image.new("RGB", (1, 1), "red"), Image.new("L", (60, 30), 128), Image.new("RGBA", (60, 30), (1, 2, 3, 4)),
    Image.fromarray(np.full((30, 60), 40000, np.uint16)), Image.new("RGB", (8000, 4000)), torch.rand(1, 1, 9, 9)],
    ids=["1 pixel", "grey", "rgba", "16 bit", "8000 pixels", "grey tensor"])
def test_any_kind_of_picture_can_be_a_condition(pipe, source):
    result = pipe(conditions={"image": source}, generate=["depth"], steps=1, seed=0)
    assert result.pictures["depth"].shape[-2:] in {(48, 48), (32, 64)}


def test_an_interrupt_stops_between_steps_and_the_pipeline_works_on(pipe):
    def stop(step, of, x, x0):
        if step == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        pipe("x", generate=["image"], seed=1, callback=stop)
    assert pipe("x", generate=["image"], seed=1, steps=1).pictures["image"].isfinite().all()


# ---- input that cannot be ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, message", [
    ({"generate": []}, "nothing to generate"),
    ({"generate": [], "conditions": {"depth": torch.rand(1, 3, 8, 8)}}, "nothing to generate.*depth"),
    ({"generate": ["deepness"]}, "no domain deepness; it has image"),
    ({"conditions": {"deepness": torch.rand(1, 3, 8, 8)}}, "no domain deepness"),
    ({"conditions": {"depth": None}}, "depth: a condition needs a picture"),
    ({"conditions": {"depth": torch.rand(1, 3, 8, 8)}, "generate": ["depth"]}, "not both"),
    ({"conditions": {"depth": torch.rand(3, 8, 8)}}, "picture tensor"),
    ({"conditions": {"depth": torch.rand(2, 3, 8, 8), "edge": torch.rand(3, 3, 8, 8)}},
     "1 prompts, 2 depth, 3 edge"),
    ({"prompt": ["a", "b"], "conditions": {"depth": torch.rand(3, 3, 8, 8)}}, "disagree: 2 prompts, 3 depth"),
    ({"prompt": []}, "empty prompt is written"),
    ({"count": 0}, "count 0"),
    ({"steps": 0}, "steps 0"),
    ({"seed": -1}, "seed -1"), ({"seed": 2 ** 64}, "2\\^64"),
    ({"height": 48}, "both height and width"), ({"height": 0, "width": 48}, "at least one pixel"),
])
def test_impossible_wishes_are_told_before_anything_runs(pipe, monkeypatch, call, message):
    monkeypatch.setattr(pipe.transformer, "velocity", Refused())
    with pytest.raises(ValueError, match=message):
        pipe(**call)


def test_a_corrupt_picture_is_told_by_name(pipe, tmp_path):
    (tmp_path / "depth.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match="depth.png"):
        pipe(conditions={"depth": tmp_path / "depth.png"})


def test_models_that_do_not_belong_together_are_refused(tiny_files, recorded_pipe, pipe):
    with pytest.raises(WeightsError, match="8 latent channels.*32"):
        JodiPipeline(pipe.transformer, recorded_pipe.autoencoder)
    mismatched = JodiPipeline(recorded_pipe.transformer, recorded_pipe.autoencoder,
                              lambda: load_text(tiny_files["text_encoder"]))
    with pytest.raises(WeightsError, match="width 48.*64"):
        mismatched("a house")


def test_without_a_text_encoder_only_perception_works(pipe, picture):
    silent = JodiPipeline(pipe.transformer, pipe.autoencoder)
    assert silent(conditions={"image": picture}, generate=["normal"], steps=1).pictures
    with pytest.raises(ValueError, match="no text encoder"):
        silent("a house")


def test_seven_more_domains_or_one_come_from_the_file_alone(pipe):
    config = replace(pipe.config, domains=("image", "depth", "heat"))
    from jodi_core import JodiTransformer
    transformer = JodiTransformer(config)
    transformer.init_weights()
    small = JodiPipeline(transformer, pipe.autoencoder, lambda: pipe.text_encoder)
    assert set(small("x", steps=1).pictures) == {"image", "depth", "heat"}


def test_bfloat16_stays_close_to_float32(tiny_folder, pipe, picture):
    low = JodiPipeline.from_pretrained(tiny_folder, device="cpu", dtype=torch.bfloat16)
    calls = {"conditions": {"image": picture}, "generate": ["albedo"], "seed": 1, "steps": 4}
    difference = (low(**calls).latent_BCDHW - pipe(**calls).latent_BCDHW).abs().mean()
    assert difference < 0.1 and not math.isnan(difference)
