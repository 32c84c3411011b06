"""The set-up's bookkeeping and the workflow converter, without a network or a server."""

import pytest

from scripts import environment
from scripts.workflow import to_prompt


@pytest.fixture
def quick(monkeypatch):
    """Set-ups without pip: the list grows by one at each installation."""
    done = []

    def make_venv(folder):
        python = environment.venv_python(folder)
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "install", lambda python, folder: done.append(python))
    return done


def test_setup_is_made_once(tmp_path, quick):
    assert environment.ensure(tmp_path) == environment.ensure(tmp_path) == quick[0]
    assert len(quick) == 1


def test_what_the_tests_need_comes_on_top_once(tmp_path, quick, monkeypatch):
    extra = []
    monkeypatch.setattr(environment, "install_for_tests", lambda python, folder: extra.append(folder))
    environment.ensure(tmp_path)
    assert not extra, "the demo does without"
    for _ in range(2):
        assert environment.ensure_for_tests(tmp_path) == quick[0]
    assert extra == [tmp_path / ".comfyui"]
    monkeypatch.setattr(environment, "fingerprint", lambda: "other pins")
    environment.ensure_for_tests(tmp_path)
    assert len(quick) == len(extra) == 2


def test_killed_setup_starts_afresh(tmp_path, quick, monkeypatch):
    def killed(python, folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "install", killed)
        with pytest.raises(KeyboardInterrupt):
            environment.ensure(tmp_path)
    environment.ensure(tmp_path)
    assert len(quick) == 1 and not (tmp_path / ".comfyui" / "half").exists()


def test_setup_for_other_pins_is_replaced(tmp_path, quick, monkeypatch):
    environment.ensure(tmp_path)
    monkeypatch.setattr(environment, "fingerprint", lambda: "other pins")
    environment.ensure(tmp_path)
    assert len(quick) == 2


def test_foreign_environment_is_left_alone(tmp_path, quick):
    (tmp_path / ".venv").mkdir()
    with pytest.raises(environment.SetupError, match="move it away"):
        environment.ensure(tmp_path)
    assert (tmp_path / ".venv").is_dir() and not quick


def test_only_named_packages_are_left_out():
    lines = ["torch", "torchsde", "torch>=2", "comfyui-embedded-docs==0.5.9", "comfyui-frontend-package==1.47.12"]
    kept = [line for line in lines if not environment.is_for(line, environment.NOT_NEEDED)]
    assert kept == ["torchsde", "comfyui-frontend-package==1.47.12"]


OBJECT_INFO = {
    "Switch": {"input": {"required": {
        "vae": ["VAE", {}],
        "mode": ["COMFY_DYNAMICCOMBO_V3", {"options": [
            {"key": "plain", "inputs": {"required": {}}},
            {"key": "scaled", "inputs": {"required": {"image": ["IMAGE", {}], "scale": ["FLOAT", {}]}}}]}],
        "seed": ["INT", {"control_after_generate": True}],
        "name": [["a", "b"], {}]}}},
    "Source": {"input": {}},
}


def workflow(values, mode=0):
    return {
        "links": [[7, 1, 0, 2, 0, "VAE"], [8, 1, 1, 2, 1, "IMAGE"]],
        "nodes": [
            {"id": 1, "type": "Source"},
            {"id": 2, "type": "Switch", "mode": mode, "widgets_values": values, "inputs": [
                {"name": "vae", "link": 7}, {"name": "mode.image", "link": 8}, {"name": "name", "link": None}]},
            {"id": 3, "type": "Note", "widgets_values": ["read me"]}],
    }


def test_workflow_values_get_their_names():
    prompt = to_prompt(workflow(["scaled", 0.5, 42, "fixed", "b"]), OBJECT_INFO)
    assert prompt["2"] == {"class_type": "Switch", "inputs": {
        "vae": ["1", 0], "mode": "scaled", "mode.scale": 0.5, "mode.image": ["1", 1], "seed": 42, "name": "b"}}
    assert set(prompt) == {"1", "2"}


def test_muted_nodes_do_not_run():
    assert set(to_prompt(workflow(["plain", 1, "fixed", "a"], mode=2), OBJECT_INFO)) == {"1"}


def test_workflow_of_another_version_is_refused():
    with pytest.raises(ValueError, match="mode has no choice 'old'"):
        to_prompt(workflow(["old", 1, "fixed", "a"]), OBJECT_INFO)
    with pytest.raises(KeyError, match="has no node Switch"):
        to_prompt(workflow(["plain", 1, "fixed", "a"]), {"Source": {"input": {}}})
