"""Recordings of Dual Diffusion, as tests/golden/dual_diffusion has them: `golden.*` and `tokenization.json`."""

import re
from collections.abc import Iterator
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from .conformance_cases import Recording, Row, compare, equal
from .dual_diffusion.config import DualDiffusionConfig
from .dual_diffusion.losses import DROPOUT, blank_places, noised, picture_loss, picture_times, text_loss, text_times
from .dual_diffusion.network import DualDiffusionTransformer
from .dual_diffusion.picture_sampling import noise_levels, sample_picture
from .dual_diffusion.pictures import shard_square, tuning_square
from .dual_diffusion.t5 import T5States
from .dual_diffusion.text_sampling import TextOptions, TextSampler, log_probabilities, sample_text
from .dual_diffusion.words import ANSWER_STYLES, END, Words
from .pictures import fit_for_training

NETWORK = 1e-5
GRADIENTS = 1e-4
LATENTS = 2e-4      # after guided sampling
PIXELS = 2 / 255    # libraries that resample differ by a level
LATENT_SHIFT, LATENT_SCALE = 0.0609, 1.5305    # of the autoencoder of Stable Diffusion 3
T5_WORDS = 32100


class Case:
    """A recording's values and tensors, and the two networks whose weights are among them."""

    def __init__(self, recording: Recording):
        self.title, self.values, self.tensors = recording.name, recording.values(), recording.tensors()
        self.cases, self.device = self.values["cases"], recording.device

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def weights(self, prefix: str) -> dict[str, Tensor]:
        return {name: tensor.float() for name, tensor in self.part(prefix).items()}

    @cached_property
    def network(self) -> DualDiffusionTransformer:
        network = DualDiffusionTransformer(DualDiffusionConfig.from_dict(self.values["transformer_config"]))
        network.load_state_dict(self.weights("transformer."), strict=True)
        return network.to(self.device).eval()

    @cached_property
    def t5(self) -> T5States:
        return T5States.from_state_dict(self.weights("text_encoder."))

    def text_network(self, z_BCHW: Tensor):
        """The text sampler's network for given pictures."""
        seen = self.network.look(z_BCHW)
        return lambda rows, ids_RL, places_RL: self.network.text_logits(seen.rows(rows), self.t5(ids_RL), places_RL)


def golden(recording: Recording) -> Iterator[Row]:
    case = Case(recording)
    yield from forward(case)
    if "t5.output" in case.tensors:
        yield compare(f"{case.title} T5", case.t5(case.tensors["t5.input_ids"].long()), case.tensors["t5.output"],
                      NETWORK)
    for name, run in case.cases.get("text", {}).items():
        yield from text_run(case, name, run)
    if "text.finalize.x" in case.tensors:
        yield closing(case)
    if "image" in case.cases:
        yield from picture_run(case)
    if "train" in case.cases:
        yield from text_training(case)
        yield from picture_training(case)
        yield from gradients(case)
    yield from preprocessing(case)
    if "vae.latent_raw" in case.tensors:
        scaled = (case.tensors["vae.latent_raw"] - LATENT_SHIFT) * LATENT_SCALE
        yield compare(f"{case.title} scaled latents", scaled, case.tensors["vae.latent_scaled"], NETWORK)


def forward(case: Case) -> Iterator[Row]:
    for i in range(len(case.cases.get("forward", ()))):
        recorded, seen = case.part(f"forward.{i}."), {}
        with _recording_inside(case.network, seen):
            image, logits = case.network(recorded.get("latents"), recorded["encoder_hidden_states"],
                                         recorded["timestep"])
        ours = seen | {"image_out": image, "text_logits": logits}
        for name in sorted(set(recorded) - {"latents", "encoder_hidden_states", "timestep"}):
            yield compare(f"{case.title} forward {i} {name}", ours[name], recorded[name], NETWORK)


class _recording_inside:
    """While it lasts, calls of a network fill a dictionary with what their parts return."""

    def __init__(self, network: DualDiffusionTransformer, seen: dict):
        def keep(*names):
            def hook(module, inputs, output):
                seen.update(zip(names, output if len(names) > 1 else [output]))
            return hook
        self.hooks = [network.time_text_embed.timestep_embedder.register_forward_hook(keep("time_emb")),
                      network.pos_embed.register_forward_hook(keep("image_tokens_in"))]
        self.hooks += [block.register_forward_hook(keep(f"block{i}.image", f"block{i}.text"))
                       for i, block in enumerate(network.transformer_blocks)]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


def text_run(case: Case, name: str, run: dict) -> Iterator[Row]:
    """A run of the text sampler with the recorded draws, step by step, and its evaluations."""
    title, recorded, mask_id = f"{case.title} {name}", case.part(f"text.{name}."), case.values["mask_token_id"]
    network = case.text_network(recorded["image_latents"])
    asked_NBL = recorded["eval_inputs"].long()
    for number, (ids_BL, log_p_BLV) in enumerate(zip(asked_NBL, recorded["eval_logprobs"])):
        blank_BL = ids_BL == mask_id
        if blank_BL.any():    # elsewhere, and of the mask itself, nothing is computed
            ours_MV = log_probabilities(network(torch.arange(len(ids_BL)), ids_BL, blank_BL))
            yield compare(f"{title} evaluation {number}", ours_MV[:, :-1], log_p_BLV[blank_BL][:, :-1], NETWORK)
    states, evaluations = [], []

    def draws(row: int, blank_L: Tensor, classes: int) -> Tensor:
        return recorded["uniforms"][len(states), row][blank_L]

    def counted(rows, ids_RL, places_RL):
        evaluations.append(ids_RL)
        return network(rows, ids_RL, places_RL)

    final = sample_text(counted, recorded["x_init"].long(), draws, steps=run["steps"], mask_id=mask_id, end_id=END,
                        callback=lambda step, steps, ids_BL: states.append(ids_BL.clone()))
    states += [states[-1]] * (run["steps"] - len(states))
    given_BL = recorded["prompt_mask"].bool()
    yield equal(f"{title} start", ((recorded["x_init"] != mask_id) | ~given_BL).all().item(), True)
    yield equal(f"{title} tokens of {len(states)} steps", torch.stack(states).tolist(), recorded["x_steps"].tolist())
    yield equal(f"{title} tokens at last", final.tolist(), recorded["x_final"].tolist())
    changed = [i for i in range(len(asked_NBL)) if (asked_NBL[i] == mask_id).any()
               and (i == 0 or not torch.equal(asked_NBL[i], asked_NBL[i - 1]))]
    yield equal(f"{title} evaluations", len(evaluations), len(changed))


def closing(case: Case) -> Row:
    """The arg-max pass on a half blank sequence, with the pictures of the case that has its length."""
    ids_BL, mask_id = case.tensors["text.finalize.x"].long(), case.values["mask_token_id"]
    sampler = TextSampler(case.text_network(case.tensors["text.vqa.image_latents"]), ids_BL, mask_id, END,
                          TextOptions())
    sampler.close()
    return equal(f"{case.title} closing pass", sampler.ids_BL.tolist(), case.tensors["text.finalize.result"].tolist())


def picture_run(case: Case) -> Iterator[Row]:
    """Noise levels, states of both prompts, velocities at the recorded latents, and a whole run."""
    run, recorded, title = case.cases["image"], case.part("image."), f"{case.title} picture"
    for name, levels in recorded.items():
        if sizes := re.fullmatch(r"schedule\.shift([\d.]+)_steps(\d+)\.sigmas", name):
            yield compare(f"{title} {name}", noise_levels(int(sizes[2]), float(sizes[1])), levels, NETWORK)
    levels = noise_levels(run["steps"], run["shift"])
    yield compare(f"{title} sigmas", levels, recorded["sigmas"], NETWORK)
    yield compare(f"{title} timesteps", 1000 * levels[:-1], recorded["timesteps"], NETWORK)
    states = {sign: case.t5(recorded[f"{sign}_ids"].long()) for sign in ("negative", "positive")}
    for sign, states_BLE in states.items():
        yield compare(f"{title} {sign} states", states_BLE, recorded[f"{sign}_embeds"], NETWORK)
    before = [recorded["latents_init"], *recorded["latents_steps"]]
    states_TLE = torch.cat([states["negative"], states["positive"]])
    text_TLC = case.network.embed_text(states_TLE)
    for i, (z, v) in enumerate(zip(before, recorded["velocity_uncond_cond"])):
        yield compare(f"{title} velocity {i}", case.network.velocity(z, text_TLC, recorded["timesteps"][i:i + 1]), v,
                      NETWORK)
    seen = []
    final = sample_picture(case.network, recorded["latents_init"], states_TLE, levels, guidance=run["guidance"],
                           callback=lambda step, steps, x, x0: seen.append(x))
    yield compare(f"{title} latents of {run['steps']} steps", torch.stack([*seen[1:], final]),
                  recorded["latents_steps"], LATENTS)
    yield compare(f"{title} latents at last", final, recorded["latents_final"], LATENTS)


def _text_batch(case: Case) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Recorded parts, times and blanks of the text loss."""
    recorded = case.part("train.text.")
    t_B = text_times(recorded["uniform_t"])
    return recorded, t_B, blank_places(recorded["uniform_mask"], t_B, recorded["label_mask"])


def _text_loss(case: Case) -> Tensor:
    recorded, t_B, blank_BL = _text_batch(case)
    words_BL = recorded["input_ids"].long()
    ids_BL = words_BL.masked_fill(blank_BL, case.values["mask_token_id"])
    logits_MV = case.text_network(recorded["image_latents"])(torch.arange(len(ids_BL)), ids_BL, blank_BL)
    return text_loss(logits_MV, words_BL, blank_BL, t_B).mean()


def text_training(case: Case) -> Iterator[Row]:
    recorded, t_B, blank_BL = _text_batch(case)
    yield compare(f"{case.title} text loss times", t_B, recorded["t"], NETWORK)
    ids_BL = recorded["input_ids"].long().masked_fill(blank_BL, case.values["mask_token_id"])
    yield equal(f"{case.title} text loss blanks", ids_BL.tolist(), recorded["x_noised"].tolist())
    yield compare(f"{case.title} text loss", _text_loss(case)[None], recorded["loss"], NETWORK)


def _picture_loss(case: Case) -> Tensor:
    recorded = case.part("train.image.")
    t_B, z, noise = picture_times(recorded["normal_for_time"]), recorded["latents"], recorded["noise"]
    dropped_B = recorded["uniform_dropout"] < DROPOUT
    states_BLE = torch.where(dropped_B[:, None, None], recorded["null_embeds"],
                             case.t5(recorded["caption_ids"].long()))
    velocity = case.network.velocity(noised(z, noise, t_B), case.network.embed_text(states_BLE), t_B)
    return picture_loss(velocity, z, noise, t_B).mean()


def picture_training(case: Case) -> Iterator[Row]:
    recorded = case.part("train.image.")
    yield compare(f"{case.title} picture loss times", picture_times(recorded["normal_for_time"]),
                  recorded["timesteps"], NETWORK)
    nothing = torch.full(recorded["caption_ids"][:1].shape, case.values["pad_token_id_used"])
    yield compare(f"{case.title} picture loss dropped caption", case.t5(nothing), recorded["null_embeds"], NETWORK)
    yield compare(f"{case.title} picture loss", _picture_loss(case)[None], recorded["loss"], NETWORK)


def gradients(case: Case) -> Iterator[Row]:
    network, recorded = case.network, case.part("train.")
    with torch.enable_grad():
        total = _picture_loss(case) + case.cases["train"]["text_weight"] * _text_loss(case)
        total.backward()
    yield compare(f"{case.title} total loss", total.detach()[None], recorded["total_loss"], NETWORK)
    ours = {name: parameter.grad for name, parameter in network.named_parameters()}
    norm = torch.stack([grad.norm() for grad in ours.values() if grad is not None]).norm()
    yield compare(f"{case.title} gradient norm", norm[None], recorded["grad_norm"], GRADIENTS)
    for name, grad in case.part("train.grad.").items():
        yield compare(f"{case.title} gradient {name}", ours[name], grad, GRADIENTS)
    without = sorted(name for name, grad in ours.items() if grad is None)
    yield equal(f"{case.title} without gradient", without, case.cases["train"]["params_without_gradient"])
    network.zero_grad()


def preprocessing(case: Case) -> Iterator[Row]:
    for i, sizes in enumerate(case.cases.get("preprocess", ())):
        picture, side = Image.fromarray(case.tensors[f"preprocess.{i}.rgb_uint8"].cpu().numpy()), sizes["resolution"]
        ours = {"inference_and_json_data": fit_for_training(picture, (side, side)),
                "webdataset_data": shard_square(picture, side),
                "sft_vqa_data": tuning_square(picture, side)}
        for name, square in ours.items():
            yield compare(f"{case.title} picture {i} {name}", square[None], case.tensors[f"preprocess.{i}.{name}"],
                          PIXELS)


def tokenization(recording: Recording) -> Iterator[Row]:
    """Token numbers in the vocabulary of T5 v1.1."""
    values, words, title = recording.values(), Words(T5_WORDS), recording.name
    for case in values["image_prompts"]:
        padding = [case["padding_id"]] * (case["padded_length"] - len(case["ids_without_padding"]))
        yield equal(f"{title} {case['text'][:30]!r}", words.prompt(case["text"], case["padded_length"]),
                    case["ids_without_padding"] + padding)
    for case in values["pipeline_prompts"]:
        ours = [words.ids(case["text"]), words.blanks(case["text"], case["sequence_length"], keep_end=True),
                words.ids(case["text"], end=False)]
        yield equal(f"{title} {case['text'][:30]!r}", ours,
                    [case[name] for name in ("clean_prefix_ids", "x_init", "evaluation_prefix_ids")])
    for case in values["sft_samples"]:
        question = case["question"] + ANSWER_STYLES["short"]
        ids, labels = words.training_pair(question, case["answer"], case["max_length"], case["answer_first"],
                                          question_last=case["variant"] == "variant_2")
        yield equal(f"{title} {case['variant']} {case['answer'][:20]!r}", [ids, labels],
                    [case["input_ids"], case["label_mask"]])
    for case in values["decode"]:
        yield equal(f"{title} {case['pipeline_text'][:30]!r}", words.text(case["ids"]), case["pipeline_text"])
