"""The toy world's autoencoder: DC-AE layout, its encoder a principal-component transform, its decoder trained.

The encoder is linear and never trained: 4x4 cells lose a few of their 48 numbers, 16x16 patches then keep
`latent_channels` components. The decoder starts as the best linear reconstruction, written into the same layout
(shortcuts carry it; residual blocks start at zero beside it), and is trained from there.

`python -m training.autoencoder --output FILE --scenes 1500 --minutes 15`
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from jodi_core.domains import JODI_DOMAINS
from jodi_core.files import atomic_target
from jodi_core.models.dcae import DCAE, RESIDUAL, DCAEConfig, ResidualBlock
from jodi_core.weights import load_autoencoder, write_model
from training.world import render, sample_scene

# Widths that grow fourfold per stage make the shortcuts exact rearrangements; see `fit_pca` for what must hold.
TINY_CONFIG = DCAEConfig(widths=(8, 32, 32, 128, 512), encoder_depths=(0, 0, 0, 0, 0),
                         decoder_depths=(0, 2, 2, 1, 0), kinds=(RESIDUAL,) * 5)
_LOUD = 32.0  # a constant channel beside the colours keeps the decoder's last norm almost constant
_LIFT = 1.5  # keeps the colours positive before the last ReLU
_RIDGE = 1e-6
_LINEAR_SHARE = 0.1  # learning rate of the linear path, as a share
HELD_OUT = 10_000_000  # first seed of the scenes that are never trained on
FIT_PICTURES = 1536  # pictures for the principal components
_CHUNK = 16  # pictures worked on at once
_UP_PICTURES = 128  # pictures for the least squares of the fine layers


def to_signed(pictures_u8: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pictures_u8.float() / 127.5 - 1


def principal_axes(rows_ND: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (D,), the `keep` strongest axes (keep, D) and the standard deviations along them (keep,)."""
    mean_D = rows_ND.mean(0)
    centred = (rows_ND - mean_D).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows_ND))
    order = values.argsort(descending=True)[:keep]
    return mean_D, vectors[:, order].T.float(), values[order].clamp_min(0).sqrt().float()


def fit_pca(pictures_BCHW: torch.Tensor, config: DCAEConfig = TINY_CONFIG, exponent: float = 0.4,
            variance: float = 1.0) -> DCAE:
    """An autoencoder whose two directions are linear, fitted to uint8 pictures (B, 3, H, W) of all domains alike.

    Args:
        config: widths (a, 4a, b, 4b, 16b) with a >= 4 and b <= 48, no encoder blocks.
        exponent: component k of the latent is divided by (its standard deviation) ** exponent.
        variance: mean variance of the latents times `config.scaling_factor` over the pictures.
    """
    fine, half, cell, *coarse = config.widths
    if coarse != [4 * cell, 16 * cell] or half != 4 * fine or fine < 4 or cell > 48 or any(config.encoder_depths):
        raise ValueError(f"a principal-component start needs widths (a, 4a, b, 4b, 16b) with a >= 4 and b <= 48 and "
                         f"no encoder blocks, not {config.widths} with {config.encoder_depths}")
    model = DCAE(config).eval().requires_grad_(False)
    _start_encoder(model, pictures_BCHW, exponent, variance)
    _start_decoder(model, pictures_BCHW)
    model.decoder.requires_grad_(True)
    return model


def _start_encoder(model, pictures_BCHW, exponent, variance):
    encoder, config = model.encoder, model.config
    pictures = to_signed(pictures_BCHW)
    _zero(encoder)
    for colour in range(config.in_channels):
        encoder.project_in.conv.weight[colour, colour, 1, 1] = 1
    cells = F.pixel_unshuffle(F.pixel_unshuffle(pictures, 2), 2)
    _, axes_KD, _ = principal_axes(_rows(cells)[::7], config.widths[2])
    conv = encoder.stages[1].op_list[0].main["conv"]
    wanted = torch.zeros(config.widths[2], config.widths[1], 2, 2)
    wanted[:, :cells.shape[1] // 4] = axes_KD.unflatten(1, (-1, 2, 2))
    conv.weight[:, :, 1:, 1:] = wanted - _averages(config.widths[2], config.widths[1])
    patches = torch.cat([encoder.stages(encoder.project_in(part)) for part in pictures.split(_CHUNK)])
    mean_D, axes_KD, deviation_K = principal_axes(_rows(patches), config.latent_channels)
    axes_KD = axes_KD / deviation_K[:, None] ** exponent
    spread = ((_rows(patches) - mean_D) @ axes_KD.T).var(0).mean().sqrt()
    axes_KD = axes_KD * (variance ** 0.5 / config.scaling_factor / spread)
    _set_centre(encoder.project_out.main["op_list"][0].conv, axes_KD, -axes_KD @ mean_D,
                _averages(config.latent_channels, config.widths[-1], 1)[:, :, 0, 0])


def _start_decoder(model, pictures_BCHW):
    """Least squares layer by layer, each on what the layers before it produce; coarse to fine."""
    encoder, decoder, config = model.encoder, model.decoder, model.config
    pictures = to_signed(pictures_BCHW)
    features = [encoder.stages(encoder.project_in(part)) for part in pictures.split(_CHUNK)]
    latents = [encoder.project_out(part) for part in features]
    for stage in decoder.stages:
        for block in stage.op_list:
            if not hasattr(block, "repeats"):
                nn.init.zeros_(block.main.conv2.norm.weight)
            else:
                _zero(block)
    _fit(decoder.project_in, decoder.project_in.main["conv"], latents, features)
    pictures = pictures[:_UP_PICTURES]
    x = [decoder.project_in(part) for part in latents[:-(-len(pictures) // _CHUNK)]]
    x = [decoder.stages[2](decoder.stages[3](part)) for part in x]
    halves = F.pad(F.pixel_unshuffle(pictures, 2), (0, 0, 0, 0, 0, config.widths[1] - 4 * config.in_channels))
    x = _fit_up(decoder.stages[1], x, halves.split(_CHUNK))
    wholes = F.pad(pictures, (0, 0, 0, 0, 0, config.widths[0] - config.in_channels))
    _fit_up(decoder.stages[0], x, wholes.split(_CHUNK))
    _open_end(decoder, config)


def _fit_up(stage, inputs, targets):
    block = stage.op_list[0]
    _fit(block, block.main["conv"].conv, inputs, targets, 2)
    return [stage(part) for part in inputs]


def _open_end(decoder, config):
    """Last norm, ReLU and convolution as the identity on the colours."""
    decoder.stages[0].op_list[0].main["conv"].conv.bias[config.in_channels] = _LOUD
    norm, _, last = decoder.project_out.op_list
    colours = slice(0, config.in_channels)
    _zero(norm)
    norm.weight[colours] = _LOUD / config.widths[0] ** 0.5
    norm.bias[colours] = _LIFT
    _zero(last)
    for colour in range(config.in_channels):
        last.conv.weight[colour, colour, 1, 1] = 1
    last.conv.bias[:] = -_LIFT


def _rows(x_BCHW):
    """(B, C, H, W) -> (B * H * W, C)."""
    return x_BCHW.movedim(1, -1).flatten(0, 2)


def _zero(module):
    for value in module.parameters():
        value.data.zero_()


def _averages(c_out, c_in, side=2):
    """Kernel (c_out, c_in, side, side) of the layout's averaging shortcut."""
    return torch.block_diag(*[torch.full((1, side * side * c_in // c_out), c_out / (side * side * c_in))] * c_out
                            ).unflatten(1, (c_in, side, side))


def _set_centre(conv, matrix_OI, bias_O, shortcut_OI):
    _zero(conv)
    conv.weight[:, :, 1, 1] = matrix_OI - shortcut_OI
    conv.bias[:] = bias_O


def _fit(block, conv, inputs, targets, enlarge=1):
    """Set `conv` so that `block` (convolution of the enlarged input + shortcut) comes closest to the targets."""
    _zero(conv)
    size = 9 * conv.in_channels + 1
    square, product = torch.zeros(size, size).double(), torch.zeros(size, conv.out_channels).double()
    for x_BCHW, target_BCHW in zip(inputs, targets):
        missing = _rows(target_BCHW - block(x_BCHW))
        seen = F.unfold(F.interpolate(x_BCHW, scale_factor=enlarge, mode="nearest"), 3, padding=1)
        seen = F.pad(seen.transpose(1, 2).flatten(0, 1), (0, 1), value=1.0)
        square += seen.T @ seen
        product += seen.T @ missing
    square += _RIDGE * square.diagonal().mean() * torch.eye(size)
    solved = torch.linalg.solve(square, product).float()
    conv.weight[:] = solved[:-1].T.unflatten(1, (-1, 3, 3))
    conv.bias[:] = solved[-1]


def picture_loss(decoded_BCHW: torch.Tensor, wanted_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the pictures and of their steps to the right and down."""
    difference = decoded_BCHW - wanted_BCHW
    steps = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
    return difference.abs().mean() + steps


def train_decoder(model: DCAE, pictures: torch.Tensor, minutes: float, *, batch: int = 8, rate: float = 4e-3,
                  noise: float = 0.05, checkpoint: Path | None = None, log=partial(print, flush=True)) -> int:
    """Train the decoder in place for `minutes` of processor time; returns the number of steps of all runs together.

    Args:
        pictures: (N, 3, H, W) uint8, drawn at random.
        noise: standard deviation of noise on the latents, in units of the scaled latents.
        checkpoint: file that is read if it exists and rewritten every minute; time spent before counts.
    """
    optimizer = torch.optim.AdamW(_groups(model.decoder), rate, (0.9, 0.98), weight_decay=0.0)
    spent, step, saved = 0.0, 0, 0.0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        spent = saved = state["spent"]
        step = state["step"]
    model.to(memory_format=torch.channels_last)  # a fifth faster
    generator = torch.Generator().manual_seed(step)
    limit = 60 * minutes
    while spent < limit:
        start = time.process_time()
        now = rate * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 + math.cos(math.pi * spent / limit)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = now * group["share"]
        chosen = pictures[torch.randint(len(pictures), (batch,), generator=generator)]
        loss = _decoder_step(model, optimizer, to_signed(chosen), noise)
        step += 1
        spent += time.process_time() - start
        if checkpoint and (spent - saved > 60 or spent >= limit):
            saved = spent
            _save_checkpoint(checkpoint, {"decoder": model.decoder.state_dict(), "step": step, "spent": spent,
                                          "optimizer": optimizer.state_dict()})
        if step % 100 == 0:
            log(f"step {step}, {spent:.0f} s, loss {loss:.4f}")
    return step


def _groups(decoder):
    """Residual blocks learn from nothing; the layers around them start as a least-squares optimum."""
    inside = {id(value) for block in decoder.modules() if isinstance(block, ResidualBlock)
              for value in block.parameters()}
    values = list(decoder.parameters())
    return [{"params": [value for value in values if id(value) in inside], "share": 1.0},
            {"params": [value for value in values if id(value) not in inside], "share": _LINEAR_SHARE}]


def _decoder_step(model, optimizer, pictures_BCHW, noise):
    with torch.no_grad():
        latents = model.encode(pictures_BCHW)
        latents += torch.randn_like(latents) * (noise / model.config.scaling_factor)
    loss = picture_loss(model.decode(latents), pictures_BCHW)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _save_checkpoint(path, state):
    with atomic_target(path, overwrite=True) as partial:
        torch.save(state, partial)


@torch.inference_mode()
def measure(model: DCAE, pictures: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Domain -> `psnr` in dB of the decoded 0..1 pictures, and `variance` of the scaled latents."""
    results = {}
    for name, pictures_u8 in pictures.items():
        wanted = to_signed(pictures_u8)
        latents = torch.cat([model.encode(part) for part in wanted.split(_CHUNK)])
        decoded = torch.cat([model.decode(part) for part in latents.split(_CHUNK)]).clamp(-1, 1)
        error = F.mse_loss(decoded, wanted).item() / 4
        results[name] = {"psnr": -10 * math.log10(error),
                         "variance": (latents * model.config.scaling_factor).var((0, 2, 3)).mean().item()}
    return results


def report(model: DCAE, pictures: dict[str, torch.Tensor]) -> str:
    """`measure` as one line per domain."""
    return "\n".join(f"{name:13} {values['psnr']:5.1f} dB, latent variance {values['variance']:.3f}"
                     for name, values in measure(model, pictures).items())


def render_scenes(first: int, count: int, size: int = 128) -> dict[str, torch.Tensor]:
    """Domain -> (count, 3, size, size) uint8 of the scenes with seeds first, first + 1, ..."""
    parts = [render([sample_scene(seed) for seed in range(start, min(start + 32, first + count))], size, size)
             for start in range(first, first + count, 32)]
    return {name: torch.cat([part[name] for part in parts]) for name in JODI_DOMAINS}


def mixture(pictures: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    """All domains' pictures in one shuffled tensor."""
    joined = torch.cat(list(pictures.values()))
    return joined[torch.randperm(len(joined), generator=torch.Generator().manual_seed(seed))]


def save(model: DCAE, path: Path) -> None:
    """One loadable file, in float16."""
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    write_model(path, "autoencoder", model.config, tensors, overwrite=True)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.autoencoder", description="Make the toy autoencoder.")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--scenes", type=int, default=1500, help="training scenes, eight pictures each")
    parser.add_argument("--minutes", type=float, default=15, help="processor time for the decoder; 0: linear")
    parser.add_argument("--exponent", type=float, default=0.4, help="how far the latent's components are equalised")
    parser.add_argument("--start", type=Path, help="autoencoder to train on, instead of a fresh linear one")
    options = parser.parse_args(arguments)
    pictures, held_out = mixture(render_scenes(0, options.scenes)), render_scenes(HELD_OUT, 32)
    if options.start:
        model = load_autoencoder(options.start, dtype=torch.float32)
        model.decoder.requires_grad_(True)
    else:
        model = fit_pca(pictures[:FIT_PICTURES], exponent=options.exponent)
    print(report(model, held_out))
    train_decoder(model, pictures, options.minutes, checkpoint=options.output.with_suffix(".checkpoint"))
    save(model, options.output)
    print(report(model, held_out))


if __name__ == "__main__":
    main()
