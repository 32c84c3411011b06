"""A model card for what a run made, and the upload of both to the hub."""

import json
from pathlib import Path

from . import log
from .config import TrainConfig
from .config_file import to_dict
from .encoders import SANA

BASES = {"jodi": "VIPL-GENUN/Jodi", "sana": "/".join(SANA.removeprefix("hf://").split("/")[:2])}
WHAT = {"full": "All weights were trained.", "lora": "A LoRA.", "dora": "A DoRA.",
        "domains": "Only the layers of new domains were trained.",
        "map_branch": "The U-Net of the map and the exchange were trained.",
        "mask_embedding": "All weights and the row of the mask token were trained.",
        "text_encoder": "All weights and the text encoder were trained."}
USE = {"lora": "Save `{name}` in ComfyUI's `models/loras` and load it with **Load LoRA (Model)** after **Jodi "
               "Loader**.",
       "model": "Save `{name}` in ComfyUI's `models/diffusion_models` and choose it in **{loader}**."}
LOADERS = {"jodi": "Jodi Loader", "jointnet": "JointNet Loader", "dual_diffusion": "Load Dual Diffusion"}


def card(config: TrainConfig, name: str, step: int, merged: bool) -> str:
    """Markdown of a README.md with the hub's front matter. name: of the exported file."""
    adapter = config.mode in ("lora", "dora") and not merged
    base = BASES.get(config.start.kind) if config.start.weights == "published" else None
    matter = ["---", *([f"base_model: {base}"] if base else []), "pipeline_tag: text-to-image",
              "tags: [" + ", ".join([config.family, "comfyui", *(["lora"] if adapter else [])]) + "]", "---"]
    start = {"nothing": "nothing", "sana": f"Sana (`{SANA}`)"}.get(config.start.kind, "Jodi" if base else
                                                                    f"`{Path(config.start.weights).name}`")
    lines = [*matter, f"# {Path(name).stem}", "",
             f"{WHAT[config.mode]} Trained from {start} for {step} steps of {config.batch} samples, tasks: "
             f"{', '.join(config.tasks)}.", ""]
    if config.start.extend:
        lines += ["New domains: " + ", ".join(f"{new} (started as {old})" for new, old in config.start.extend.items()),
                  ""]
    lines += [USE["lora" if adapter else "model"].format(name=name, loader=LOADERS[config.family]), ""]
    lines += evaluation(config, step)
    lines += ["## Configuration", "", "```json", json.dumps(shareable(config), indent=1), "```", ""]
    return "\n".join(lines)


def evaluation(config: TrainConfig, step: int) -> list[str]:
    """A table of the newest evaluation up to a step; nothing if there was none."""
    told = Path(config.output) / log.NAME
    found = [line for line in (log.read(told) if told.exists() else ())
             if line["step"] <= step and any(name.startswith("eval/") for name in line)]
    if not found:
        return []
    return [f"## Evaluation at step {found[-1]['step']}", "", "| | |", "|---|---|",
            *(f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in found[-1].items()
              if name.startswith("eval/")), ""]


def shareable(config: TrainConfig) -> dict:
    """The configuration without folders of the machine it ran on."""
    def clean(value):
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(part) for part in value]
        return Path(value).name if isinstance(value, str) and "/" in value and "://" not in value else value
    return clean(to_dict(config))


def upload(repo: str, file: Path, text: str, *, private: bool) -> str:
    """Put a file and its card into a repository of the hub, made if it is not there; the address of the commit.

    The login is that of `hf auth login` or HF_TOKEN. ValueError if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        parts = [CommitOperationAdd("README.md", text.encode()), CommitOperationAdd(file.name, str(file))]
        return api.create_commit(repo, parts, commit_message=f"Upload {file.name}").commit_url
    except Exception as error:    # errors of the hub's transport libraries have no common base
        raise ValueError(f"{file} is written, but was not uploaded to {repo}: {error}. Log in with `hf auth login` and "
                         "run the command again") from error
