"""Recordings of the networks: single calls, values inside a call, sampling runs, the autoencoder, whole runs."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from .conformance_cases import FORWARD, PIPELINE, REDUCED, Recording, Row, compare, equal, sampling_tolerance
from .domains import JointRoles, Role, nearest_bin
from .models.dcae import DCAE, DCAEConfig
from .models.jodi import JodiConfig, JodiTransformer, position_table
from .pictures import load_picture
from .pipeline import JodiPipeline, TextFeatures
from .sampling import flow_timesteps

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
          "fp16": torch.float16, "float16": torch.float16, "fp64": torch.float64, "float64": torch.float64}


def load_transformer(recording: Recording, name: str | None = None, dtype=torch.float32) -> JodiTransformer:
    """The network whose constructor values are NAME.json; without a name, the one whose weights a recording names."""
    name = name or recording.values()["weights"].removesuffix(".weights.safetensors")
    source = replace(recording, name=name)
    model = JodiTransformer(JodiConfig.from_reference(source.values()["model"]))
    model.load_state_dict(source.tensors(".weights"), strict=True)
    return model.to(recording.device, dtype).eval()


def prefix_mask(lengths: list[int], tokens: int) -> Tensor:
    """(B, M) with as many leading ones per row as its text has tokens."""
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def where_generated(recorded_BLCHW: Tensor, role_BL: Tensor) -> Tensor:
    """What we return for a recorded output: zeros for all but the generated domains, whose outputs carry no meaning."""
    role_BL = role_BL.repeat(len(recorded_BLCHW) // len(role_BL), 1).to(recorded_BLCHW.device)
    return recorded_BLCHW.masked_fill((role_BL != Role.GENERATE)[:, :, None, None, None], 0)


def forward(recording: Recording) -> Iterator[Row]:
    tensors, models = recording.tensors(".forward"), {}
    for case in recording.values()["cases"]:
        arguments = _arguments(case, tensors)
        for precision, output in case["outputs"].items():
            if precision not in models:
                models[precision] = load_transformer(recording, recording.name, DTYPES[precision])
            recorded = where_generated(tensors[output], arguments["role"])
            yield compare(f"{recording.name} {case['name']} {precision}", models[precision](**arguments), recorded,
                          FORWARD if DTYPES[precision].itemsize >= 4 else REDUCED)


def _arguments(case: dict, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    x, y, clean_x = (tensors[f"{case['inputs']}.{name}"] for name in ("x", "y", "clean_x"))
    t, mask = torch.tensor(case["t"]), prefix_mask(case["mask_lengths"], y.shape[2])
    if "cfg_batch" in case:
        x, t, y = torch.cat([x, x]), torch.cat([t, t]), torch.cat([tensors[f"{case['name']}.uncond_y"], y])
    return {"x": x, "t": t, "y": y, "mask": mask, "role": torch.tensor(case["role"]),
            "clean_x": clean_x if case["clean_x"] else None}


# Recorded values inside a call -> the modules whose outputs they are; {} is the number of a block.
INSIDE = {"t_embedder": "t_embedder", "t_block": "t_block", "role_embedder": "role_embedder",
          "role_block": "role_block", "y_embedder": "y_embedder", "attention_y_norm": "attention_y_norm",
          "block{}.self_attn": "blocks.{}.attn", "block{}.cross_attn": "blocks.{}.cross_attn",
          "block{}.mlp": "blocks.{}.mlp", "block{}.out": "blocks.{}"}


def debug(recording: Recording) -> Iterator[Row]:
    """One call with the values inside it. Of values per domain we compute, and compare, the active ones only."""
    tensors = recording.tensors()
    recorded = {name.removeprefix("dbg."): value for name, value in tensors.items() if name.startswith("dbg.")}
    model = load_transformer(recording, recording.name.removesuffix(".debug"), tensors["out"].dtype)
    tolerance = FORWARD if tensors["out"].dtype.itemsize >= 4 else REDUCED
    seen = _record_inside(model)
    out = model(**{name: tensors[name] for name in ("x", "t", "y", "role", "mask", "clean_x")})
    yield compare(f"{recording.name} out", out, where_generated(tensors["out"], tensors["role"]), tolerance)
    config, grid = model.config, [side // model.config.patch_size for side in tensors["x"].shape[-2:]]
    seen["pos_embed"] = position_table(config.hidden_size, *grid, config.input_size // config.patch_size,
                                       config.pe_interpolation)
    roles = JointRoles(config.domains, tensors["role"][0].tolist())
    for name, value in recorded.items():
        ours = seen[name].flatten(0, -2)
        yield compare(f"{recording.name} {name}", ours, _active_rows(value, ours, roles), tolerance)


def _record_inside(model: JodiTransformer) -> dict[str, Tensor]:
    """A dictionary that the next call fills."""
    seen = {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = output
        return hook

    for name, module in INSIDE.items():
        for number in range(model.config.depth if "{}" in name else 1):
            model.get_submodule(module.format(number)).register_forward_hook(keep(name.format(number)))
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.update(blocks_in=inputs[0]))
    return seen


def _active_rows(recorded: Tensor, ours_RC: Tensor, roles: JointRoles) -> Tensor:
    """Recorded values as rows, without those of domains that we leave out: the ignored ones, and in the last block
    all but the generated ones."""
    rows_RC = recorded.flatten(0, -2)
    if rows_RC.shape == ours_RC.shape:
        return rows_RC
    generated = [roles.active[slot] for slot in roles.generated_slots]
    for domains in (list(roles.active), generated):
        if len(rows_RC) % len(roles.domains) == 0 and \
                len(rows_RC) // len(roles.domains) * len(domains) == len(ours_RC):
            return rows_RC.unflatten(0, (len(roles.domains), -1))[domains].flatten(0, 1)
    return rows_RC


def autoencoder(recording: Recording) -> Iterator[Row]:
    values, tensors, title = recording.values(), recording.tensors(".cases"), recording.name
    model = load_autoencoder(recording)
    scale = model.config.scaling_factor
    for case in values["cases"]:
        name = case["name"]
        latent, scaled, decoded = (tensors[f"{name}.{part}"] for part in ("latent", "latent_scaled", "decoded"))
        model.to(latent.dtype)
        ours = model.encode((tensors[f"{name}.u8"] / 127.5 - 1).to(latent.dtype))
        yield compare(f"{title} {name} latent", ours, latent, FORWARD)
        yield compare(f"{title} {name} scaled latent", ours * scale, scaled, FORWARD)
        yield compare(f"{title} {name} decoded", model.decode(scaled / scale), decoded, FORWARD)


def load_autoencoder(recording: Recording) -> DCAE:
    model = DCAE(DCAEConfig.from_reference(recording.values()))
    model.load_state_dict(recording.tensors(".weights"), strict=True)
    return model.to(recording.device, torch.float32).eval()


def sampler(recording: Recording) -> Iterator[Row]:
    """Sampling runs, by the pipeline's sampling stage."""
    values, tensors = recording.values(), recording.tensors()
    y_1MC = tensors["cond_y"].flatten(0, 1)
    mask = prefix_mask([values["mask_length"]], y_1MC.shape[1]).to(recording.device)
    for run in values["runs"]:
        title, guidance = f"{recording.name} {run['name']}", run["guidance"]
        model = load_transformer(recording)
        model.config = replace(model.config, flow_shift=run["flow_shift"])
        times = flow_timesteps(run["steps"], run["flow_shift"])
        yield compare(f"{title} times", times, tensors[f"{run['name']}.timesteps"], FORWARD)
        roles = JointRoles(model.config.domains, run["role"])
        features = y_1MC if guidance == 1 else torch.cat([tensors["uncond_y"].flatten(0, 1), y_1MC])
        states = []
        # This stage touches no pictures: an autoencoder without weights will do.
        pipe = JodiPipeline(model, DCAE(DCAEConfig(latent_channels=model.config.in_channels), device="meta"))
        last = pipe.sample(tensors["z"], roles, roles.keep_active(tensors["clean_x"].transpose(1, 2)),
                           TextFeatures(features, mask, 1 if guidance == 1 else 2), steps=run["steps"],
                           guidance=guidance, callback=lambda step, steps, x, x0: states.append(x))
        tolerance = sampling_tolerance(guidance)
        slots, domains = list(roles.generated_slots), [roles.active[slot] for slot in roles.generated_slots]
        states = torch.stack([*states[1:], last])[:, :, :, slots].transpose(2, 3)
        yield compare(f"{title} states", states, tensors[f"{run['name']}.traj"][:, :, domains], tolerance)
        yield compare(f"{title} final", states[-1], tensors[f"{run['name']}.final"][:, domains], tolerance)


def pipeline(recording: Recording) -> Iterator[Row]:
    """Whole runs: pictures in, sampling, pictures out, by the stages of the pipeline."""
    values, tensors = recording.values(), recording.tensors()
    model = load_transformer(recording)
    model.config = replace(model.config, bins=values["bins"], flow_shift=values["flow_shift"],
                           latent_scale=values["scaling_factor"])
    weights = min(recording.folder.glob("dcae*.weights.safetensors"))
    pipe = JodiPipeline(model, load_autoencoder(
        replace(recording, name=weights.name.removesuffix(".weights.safetensors"))))
    for run in values["runs"]:
        parts = {name.removeprefix(f"{run['name']}."): value for name, value in tensors.items()
                 if name.startswith(f"{run['name']}.")}
        yield from _whole_run(f"{recording.name} {run['name']}", pipe, run, parts)


def _whole_run(title: str, pipe: JodiPipeline, run: dict, parts: dict[str, Tensor]) -> Iterator[Row]:
    roles, size = JointRoles(pipe.domains, run["role"]), (run["h"], run["w"])
    size_bin = nearest_bin(*size, pipe.config.bins)
    yield equal(f"{title} bin", list(size_bin), run["bin"])
    given = {roles.active_names[slot]: roles.active[slot] for slot in roles.condition_slots}
    pictures = {name: load_picture(Image.fromarray(parts[f"input{i}.u8"].cpu().numpy())) for name, i in given.items()}
    clean_BCDHW = pipe.encode_conditions(roles, pictures, size_bin)
    for slot, i in zip(roles.condition_slots, given.values()):
        yield compare(f"{title} clean latent {i}", clean_BCDHW[:, :, slot], parts[f"clean_latent{i}"], PIPELINE)
    text = TextFeatures(parts["y_first_call"].flatten(0, 1), parts["mask"], 1 if run["g"] == 1 else 2)
    latent = pipe.sample(parts["z"], roles, clean_BCDHW, text, steps=run["steps"], guidance=run["g"])
    decoded = pipe.decode(latent, roles, size)
    for slot in roles.generated_slots:
        name, i = roles.active_names[slot], roles.active[slot]
        if f"out{i}" in parts:
            yield compare(f"{title} {name}", decoded[name], parts[f"out{i}"], PIPELINE)
