"""Server-format prompts of our nodes, and the pictures that come back."""

import io

import numpy as np
from PIL import Image

from jodi_core.domains import JODI_DOMAINS

TINY = "tiny (bundled)"
LABELS = JODI_DOMAINS[1:]


def link(node: str, slot: int = 0) -> list:
    return [node, slot]


def joint_prompt(roles: dict, *, text="a red house on the left, on green grass", seed=1, steps=2, cfg=3.0, batch=1,
                 size=None, model=TINY, text_encoder=TINY, vae=TINY) -> dict:
    """Loader, role switch, sampler, decoder, and a picture saved per generated domain (node id = its name).

    roles: domain -> "generate", or the node id of the picture that is given, or None for a condition without one;
    domains that are not in it are ignored.  `add_picture` makes picture nodes.  size: (width, height).
    """
    switch = {"vae": link("load", 2), "positive": link("text"), "size": "automatic", "batch_size": batch}
    if size:
        switch |= {"size": "custom", "size.width": size[0], "size.height": size[1]}
    for name in JODI_DOMAINS:
        role = roles.get(name, "ignore")
        switch[name] = role if role in ("generate", "ignore") else "condition"
        if switch[name] == "condition" and role:
            switch[f"{name}.{name}_picture"] = link(role)
    prompt = {
        "load": node("JodiLoader", model_name=model, text_encoder_name=text_encoder, vae_name=vae,
                     weight_dtype="default"),
        "text": node("CLIPTextEncode", clip=link("load", 1), text=text),
        "roles": node("JodiRoleSwitch", **switch),
        "sample": node("JodiJointSampler", model=link("load"), positive=link("roles"), negative=link("roles", 1),
                       latent_image=link("roles", 2), seed=seed, steps=steps, cfg=cfg),
        "decode": node("JodiLabelDecode", samples=link("sample"), vae=link("load", 2)),
    }
    for slot, name in enumerate(JODI_DOMAINS):
        if roles.get(name) == "generate":
            prompt[name] = node("SaveImage", images=link("decode", slot), filename_prefix=f"test_{name}")
    return prompt


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def add_picture(server, prompt: dict, name: str, picture: Image.Image) -> None:
    """Put a picture into the server's input folder and a LoadImage node, called `name`, into the prompt."""
    folder = server.base / "input"
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"{name}.png")
    prompt[name] = node("LoadImage", image=f"{name}.png")


def run(server, prompt: dict) -> dict[str, np.ndarray]:
    """Run a prompt: node id -> its saved pictures, float (B, H, W, 3) in [0, 1]."""
    saved = server.pictures(server.run(prompt))
    return {name: np.stack([as_array(png) for png in files]) for name, files in saved.items()}


def as_array(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.float32) / 255
