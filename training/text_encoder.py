"""The tiny text encoder: its own tokenizer and a small Gemma-2 that knows what a toy caption says.

    python -m training.text_encoder --output text_encoder.safetensors --steps 1000

Linear heads, thrown away afterwards, read the features of every token: what the caption has stated so far, and what
it has stated about the thing that it named last. The features then carry "red house, on the left" where the words
stand, so that the frozen encoder spares the transformer from learning English. Minutes on one CPU core.
"""

import argparse
import io
import json
import random
from pathlib import Path

import torch

from jodi_core.files import write_safetensors
from jodi_core.text import BOS, EOS, PAD, UNK, GemmaText, TextConfig, build_gemma
from training.captions import FACTS, caption, facts, vary
from training.scene import GROUNDS, PATHS, POSES, SIDES, sample_scene

HIDDEN, LAYERS, HEADS, KV_HEADS, MLP = 128, 2, 2, 1, 256
MAX_LENGTH = 64
PIECES = 640  # every word of the toy captions gets one piece; 256 are bytes, which spell everything else
HELD_OUT = 1_000_000_000  # scene seeds from here on are for evaluation

# The word that completes a fact; sides are said of the thing named last.
_COMPLETES = {**dict.fromkeys(GROUNDS, "ground"), **dict.fromkeys(PATHS, "path"), **dict.fromkeys(POSES, "pose"),
              "up": "pose", "shirt": "person"}
_COMPLETES.update({name: name for name in FACTS if name not in (*_COMPLETES.values(), "pose")})
_CLASSES = 1 + max(len(values) for values in FACTS.values())


def label(text: str, known: dict[str, str], encode) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Tokens of a caption (start token first) and two classes per token and fact of FACTS.

    known: the facts of the scene; encode: text -> token numbers. The first list of classes tells what has been stated
    up to a token, the second what of it concerns the last thing named; 0 is "not stated", otherwise 1 + the place of
    the value in FACTS.
    """
    names = list(FACTS)
    tokens, so_far, recent = [BOS], [0] * len(names), [0] * len(names)
    stated, about, thing = [so_far], [recent], None
    for word in text.split():
        pieces, core = encode(word), len(encode(word.strip(",.;")))
        fact = _COMPLETES.get(word.strip(",.;"))
        if word.strip(",.;") in SIDES and thing:
            fact = f"{thing}_side"
        for place, piece in enumerate(pieces):
            if fact and place == core - 1:
                value = 1 + FACTS[fact].index(known[fact])
                if not fact.endswith("_side") and fact != "pose":
                    recent, thing = [0] * len(names), fact if f"{fact}_side" in FACTS else None
                so_far, recent = (
                    [value if name == fact else old for name, old in zip(names, row)] for row in (so_far, recent))
            tokens.append(piece)
            stated.append(so_far)
            about.append(recent)
    return tokens, stated, about


def labelled_batch(seeds, encode, varied: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens (B, N), lengths (B,) and classes (B, N, 2, F) of the captions of scenes, cut at MAX_LENGTH."""
    rows = []
    for seed in seeds:
        scene, rng = sample_scene(seed), random.Random(~seed)
        text = caption(scene, seed)
        tokens, *classes = label(vary(text, rng) if varied else text, facts(scene), encode)
        rows.append((tokens[:MAX_LENGTH], list(zip(*classes))[:MAX_LENGTH]))
    lengths_B = torch.tensor([len(tokens) for tokens, _ in rows])
    tokens_BN = torch.full((len(rows), int(lengths_B.max())), PAD)
    classes_BN2F = torch.zeros(*tokens_BN.shape, 2, len(FACTS), dtype=torch.long)
    for row, (tokens, classes) in enumerate(rows):
        tokens_BN[row, :len(tokens)] = torch.tensor(tokens)
        classes_BN2F[row, :len(tokens)] = torch.tensor(classes)
    return tokens_BN, lengths_B, classes_BN2F


def train_tokenizer(captions) -> bytes:
    """A serialised sentencepiece model with Gemma's token numbers, blind to case, with bytes for unseen letters."""
    from sentencepiece import SentencePieceTrainer
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions), model_writer=written, model_type="bpe", vocab_size=PIECES,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="nmt_nfkc_cf", pad_id=PAD, eos_id=EOS,
        bos_id=BOS, unk_id=UNK, num_threads=1, minloglevel=2)
    return written.getvalue()


def new_encoder(seed: int = 0) -> GemmaText:
    """An untrained encoder with a tokenizer made from captions of the toy world."""
    from sentencepiece import SentencePieceProcessor
    rng = random.Random(seed)
    spiece_model = train_tokenizer(vary(caption(sample_scene(n), n), rng) for n in range(6000))
    pieces = SentencePieceProcessor(model_proto=spiece_model).get_piece_size()
    config = TextConfig(pieces, HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, prefix="", max_length=MAX_LENGTH)
    torch.manual_seed(seed)
    return GemmaText(config, build_gemma(config), spiece_model)


def fact_loss(heads, features_BNC, lengths_B, classes_BN2F) -> torch.Tensor:
    """Cross entropy of the heads at every token; the last token, which has seen the whole caption, counts extra."""
    logits = heads(features_BNC).unflatten(-1, (2, len(FACTS), _CLASSES))
    # Most facts are not stated yet at most tokens.
    weight = torch.ones(_CLASSES)
    weight[0] = 0.2
    loss_BN = torch.nn.functional.cross_entropy(
        logits.flatten(0, 3), classes_BN2F.flatten(), weight=weight, reduction="none").view_as(classes_BN2F).sum((2, 3))
    valid_BN = torch.arange(loss_BN.shape[1]) < lengths_B[:, None]
    last_B = loss_BN[torch.arange(len(lengths_B)), lengths_B - 1]
    return loss_BN[valid_BN].mean() + last_B.mean()


def train(encoder: GemmaText, steps: int, batch: int = 48, rate: float = 3e-3, log=print) -> torch.nn.Linear:
    """Train an encoder in place on fresh captions; returns the heads that read the facts from its features."""
    heads = torch.nn.Linear(HIDDEN, 2 * len(FACTS) * _CLASSES)
    model = encoder.model.train()
    model.norm.weight.requires_grad_(False)  # the final norm stays plain, so that features have unit RMS
    parameters = [p for p in (*model.parameters(), *heads.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup)))
    for step in range(steps):
        tokens_BN, lengths_B, classes_BN2F = labelled_batch(
            range(step * batch, (step + 1) * batch), encoder.tokenizer.encode)
        loss = fact_loss(heads, encoder.hidden_states(tokens_BN, lengths_B), lengths_B, classes_BN2F)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    return heads


@torch.no_grad()
def accuracy(encoder: GemmaText, heads: torch.nn.Linear, captions: int = 512) -> dict[str, float]:
    """Per fact, how often the last token of a held-out caption tells it right where it is stated (0 to 1).

    "everything" is the share of captions of which all facts are told right, the unstated ones included.
    """
    tokens_BN, lengths_B, classes_BN2F = labelled_batch(
        range(HELD_OUT, HELD_OUT + captions), encoder.tokenizer.encode, varied=False)
    logits = heads(encoder.hidden_states(tokens_BN, lengths_B)).unflatten(-1, (2, len(FACTS), _CLASSES))
    rows = torch.arange(captions)
    truth_BF = classes_BN2F[rows, lengths_B - 1, 0]
    right_BF = logits.argmax(-1)[rows, lengths_B - 1, 0] == truth_BF
    result = {name: right_BF[truth_BF[:, n] > 0, n].double().mean().item() for n, name in enumerate(FACTS)}
    return {**result, "everything": right_BF.all(dim=1).double().mean().item()}


def save(encoder: GemmaText, path: Path, told: dict[str, float]) -> None:
    """Write the file that `text_from_state_dict` and the host read: float32 tensors, tokenizer, configuration."""
    tensors = {"model." + key: value.contiguous() for key, value in encoder.model.state_dict().items()}
    spiece_model = bytearray(encoder.tokenizer.serialized_model_proto())
    tensors["spiece_model"] = torch.frombuffer(spiece_model, dtype=torch.uint8)
    about = {"format": 1, "kind": "text_encoder", "config": encoder.config.to_dict(), "accuracy": told,
             "source_sha256": ""}
    write_safetensors(path, tensors, {"jodi": json.dumps(about)}, overwrite=True)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.text_encoder", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting weights (default %(default)s)")
    options = parser.parse_args(arguments)
    encoder = new_encoder(options.seed)
    heads = train(encoder, options.steps)
    told = accuracy(encoder, heads)
    save(encoder, options.output, told)
    print(f"{options.output}: " + ", ".join(f"{name} {share:.3f}" for name, share in told.items()))


if __name__ == "__main__":
    main()
