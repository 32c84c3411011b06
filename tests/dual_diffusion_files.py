"""A Dual Diffusion model in the published folder layout, for tests: the recorded networks, random words."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "dual_diffusion"
RECORDED = json.loads((GOLDEN / "golden.json").read_text())
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
WORDS = ["a", "red", "blue", "house", "car", "lake", "beside", "Q:", "A:", "what", "colour", "is", "the", "?", "yes"]


def write_tokenizer(folder: Path, size: int, **settings) -> None:
    import tokenizers
    folder.mkdir(parents=True)
    vocabulary = ["<pad>", "</s>", "<unk>", *WORDS]
    vocabulary += [f"w{i}" for i in range(size - len(vocabulary) - 1)] + ["<extra_id_0>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)},
                                                                 unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<extra_id_0>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_folder(root: Path) -> None:
    """Everything but an autoencoder; the T5 is in two parts."""
    golden = load_file(GOLDEN / "golden.safetensors")
    for name in ("transformer", "text_encoder"):
        (root / name).mkdir(parents=True)
    (root / "transformer" / "config.json").write_text(json.dumps(
        RECORDED["transformer_config"] | {"_class_name": "SD3JointModelFlexible"}))
    save_file(part_of(golden, "transformer."), root / TRANSFORMER)
    t5 = part_of(golden, "text_encoder.")
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(t5)}
    for part in set(parts.values()):
        save_file({name: t5[name] for name, where in parts.items() if where == part}, root / "text_encoder" / part)
    (root / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    write_tokenizer(root / "tokenizer", RECORDED["transformer_config"]["vocab_size"], model_max_length=24)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.0}')


def write_whole_folder(root: Path) -> None:
    """With an autoencoder that ComfyUI knows."""
    write_folder(root)
    write_picture_vae(root / "vae" / "diffusion_pytorch_model.safetensors")


def part_of(golden: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def write_picture_vae(file: Path) -> None:
    """Random weights of the smallest autoencoder with 16 latent channels that ComfyUI knows (TAESD)."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, **settings) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)

    def block() -> nn.Module:
        made = nn.Module()
        made.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))
        return made

    def scaled(change: nn.Module) -> list[nn.Module]:
        return [change, block(), block(), block()]
    torch.manual_seed(0)
    halves = nn.Module()
    halves.taesd_encoder = nn.Sequential(
        conv(3, 64), block(), *(part for _ in range(3) for part in scaled(conv(64, 64, stride=2, bias=False))),
        conv(64, 16))
    halves.taesd_decoder = nn.Sequential(
        nn.Identity(), conv(16, 64), nn.ReLU(),
        *(part for _ in range(3) for part in (block(), block(), block(), nn.Upsample(), conv(64, 64, bias=False))),
        block(), conv(64, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves.state_dict(), file)
