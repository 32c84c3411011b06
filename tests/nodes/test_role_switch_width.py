"""The role switch beyond pictures: latents, masks, conditions for some steps, fit and undo, other domains."""

import pytest
import torch
from nodes_fixtures import PICTURE, choices, relative, switch

from jodi_core.domains import JODI_DOMAINS
from jodi_core.fitting import FIT_MODES
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from jodi_core.weights import write_model
from jodi_pack.nodes import joint
from jodi_pack.nodes.decode import AS_GENERATED, LIKE_GIVEN, JodiDomainDecode, JodiLabelDecode
from jodi_pack.nodes.roles import JodiDomain, JodiRoleSwitch
from jodi_pack.nodes.sampling import JodiJointSampler

TIMED = "condition for some steps"


def switched(vae, size="automatic", fit="crop", more=None, batch_size=1, **told):
    """Role switch; told: domain -> role, or (role, {what is connected})."""
    roles = choices()
    for name, (role, parts) in {key: value if isinstance(value, tuple) else (value, {})
                                for key, value in told.items()}.items():
        roles[name] = {name: role} | {f"{name}_{key}": part for key, part in parts.items()}
    size = size if isinstance(size, dict) else {"size": size}
    return JodiRoleSwitch.execute(vae, size, batch_size, fit=fit, more=more, **roles).result


def sample(model, conditioned, steps=4, seed=1, cfg=1.0):
    return JodiJointSampler.execute(model, *conditioned, seed, steps, cfg).result[0]


def test_a_latent_serves_as_a_picture_does(loaded):
    model, _, vae = loaded
    pictured = switched(vae, image="generate", depth=("condition", {"picture": PICTURE[:, :32, :]}),
                        size={"size": "custom", "width": 56, "height": 32})
    alone = {"samples": vae.encode(PICTURE[:, :32, 2:58])}
    flat = {"samples": alone["samples"][:, :, 0]}
    jointly = sample(model, switched(vae, depth=("condition", {"latent": alone}), edge="generate"))
    for latent in (alone, flat, jointly):
        given = switched(vae, image="generate", depth=("condition", {"latent": latent}))
        assert torch.allclose(given[2]["samples"], pictured[2]["samples"], atol=1e-6)
    with pytest.raises(ValueError, match="has edge, depth, not normal"):
        switched(vae, image="generate", normal=("condition", {"latent": jointly}))
    with pytest.raises(ValueError, match="4 channels, but this model's have 8"):
        switched(vae, image="generate", depth=("condition", {"latent": {"samples": torch.zeros(1, 4, 6, 6)}}))
    with pytest.raises(ValueError, match="either a picture to depth_picture or a latent"):
        switched(vae, image="generate", depth=("condition", {"latent": alone, "picture": PICTURE}))


def test_each_domain_has_its_own_mask(loaded):
    """Painted cells are made anew, the others stay as they were given; other domains and conditions are free."""
    model, _, vae = loaded
    left, top = torch.zeros(1, 48, 48), torch.zeros(1, 48, 48)
    left[:, :, :10], top[:, :20] = 1, 1    # cells of 8 pixels: two columns, three rows
    conditioned = switched(vae, size={"size": "custom", "width": 48, "height": 48}, normal="generate",
                           image=("edit", {"picture": PICTURE, "mask": left}),
                           depth=("edit", {"picture": PICTURE, "mask": top}),
                           edge=("condition", {"picture": PICTURE}))
    before, after = conditioned[2]["samples"], sample(model, conditioned)["samples"]
    changed = (before - after).abs().amax(dim=1)[0] > 1e-4    # edge, depth lie between image and normal
    assert changed[0, :, :2].all() and not changed[0, :, 2:].any()
    assert not changed[1].any()
    assert changed[2, :3].all() and not changed[2, 3:].any()
    assert changed[3].all()


def test_an_edit_without_mask_starts_from_what_is_given(loaded):
    from nodes import KSampler
    model, _, vae = loaded
    positive, negative, latent = switched(vae, image=("edit", {"picture": PICTURE}))
    assert "noise_mask" not in latent and latent["samples"].any()
    near, far = (relative(KSampler().sample(model, 1, 4, 1.0, "euler", "simple", positive, negative, latent,
                                            denoise=denoise)[0]["samples"], latent["samples"])
                 for denoise in (0.25, 1.0))
    assert 0 < near < far


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_condition_for_some_steps(loaded, cfg):
    model, _, vae = loaded

    def result(role, **span):
        parts = {"picture": PICTURE} | span if role != "ignore" else {}
        conditioned = switched(vae, size={"size": "custom", "width": 48, "height": 48}, image="generate",
                               normal="generate", depth=(role, parts))
        sampled = sample(model, conditioned, cfg=cfg)
        names = sampled[joint.ROLES].active_names
        if role != "ignore":
            given = names.index("depth")
            assert torch.allclose(sampled["samples"][:, :, given], conditioned[2]["samples"][:, :, given], atol=1e-6)
        return sampled["samples"][:, :, [names.index("image"), names.index("normal")]]

    always, never = result("condition"), result("ignore")
    assert torch.equal(result(TIMED), always)
    assert relative(result(TIMED, start=0.0, end=0.001), never) > 1e-4    # the first step sees it
    assert relative(result(TIMED, start=0.9, end=0.95), never) < 1e-5     # between two steps: none does
    half = result(TIMED, start=0.0, end=0.5)
    assert relative(half, always) > 1e-4 and relative(half, never) > 1e-4
    with pytest.raises(ValueError, match="starts at 0.7 and ends at 0.2"):
        result(TIMED, start=0.7, end=0.2)


def test_a_picture_for_some_steps_leaves_room_for_text(loaded):
    """While the image is given text has no effect; after it, it has."""
    model, clip, vae = loaded
    from nodes_fixtures import text

    def result(prompt, **span):
        roles = choices(generate=("depth",))
        roles["image"] = {"image": TIMED, "image_picture": PICTURE} | span
        conditioned = JodiRoleSwitch.execute(vae, {"size": "automatic"}, 1, text(clip, prompt), None, **roles).result
        return sample(model, conditioned, cfg=2.0)["samples"]

    assert torch.equal(result("a tree"), result("a red house"))
    assert not torch.equal(result("a tree", image_end=0.5), result("a red house", image_end=0.5))


@pytest.mark.parametrize("mode", FIT_MODES)
def test_labels_lie_over_the_input(loaded, mode):
    _, _, vae = loaded
    picture = torch.rand(1, 30, 70, 3)
    latent = switched(vae, image=("condition", {"picture": picture}), depth="generate", segmentation="generate",
                      fit=mode)[2]
    assert latent["samples"].shape[-2:] == (4, 8)
    latent["samples"] = torch.randn_like(latent["samples"])
    back, plain = (dict(zip(JODI_DOMAINS, JodiLabelDecode.execute(latent, vae, size).result))
                   for size in (LIKE_GIVEN, AS_GENERATED))
    assert back["depth"].shape == (1, 30, 70, 3) and plain["depth"].shape == (1, 32, 64, 3)
    colours = {tuple(colour) for colour in back["segmentation"][0, 5:25, 15:55].reshape(-1, 3).tolist()}
    assert colours <= {tuple(colour) for colour in plain["segmentation"].reshape(-1, 3).tolist()}


def test_padding_does_not_count_in_the_range_of_depth(loaded, monkeypatch):
    _, _, vae = loaded
    latent = switched(vae, image=("condition", {"picture": torch.rand(1, 16, 64, 3)}), depth="generate", fit="pad",
                      size={"size": "custom", "width": 64, "height": 32})[2]
    made = torch.full((1, 1, 32, 64, 3), 0.5)
    made[:, :, 8:24] += torch.linspace(-0.1, 0.1, 64)[:, None]
    made[:, :, :8], made[:, :, 24:] = 0, 1
    monkeypatch.setattr(vae, "decode", lambda samples: made)
    depth = JodiLabelDecode.execute(latent, vae, LIKE_GIVEN).result[3]
    assert torch.allclose(depth[0, :, :, 0], torch.linspace(0, 1, 64).expand(16, 64), atol=1e-5)


def test_undo_after_a_resize_is_refused(loaded):
    _, _, vae = loaded
    latent = switched(vae, image=("condition", {"picture": PICTURE}), depth="generate")[2]
    larger = latent | {"samples": latent["samples"].repeat(1, 1, 1, 2, 2)}
    with pytest.raises(ValueError, match="resized since"):
        JodiLabelDecode.execute(larger, vae, LIKE_GIVEN)


def test_what_is_left_over_of_another_role_is_not_read(loaded):
    """An API prompt may still carry the inputs of a role that was switched since; the host hands them on."""
    plain = switch(loaded[2], generate=("image", "depth"))[2]
    roles = choices(generate=("image", "depth")) | {"depth.depth_picture": PICTURE}
    assert torch.equal(JodiRoleSwitch.execute(loaded[2], {"size": "automatic"}, 1, **roles).result[2]["samples"],
                       plain["samples"])


@pytest.fixture(scope="module")
def heat(tmp_path_factory, tiny_files):
    """MODEL and VAE of a random model that knows heat."""
    from jodi_pack.nodes.host.model import load_model
    from jodi_pack.nodes.host.vae import load_vae
    torch.manual_seed(0)
    config = JodiConfig(domains=("image", "heat", "depth"), hidden_size=64, depth=2, num_heads=4, in_channels=8,
                        input_size=6, caption_channels=64, bins={1.0: (48, 48)})
    network = JodiTransformer(config)
    network.init_weights()
    path = tmp_path_factory.mktemp("heat") / "heat.safetensors"
    write_model(path, "transformer", config, network.state_dict())
    model = load_model(str(path))
    return model, load_vae(str(tiny_files["autoencoder"]), model.model.diffusion_model.config)


def test_a_model_with_other_domains(heat):
    model, vae = heat
    more, = JodiDomain.execute(" heat ", {"domain": "generate"}).result
    made = sample(model, switched(vae, image=("condition", {"picture": PICTURE}), depth="generate", more=more), 1)
    assert made[joint.ROLES].active_names == ("image", "heat", "depth")
    pictures = [JodiDomainDecode.execute(made, vae, name).result[0] for name in ("heat", "depth", "image")]
    assert torch.equal(JodiLabelDecode.execute(made, vae).result[3], pictures[1]) and pictures[0].std() > 0
    with pytest.raises(ValueError, match="no domain 'cold'; it has image, heat, depth"):
        JodiDomainDecode.execute(made, vae, "cold")
    more, = JodiDomain.execute("heat", {"domain": "condition", "domain_picture": PICTURE}).result
    latent = switched(vae, image="generate", more=more)[2]
    assert latent["samples"][:, :, 1].any()
    with pytest.raises(ValueError, match="no domain normal; it has image, heat, depth"):
        switched(vae, image="generate", normal=("condition", {"picture": PICTURE}))
    assert switched(vae, image="generate", normal="generate")[2][joint.ROLES].active_names == ("image",)
    with pytest.raises(ValueError, match="not 'heat'"):
        JodiDomain.execute("heat", {"domain": "generate"}, more)
