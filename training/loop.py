"""Train a joint transformer on cached latents: read top to bottom.

A step takes one batch per task (joint generation, controllable generation, perception), each with one role pattern,
so that ignored domains never enter the computation. Several CPU processes each take own steps and average their
weights now and then: on a busy machine that keeps every core at work, where averaging gradients would not.
"""

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiTransformer
from jodi_core.role_sampling import draw_roles
from jodi_core.weights import load_autoencoder, load_text, write_model

from .config import TrainConfig
from .data import SceneOrder, build_cache
from .losses import draw_times, flow_loss
from .optim import make_optimizers, schedule
from .start import attend_own_place
from .state import Ema, checkpoints, resume, save

TASK_LETTERS = {"joint": "j", "control": "c", "perceive": "p"}


def new_model(config: TrainConfig, text) -> JodiTransformer:
    """A transformer with the configured start; its stored caption is the encoder's empty prompt."""
    torch.manual_seed(config.seed)
    model = JodiTransformer(config.model)
    model.init_weights()
    with torch.no_grad():
        for block in model.blocks:
            block.scale_shift_table.weight[[2, 5]] += config.init.gate
        model.y_embedder.y_embedding.copy_(text.encode_negative([""], rows=model.config.model_max_length)[0])
    return model


def domain_weights(order: SceneOrder) -> torch.Tensor:
    """(L,) loss weights, the inverse standard deviation of each domain's latents, mean 1: quiet domains count too."""
    deviation_D = order.sets[0].latents[:1024].float().std(dim=(0, 2, 3, 4))
    return (1 / deviation_D) / (1 / deviation_D).mean()


def task_loss(model, batch, task: str, config: TrainConfig, weight_D, generator) -> torch.Tensor:
    """Loss of one batch: mean over the generated domains, times sqrt(their share of all domains)."""
    count = len(batch.latents_BCDHW)
    pattern = draw_roles([True] * (model.config.num_domains - 1), TASK_LETTERS[task], generator)
    roles = JointRoles(model.config.domains, pattern)
    sigma, model_time = draw_times(count, model.config.flow_shift, generator, config.time_mean, config.time_std)
    dropped = torch.rand(count, generator=generator) < model.config.class_dropout_prob
    x0 = roles.keep_active(batch.latents_BCDHW)
    noise = torch.randn(x0.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):   # few keys: faster than the fused one
        per_domain = flow_loss(model, x0, batch.text_BMC, batch.mask_BM, roles, sigma_B=sigma, time_B=model_time,
                               noise_BCDHW=noise, null_rows_B=dropped, weight_D=weight_D)
    return per_domain.mean() * (len(per_domain) / model.config.num_domains) ** 0.5


@torch.no_grad()
def condition_probe(model, batch, level: float = 0.9) -> dict[str, list[float]]:
    """Perception loss per label with the true and with another scene's picture: equal means the picture is unused."""
    roles = JointRoles.of(model.config.domains, generate=model.config.domains[1:], condition=model.config.domains[:1])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.latents_BCDHW.shape, generator=generator)
    result = {}
    for name, order in (("true", slice(None)), ("shuffled", torch.arange(len(noise)).roll(1))):
        x0 = batch.latents_BCDHW.clone()
        x0[:, :, 0] = x0[order, :, 0]
        count = len(x0)
        losses = flow_loss(model, x0, None, None, roles, sigma_B=torch.full((count,), level),
                           time_B=torch.full((count,), level * 1000), noise_BCDHW=noise, null_rows_B=None,
                           weight_D=torch.ones(model.config.num_domains))
        result[name] = [round(value, 4) for value in losses.tolist()]
    return result


@torch.no_grad()
def average_weights(model, world: int) -> None:
    flat = torch.nn.utils.parameters_to_vector(model.parameters())
    dist.all_reduce(flat)
    torch.nn.utils.vector_to_parameters(flat / world, model.parameters())


def write_log(path: Path, **values) -> None:
    line = json.dumps(values)
    print(line, flush=True)
    with open(path, "a") as log:
        log.write(line + "\n")


def train(config: TrainConfig, rank: int = 0, world: int = 1) -> None:
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    order = SceneOrder(config.data, config.seed, rank, world)
    weight_D = domain_weights(order)
    probe_batch = order.sets[0].batch(torch.arange(32), 0)
    model = new_model(config, load_text(config.data.text_encoder, dtype=torch.float32)).train()
    if config.init.own_place:
        attend_own_place(model, probe_batch.latents_BCDHW)
    ema = Ema(model, config.optim.ema)
    optimizers = make_optimizers(model, config.optim)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]    # before an older run's are loaded
    first = resume(output, model, ema, optimizers)
    started, sums = time.time(), dict.fromkeys(config.tasks, 0.0)
    for step in range(first, config.steps):
        factor = schedule(step, config.steps, config.optim.warmup, config.optim.decay)
        generator = torch.Generator().manual_seed((config.seed * world + rank) * 1_000_003 + step)
        for number, task in enumerate(config.tasks):
            batch = order.batch(step * len(config.tasks) + number, config.batch)
            loss = task_loss(model, batch, task, config, weight_D, generator)
            loss.backward()
            sums[task] += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        if not norm.isfinite():
            raise FloatingPointError(f"step {step}: the gradient is {norm.item()}; the checkpoints before it are good")
        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        saving = done % config.save_every == 0 or done == config.steps
        if world > 1 and (saving or done % config.average_every == 0):
            average_weights(model, world)
        if rank:
            continue
        ema.update(model, step)
        if done % config.log_every == 0:
            speed = (done - first) * len(config.tasks) * config.batch * world / (time.time() - started)
            write_log(output / "log.jsonl", step=done, norm=round(norm.item(), 3), rate=round(factor, 3),
                      samples_per_s=round(speed, 1),
                      **{task: round(total / config.log_every, 4) for task, total in sums.items()})
            sums = dict.fromkeys(config.tasks, 0.0)
        if done % config.probe_every == 0:
            write_log(output / "log.jsonl", step=done, probe=condition_probe(model, probe_batch))
        if saving:
            save(output, done, model, ema, optimizers, config.keep)


def prepare_data(config: TrainConfig, part: int = 0, parts: int = 1) -> None:
    build_cache(config.data, config.model.domains, load_autoencoder(config.data.autoencoder, dtype=torch.float32),
                load_text(config.data.text_encoder, dtype=torch.float32), part, parts)


def export(config: TrainConfig, target: Path) -> None:
    """Write the averaged weights of the newest checkpoint as a transformer file in float16."""
    model = new_model(config, load_text(config.data.text_encoder, dtype=torch.float32))
    ema = Ema(model, config.optim.ema)
    step = resume(Path(config.output), model, ema, [])
    if not step:
        raise FileNotFoundError(f"no checkpoint in {config.output}")
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.copy_(ema.values[name])
    write_model(target, "transformer", model.config, {k: v.half() for k, v in model.state_dict().items()},
                overwrite=True)
    print(f"{target}: {checkpoints(Path(config.output))[-1].name}")
