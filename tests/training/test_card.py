"""The model card of an export, and its upload."""

import json
from dataclasses import replace

import huggingface_hub
import pytest

from training import card
from training.config import StartConfig, TrainConfig
from training.config_file import load_config

LINES = [{"step": 2, "loss": 0.5}, {"step": 2, "eval/loss": 0.25}, {"step": 4, "eval/loss": 0.125},
         {"step": 6, "eval/loss": 9.0}]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    start = StartConfig(autoencoder=str(tmp_path / "secret" / "ae.safetensors"))
    return TrainConfig(output=str(tmp_path), mode="lora", start=start)


def test_a_card_says_what_it_is_and_how_to_use_it(config):
    text = card.card(config, "mine.safetensors", 4, merged=False)
    assert text.startswith("---\nbase_model: VIPL-GENUN/Jodi\n") and "models/loras" in text
    assert "| loss | 0.125 |" in text and "9" not in text.split("## Configuration")[0].replace("9.", "")
    assert "secret" not in text and "ae.safetensors" in text, "nothing of the machine"
    settings = json.loads(text.split("```json")[1].split("```")[0])
    assert settings["mode"] == "lora" and settings["adapter"]["rank"] == 16
    assert "models/diffusion_models" in card.card(config, "mine.safetensors", 4, merged=True)


def test_a_card_of_a_model_from_elsewhere_names_no_base(config):
    text = card.card(replace(config, start=StartConfig(weights="/data/own.safetensors")), "a.safetensors", 0, True)
    assert "base_model" not in text and "`own.safetensors`" in text and "Evaluation" not in text


def test_upload_is_one_commit_with_the_card(config, tmp_path, monkeypatch):
    seen = {}

    class Hub:
        def create_repo(self, repo, **options):
            seen.update(options, repo=repo)

        def create_commit(self, repo, operations, commit_message):
            seen["files"] = {one.path_in_repo: one.path_or_fileobj for one in operations}
            return type("Commit", (), {"commit_url": "address"})
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    assert card.upload("me/mine", file, "text", private=True) == "address"
    assert seen == {"repo": "me/mine", "private": True, "exist_ok": True,
                    "files": {"README.md": b"text", "mine.safetensors": str(file)}}


def test_without_the_hub_the_file_is_kept(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(ValueError, match="is written, but was not uploaded to me/mine"):
        card.upload("me/mine", file, "text", private=False)
    assert file.read_bytes() == b"weights"


def test_cards_of_the_shipped_configurations(request):
    for path in sorted((request.config.rootpath / "training" / "configs").glob("*.toml")):
        assert card.card(load_config(path), "x.safetensors", 0, False).count("```") == 2
