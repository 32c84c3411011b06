"""Prompts that make sense: all nodes of the pack (but JointNet LoRA on Depth, which needs a LoRA) are in one of them,
and each runs in a moment on the tiny models."""

from jodi_prompts import LABELS, TINY, joint_prompt, link, node


def chains() -> dict[str, dict]:
    """Name -> a prompt that runs, of all families."""
    return jodi_chains() | large_chains() | jointnet_chains() | dual_diffusion_chains()


def given() -> dict:
    """A picture and a mask over all of it."""
    return {"picture": node("EmptyImage", width=96, height=64, batch_size=1, color=0x80A0FF),
            "mask": node("SolidMask", value=1.0, width=96, height=64)}


def jodi_chains() -> dict[str, dict]:
    """All of its tasks, with the nodes around them."""
    picture = given()
    everything = joint_prompt(dict.fromkeys(("image", *LABELS), "generate"), steps=1)
    control = joint_prompt({"image": "generate", "depth": "picture", "edge": "picture"}, steps=1) | picture
    perceive = joint_prompt({"image": "picture", "depth": "generate", "segmentation": "generate"}, steps=1) | picture
    perceive["decode"]["inputs"]["size"] = "like the given picture"
    edit = joint_prompt({"image": "generate", "depth": "generate"}, steps=1) | picture
    edit["roles"]["inputs"] |= {"image": "edit", "image.image_picture": link("picture"),
                                "image.image_mask": link("mask"),
                                "depth": "condition for some steps", "depth.depth_picture": link("picture"),
                                "depth.depth_start": 0.0, "depth.depth_end": 0.5, "fit": "pad"}
    edit.pop("depth")
    custom = joint_prompt({"image": "generate", "normal": "generate"}, steps=1)
    custom |= {
        "tiles": node("JodiTiles", model=link("load"), tile=0, overlap=0.25), "sampler": node("JodiSampler"),
        "sigmas": node("JodiSigmas", model=link("load"), steps=1, denoise=1.0),
        "noise": node("JodiNoise", seed=1, kind="like the stock node"),
        "text": node("JodiTextEncode", clip=link("load", 1), text="a tree", negative_text="a car"),
        "guider": node("CFGGuider", model=link("tiles"), positive=link("roles"), negative=link("roles", 1), cfg=2.0),
        "sample": node("SamplerCustomAdvanced", noise=link("noise"), guider=link("guider"), sampler=link("sampler"),
                       sigmas=link("sigmas"), latent_image=link("roles", 2))}
    stock = joint_prompt({"image": "generate", "albedo": "picture"}, steps=1) | picture
    stock["sample"] = node("KSampler", model=link("load"), positive=link("roles"), negative=link("roles", 1),
                           latent_image=link("roles", 2), seed=1, steps=1, cfg=2.0, sampler_name="euler",
                           scheduler="simple", denoise=1.0)
    labels = perceive | {
        "convert": node("JodiLabelConvert", label=link("decode", 6), kind="segmentation",
                        **{"kind.class_name": "sky"}),
        "pose": node("JodiPoseKeypoints", openpose=link("picture")),
        "mesh": node("JodiDepthMesh", image=link("picture"), depth=link("decode", 3), field_of_view=50.0, near=1.0,
                     far=5.0, tear=0.1, resolution=16),
        "one": node("JodiDomainDecode", samples=link("sample"), vae=link("load", 2), name="depth"),
        "save_one": node("SaveImage", images=link("one"), filename_prefix="one"),
        "save_mask": node("MaskPreview", mask=link("convert", 1)), "save_mesh": node("SaveGLB", mesh=link("mesh"),
                                                                                       filename_prefix="mesh"),
        "show": node("PreviewAny", source=link("pose"))}
    more = joint_prompt({"image": "generate"}, steps=1) | {
        "domain": node("JodiDomain", name="depth", domain="generate")}
    more["roles"]["inputs"] |= {"more": link("domain")}
    return {"everything": everything, "control": control, "perceive": perceive, "edit": edit, "custom": custom,
            "stock": stock, "labels": labels, "more": more}


def large_chains() -> dict[str, dict]:
    """Larger than the model, of Jodi: enlarging, and a panorama around a picture."""
    larger = joint_prompt({"image": "generate", "depth": "generate"}, steps=1) | {
        "tiles": node("JodiTiles", model=link("load"), tile=0, overlap=0.25),
        "large": node("JodiUpsample", model=link("tiles"), vae=link("load", 2), positive=link("roles"),
                      negative=link("roles", 1), samples=link("sample"), what="the labels", scale=1.5, start=0.3,
                      tile=128),
        "again": node("JodiJointSampler", model=link("tiles"), positive=link("large"), negative=link("large", 1),
                      latent_image=link("large", 2), seed=1, steps=1, cfg=1.0, denoise=link("large", 3))}
    larger["decode"]["inputs"] |= {"samples": link("again"), "tile": 128}
    around = joint_prompt({"image": "generate"}, steps=1) | given() | {
        "canvas": node("JodiPanoramaCanvas", image=link("picture"), width=256),
        "tiles": node("JodiTiles", model=link("load"), tile=0, overlap=0.25, circular=True, full_view=0.5,
                      full_view_weight=5.0),
        "sampler": node("JodiSampler"), "jumps": node("JodiResampling", sampler=link("sampler"), times=2, jump=1),
        "sigmas": node("JodiSigmas", model=link("tiles"), steps=2, denoise=1.0),
        "sample": node("SamplerCustom", model=link("tiles"), add_noise=True, noise_seed=1, cfg=1.0,
                       positive=link("roles"), negative=link("roles", 1), sampler=link("jumps"),
                       sigmas=link("sigmas"), latent_image=link("roles", 2))}
    around["roles"]["inputs"] |= {"image": "edit", "image.image_picture": link("canvas"),
                                  "image.image_mask": link("canvas", 1), "size": "like the picture"}
    around["decode"]["inputs"]["circular"] = True
    return {"larger": larger, "around": around}


def jointnet_chains() -> dict[str, dict]:
    load = {"load": node("JodiJointNetLoader", model_name=TINY, text_encoder_name=TINY, vae_name=TINY,
                         weight_dtype="default")}
    both = joint_prompt({"image": "generate", "depth": "generate"}, steps=1, size=(256, 64)) | load | {
        "tiles": node("JodiTiles", model=link("load"), tile=64, overlap=0.5, circular=True),
        "mesh": node("JodiDepthMesh", image=link("decode"), depth=link("decode", 3), field_of_view=50.0, near=1.0,
                     far=5.0, tear=0.1, resolution=16, form="cylinder", span=360.0),
        "save_mesh": node("SaveGLB", mesh=link("mesh"), filename_prefix="mesh")}
    both["sample"]["inputs"]["model"] = link("tiles")
    depth = joint_prompt({"image": "picture", "depth": "generate"}, steps=1) | load | given()
    edit = joint_prompt({"image": "generate", "depth": "picture"}, steps=1) | load | given()
    edit["roles"]["inputs"] |= {"image": "edit", "image.image_picture": link("picture"),
                                "image.image_mask": link("mask")}
    return {"jointnet both": both, "jointnet depth": depth, "jointnet edit": edit}


def dual_diffusion_chains() -> dict[str, dict]:
    load = {"load": node("JodiDualDiffusionLoader", model_name=TINY, text_encoder_name="in the model folder",
                         vae_name="in the model folder", mask_embedding="in the text encoder")}
    picture = load | {
        "text": node("JodiDualDiffusionTextEncode", clip=link("load", 1), text="a red house", length=0,
                     padding="as trained"),
        "empty": node("EmptySD3LatentImage", width=96, height=64, batch_size=1),
        "sample": node("KSampler", model=link("load"), positive=link("text"), negative=link("text"),
                       latent_image=link("empty"), seed=1, steps=1, cfg=2.0, sampler_name="euler",
                       scheduler="normal", denoise=1.0),
        "decode": node("VAEDecode", samples=link("sample"), vae=link("load", 2)),
        "save": node("SaveImage", images=link("decode"), filename_prefix="picture")}
    parts = {"model": link("load"), "clip": link("load", 1), "vae": link("load", 2), "image": link("picture"),
             "length": 0, "crop": "pad", "resolution": 64}
    drawn = parts | {"seed": 1, "steps": 1, "options": link("options")}
    texts = load | given() | {
        "options": node("JodiTextOptions", temperature=1.0, top_k=5, top_p=0.9, confident=True, stop_at_end=True,
                        min_length=2, samples=2),
        "caption": node("JodiCaptionImage", **drawn, prompt=""),
        "ask": node("JodiAskImage", **drawn, question="What colour is the house?", style="short", keep_end=False),
        "fill": node("JodiFillText", **drawn, text="a {1} house"),
        "score": node("JodiScoreText", **parts, text="a red house")}
    texts |= {f"show {name}": node("PreviewAny", source=link(name)) for name in ("caption", "ask", "fill", "score")}
    return {"dual diffusion picture": picture, "dual diffusion texts": texts}
