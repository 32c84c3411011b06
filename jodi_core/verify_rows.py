"""The rows of `verify` on each kind of part, and on parts that belong together."""

import math
from collections import Counter

import torch

from .domains import JODI_BINS, JointRoles, Role
from .models.dcae import DCAEConfig
from .models.jodi import JodiConfig
from .text import expected_text_shapes
from .verify import Part, Row, finite_values
from .weights import (WeightsError, expected_shapes, load_autoencoder, load_text, load_transformer, original_names,
                      part_of, settings_of)

# Sizes of the published parts, by which they are known: parameters and number of tensors (spec 1.6, 6).
PUBLISHED = {"transformer": (JodiConfig(), 1_635_657_216 + 691_200, 356),
             "autoencoder": (DCAEConfig(), 312_250_275, 339)}
PUBLISHED_TEXT = {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                  "num_attention_heads": 8, "num_key_value_heads": 4}
FLOATS = {"F32", "BF16", "F16", "F8_E4M3", "F8_E5M2"}
CAPTION_ERROR = 0.1        # relative, root mean square: a bf16 encoder rounds, another encoder gives above 1
NOISE_ANSWER = 0.5         # correlation; a trained model gives about 0.9, one with wrong weights about 0
PICTURE_DB = 20            # peak signal to noise ratio
SMALL = 500_000_000        # parameters up to which a network is run in float32


def rows_of(part: Part) -> list[Row]:
    """All rows on one part; sets its configuration and what keeps it from loading."""
    rows = [_configuration(part), *_tensors(part)]
    rows.append(part.row("number types", "floating point", ", ".join(
        f"{count} {name}" for name, count in Counter(part.header.dtypes[name] for name in part.names).items()),
        {part.header.dtypes[name] for name in part.names} <= FLOATS | {"U8"}))
    found, finite = finite_values(part)
    rows.append(part.row("values", "all finite", found, finite))
    if not finite:
        part.problem = part.problem or "some values are infinite or NaN"
    return rows + {"transformer": _transformer, "autoencoder": _autoencoder, "text_encoder": _text}[part.kind](part)


def _configuration(part: Part) -> Row:
    stored = None
    try:
        stored = part_of(part.path, part.kind)[2]
        part.config = settings_of(part.kind, part.shapes, stored)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        part.problem = f"no usable configuration: {error}"
        part.config = _fallback(part.kind, stored)
        return part.row("configuration", "from its metadata or its shapes", error, False)
    return part.row("configuration", "from its metadata or its shapes",
                    "in its metadata, as the shapes" if stored else "from its shapes", True)


def _fallback(kind: str, stored: dict | None):
    """A configuration to hold the tensors against where they tell none: what the metadata says, or the published."""
    try:
        return {"transformer": JodiConfig, "autoencoder": DCAEConfig}[kind].from_dict(stored or {})
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def _tensors(part: Part) -> list[Row]:
    """Names, shapes and number of the tensors, against the configuration."""
    if part.config is None:
        return [part.row("tensors", "as configured", "no configuration", None)]
    shapes = dict(part.shapes)
    if part.kind == "text_encoder":
        expected = expected_text_shapes(part.config)
        shapes = {name: shape for name, shape in shapes.items() if name not in ("spiece_model", "lm_head.weight")}
    else:
        expected = expected_shapes(part.kind, part.config)
        shapes = original_names(part.kind, shapes)
    missing, unexpected = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    wrong = [f"{name} is {shapes[name]}, not {shape}" for name, shape in expected.items()
             if name in shapes and tuple(shapes[name]) != tuple(shape)]
    faults = [f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in
              (("missing", missing), ("unexpected", unexpected)) if names]
    if faults or wrong:
        part.problem = part.problem or "its tensors do not fit"
    stray = sorted({name.rpartition(".")[2] for name in part.header.shapes if name.endswith("pos_embed")})
    return [part.row("tensor names", f"{len(expected)}", "; ".join(faults) or
                     f"{len(shapes)}, as expected" + (f", and {stray[0]}, which is dropped" if stray else ""),
                     not faults),
            part.row("tensor shapes", "as configured", f"{len(wrong)} differ: {'; '.join(wrong[:3])}" if wrong
                     else "as configured", not wrong),
            _published_size(part, shapes)]


def _published_size(part: Part, shapes: dict) -> Row:
    if part.kind == "text_encoder":
        same = all(getattr(part.config, name) == size for name, size in PUBLISHED_TEXT.items())
        expected = ", ".join(f"{name} {size}" for name, size in PUBLISHED_TEXT.items())
        return part.row("Gemma-2-2b", expected, "the same" if same else _other_size(part), same or None)
    config, parameters, tensors = PUBLISHED[part.kind]
    widths = [getattr(some, "hidden_size", None) or some.widths for some in (config, part.config)]
    told, count = f"{parameters} parameters and buffers in {tensors} tensors", sum(map(math.prod, shapes.values()))
    if widths[0] != widths[1] or getattr(part.config, "num_domains", 8) != 8:
        return part.row("published size", told, _other_size(part), None)
    found = f"{count} parameters and buffers in {len(shapes)} tensors"
    return part.row("published size", told, found, found == told)


def _other_size(part: Part) -> str:
    size = getattr(part.config, "hidden_size", None) or part.config.widths
    return f"does not apply: another size ({size})"


# ---- transformer ----------------------------------------------------------------------------------------------------

def _transformer(part: Part) -> list[Row]:
    if part.config is None or "y_embedder.y_embedding" not in part.shapes:
        return [part.row("stored caption, domains, sizes, evaluation", "see above", part.problem, None)]
    return [_heads(part), _bins(part), _domains_differ(part), _caption_rows(part), *_evaluation(part)]


def _heads(part: Part) -> Row:
    return part.row("text heads", f"{part.config.num_heads} (of width {part.config.hidden_size})",
                    "shapes do not tell: taken from the metadata, or by the width", None)


def _bins(part: Part) -> Row:
    config = part.config
    square = config.bins.get(1.0, (0, 0))[0]
    factor = square / config.input_size
    cells = factor * config.patch_size
    wrong = [f"{height}x{width}" for height, width in config.bins.values()
             if not cells or height % cells or width % cells]
    known = " (the published ones)" if config.bins == JODI_BINS else ""
    return part.row("size bins", f"whole cells of {cells:g} pixels", f"{', '.join(wrong)} are not" if wrong
                    else f"{len(config.bins)} sizes{known}", not wrong)


def _domains_differ(part: Part) -> Row:
    """Training starts with the same embedder in every domain, so equal ones mean an untrained file (spec 7)."""
    weights = [part.tensor(f"x_embedders.{index}.proj.weight").float() for index in range(part.config.num_domains)
               if f"x_embedders.{index}.proj.weight" in part.shapes]
    same = [f"{one} and {other}" for other in range(len(weights)) for one in range(other)
            if weights[one].shape == weights[other].shape and torch.equal(weights[one], weights[other])]
    return part.row("domains", f"{part.config.num_domains} different embedders",
                    f"equal: {', '.join(same[:3])}" if same else f"{len(weights)} different", not same)


def _caption_rows(part: Part) -> Row:
    """The empty prompt: the first token and one value for all the padding (spec 1.7 c3)."""
    rows = part.tensor("y_embedder.y_embedding").float()
    distinct = len(rows.unique(dim=0))
    spread = float((rows[1:] - rows[1:].mean(0)).norm() / rows.norm())
    good = torch.equal(rows[1:], rows[1:2].expand(len(rows) - 1, -1)) and not torch.equal(rows[0], rows[1])
    return part.row("stored caption", "2 distinct rows: the first, and all others alike",
                    f"{distinct} distinct; the others spread by {spread:.2g}", good)


@torch.no_grad()
def _evaluation(part: Part) -> list[Row]:
    """One evaluation on noise at time 1000: v = noise - data, and nothing is known of the data, so v is like the noise.
    """
    checks = ("one evaluation, all domains", "finite"), ("answer to noise", f"correlation above {NOISE_ANSWER}")
    if part.problem:
        return [part.row(*check, part.problem, None) for check in checks]
    config = part.config
    dtype = torch.float32 if sum(map(math.prod, part.shapes.values())) < SMALL else torch.bfloat16
    network = load_transformer(part.path, dtype=dtype)
    roles = JointRoles(config.domains, (Role.GENERATE,) * config.num_domains)
    side = 8 * config.patch_size
    x = torch.randn(1, config.in_channels, config.num_domains, side, side, dtype=dtype,
                    generator=torch.Generator().manual_seed(0))
    caption = network.y_embedder.y_embedding[None].to(dtype)
    v = network.velocity(x, torch.tensor([1000.0]), network.prepare(caption, None, roles))
    finite = bool(v.isfinite().all())
    pairs = [(x[:, :, slot].flatten().float(), v[:, :, slot].flatten().float()) for slot in range(config.num_domains)]
    alike = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    weakest = min(range(len(alike)), key=alike.__getitem__) if finite else 0
    return [part.row(*checks[0], f"{'finite' if finite else 'not finite'}, standard deviation {float(v.std()):.3g}",
                     finite),
            part.row(*checks[1], f"{alike[weakest]:.3f} for {config.domains[weakest]}, the weakest",
                     finite and alike[weakest] > NOISE_ANSWER)]


# ---- autoencoder ----------------------------------------------------------------------------------------------------

@torch.no_grad()
def _autoencoder(part: Part) -> list[Row]:
    check = "a drawn picture there and back", f"above {PICTURE_DB} dB"
    naming = "diffusers" if any(".down_blocks." in name for name in part.shapes) else "the original's"
    rows = [part.row("naming", "the original's or diffusers'", naming, True)]
    if part.problem:
        return [*rows, part.row(*check, part.problem, None)]
    side = 4 * part.config.factor
    ramp = torch.linspace(-0.7, 0.7, side)
    picture = torch.stack([ramp.expand(side, side), ramp.expand(side, side).T, torch.zeros(side, side)])[None]
    picture[:, :, side // 4:side // 2, side // 4:side // 2] = torch.tensor([0.6, -0.4, -0.4]).view(1, 3, 1, 1)
    network = load_autoencoder(part.path, dtype=torch.float32)
    latents = network.encode(picture)
    error = (network.decode(latents).clamp(-1, 1) - picture).square().mean() / 4
    decibels = float(-10 * error.log10())
    return [*rows, part.row(*check, f"{decibels:.1f} dB; scaled latents have standard deviation "
                            f"{float(latents.std()) * part.config.scaling_factor:.2f}", decibels > PICTURE_DB)]


# ---- text encoder ---------------------------------------------------------------------------------------------------

def _text(part: Part) -> list[Row]:
    tokenizer = "spiece_model" in part.shapes
    rows = [part.row("tokenizer", "inside (spiece_model)", "inside" if tokenizer else "missing", tokenizer)]
    if part.config is not None and tokenizer:
        rows += _prefix(part)
    return rows + [part.row("bound on attention scores (soft cap)", "none, as the original ran",
                            "the file does not tell, and the empty prompt attends to one token, which no bound "
                            "changes", None)]


def _prefix(part: Part) -> list[Row]:
    """Two rules of the text features: special tokens, and the blank at the end of the prefix (spec 4)."""
    from sentencepiece import SentencePieceProcessor
    pieces = SentencePieceProcessor(model_proto=part.tensor("spiece_model").numpy().tobytes())
    special = [pieces.pad_id(), pieces.eos_id(), pieces.bos_id(), pieces.unk_id()]
    size = pieces.get_piece_size()
    rows = [part.row("special tokens and vocabulary", f"pad 0, end 1, start 2, unknown 3; at most "
                     f"{part.config.vocab_size} pieces", f"{special}; {size} pieces",
                     special == [0, 1, 2, 3] and size <= part.config.vocab_size)]
    check = "prefix", "its last token (a blank) merges into the prompt's first word"
    prefix = part.config.prefix
    if not prefix.endswith(" "):
        return [*rows, part.row(*check, "does not apply: the prefix is empty or ends otherwise", None)]
    alone, whole = pieces.encode(prefix), pieces.encode(prefix + "house")
    kept = alone[:-1] == whole[:len(alone) - 1] and alone[-1] != whole[len(alone) - 1]
    return [*rows, part.row(*check, f"{len(alone) + 1} tokens with the start; " + ("merges" if kept else
                            "does not merge"), kept)]


# ---- together -------------------------------------------------------------------------------------------------------

@torch.no_grad()
def across(parts: dict[str, Part]) -> list[Row]:
    """Rows that need the text encoder at work or two parts, and why they are missing."""
    transformer, text = parts.get("transformer"), parts.get("text_encoder")
    rows, encoder = [], None
    if text is not None:
        encoder, row = _features(text)
        rows.append(row)
    if transformer is not None:
        rows += [_caption(transformer, text, encoder), _latents(transformer, parts.get("autoencoder"))]
    return rows


def _features(text: Part):
    """(the encoder or None, the row on the features of a prompt)."""
    check = "features of a prompt", "finite"
    if not text.problem:
        try:
            encoder = load_text(text.path)
        except WeightsError as error:
            text.problem = str(error)
        else:
            finite = bool(encoder.encode(["a red house beside a lake"])[0].isfinite().all())
            return encoder, text.row(*check, "finite" if finite else "not finite", finite)
    return None, text.row(*check, text.problem, None)


def _caption(transformer: Part, text: Part | None, encoder) -> Row:
    """The stored caption is what the encoder makes of the empty prompt (spec 4)."""
    check = "stored caption with the text encoder", f"features of the empty prompt, error below {CAPTION_ERROR}"
    if encoder is None or "y_embedder.y_embedding" not in transformer.shapes:
        why = "no text encoder given" if text is None else text.problem or transformer.problem
        return transformer.row(*check, why, None)
    stored = transformer.tensor("y_embedder.y_embedding").float()
    width = text.config.hidden_size
    if stored.shape[1] != width:
        return transformer.row(*check, f"the encoder makes features {width} wide, the caption is {stored.shape[1]}",
                               False)
    made = encoder.encode_negative([""], rows=len(stored))[0].cpu()
    errors = [float((stored[rows] - made[rows]).norm() / made[rows].norm()) for rows in (slice(0, 1), slice(1, None))]
    return transformer.row(*check, f"{errors[0]:.3g} in the first row, {errors[1]:.3g} in the others",
                           max(errors) < CAPTION_ERROR)


def _latents(transformer: Part, autoencoder: Part | None) -> Row:
    check = "latents with the autoencoder", "as many channels; square bin = latent side x factor"
    if autoencoder is None or autoencoder.config is None or transformer.config is None:
        return transformer.row(*check, "no autoencoder given" if autoencoder is None else "no configuration", None)
    joint, coder = transformer.config, autoencoder.config
    square = joint.bins.get(1.0, (0, 0))[0]
    return transformer.row(*check, f"{joint.in_channels} and {coder.latent_channels} channels; {square} = "
                           f"{joint.input_size} x {square / joint.input_size:g}, factor {coder.factor}",
                           joint.in_channels == coder.latent_channels and square == joint.input_size * coder.factor)
