"""The graph that a user would build, as a prompt in the server's format, for the benchmarks on a running ComfyUI."""

from dataclasses import dataclass

from jodi_core.domains import JODI_DOMAINS

GUIDANCE = 4.5


@dataclass(frozen=True)
class Task:
    """given: pictures of these domains; steps as published."""

    given: tuple[str, ...]
    generated: tuple[str, ...]
    steps: int


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(file: str, weight_dtype: str = "default") -> dict:
    """Jodi Loader of a bundle, or of files of that name; `sampling` takes text and VAE from one called load default."""
    return node("JodiLoader", model_name=file, text_encoder_name=file, vae_name=file, weight_dtype=weight_dtype)


def sampling(model: list, task: Task, text: str, seed: int, files: dict[str, str], *, steps: int, **switch) -> dict:
    """Text to samples. files: domain -> its picture on the server. switch: other inputs of the role switch."""
    roles = {name: "generate" if name in task.generated else "ignore" for name in JODI_DOMAINS}
    prompt = {}
    for name in task.given:
        prompt[f"given {name}"] = node("LoadImage", image=files[name])
        roles |= {name: "condition", f"{name}.{name}_picture": [f"given {name}", 0]}
    roles |= {"size": "automatic", "batch_size": 1} | switch
    return prompt | {
        "text": node("CLIPTextEncode", clip=["load default", 1], text=text),
        "roles": node("JodiRoleSwitch", vae=["load default", 2], positive=["text", 0], **roles),
        "sample": node("JodiJointSampler", model=model, positive=["roles", 0], negative=["roles", 1],
                       latent_image=["roles", 2], seed=seed, steps=steps,
                       cfg=1.0 if "image" in task.given else GUIDANCE),
        "keep": node("SaveLatent", samples=["sample", 0], filename_prefix="benchmark/latent")}


def decoding(task: Task) -> dict:
    """Samples to pictures, one node per generated domain, called like it."""
    shown = {name: node("PreviewImage", images=["decode", JODI_DOMAINS.index(name)]) for name in task.generated}
    return {"decode": node("JodiLabelDecode", samples=["sample", 0], vae=["load default", 2])} | shown
