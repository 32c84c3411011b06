"""The host's samplers on joint latents: condition slots stay as given, everything else is drawn."""

import asyncio
import json
import time
import urllib.parse

import pytest
import torch
from jodi_prompts import link, node
from stock import DRAWN, GIVEN, LIMITED, WORKS, difference, ksampler, latents, scene, stock


@stock("KSampler", WORKS,
       "with euler, dpmpp_2m, heun, deis, res_multistep, euler_ancestral, lcm, dpmpp_2m_sde and as many "
       "schedulers; dpmpp_2m is nearest to the published sampler")
@pytest.mark.parametrize("sampler, scheduler", [
    ("euler", "simple"), ("dpmpp_2m", "normal"), ("heun", "sgm_uniform"), ("deis", "beta"), ("res_multistep", "karras"),
    ("euler_ancestral", "kl_optimal"), ("lcm", "ddim_uniform"), ("dpmpp_2m_sde", "exponential")])
def test_samplers(comfy, sampler, scheduler):
    given, made = latents(comfy, scene() | {"made": ksampler(sampler_name=sampler, scheduler=scheduler)},
                          "roles", "made")
    assert difference(made[:, :, GIVEN], given[:, :, GIVEN]) < 1e-4
    drawn = made[:, :, DRAWN]
    assert drawn.isfinite().all() and drawn.std() > 0.1


@stock("KSampler with `uni_pc`", LIMITED, "stops just above zero, so given pictures come back nearly, not exactly")
def test_uni_pc(comfy):
    given, made = latents(comfy, scene() | {"made": ksampler(sampler_name="uni_pc", steps=4)}, "roles", "made")
    assert made.isfinite().all() and difference(made[:, :, GIVEN], given[:, :, GIVEN]) < 0.05


@stock("KSamplerAdvanced", WORKS, "two stages equal one; given pictures stay")
def test_two_stages(comfy):
    common = {"model": link("load"), "positive": link("roles"), "negative": link("roles", 1), "noise_seed": 1,
              "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    given, one, two = latents(comfy, scene() | {
        "one": ksampler(steps=4),
        "first": node("KSamplerAdvanced", **common, add_noise="enable", latent_image=link("roles", 2), start_at_step=0,
                      end_at_step=2, return_with_leftover_noise="enable"),
        "two": node("KSamplerAdvanced", **common, add_noise="disable", latent_image=link("first"), start_at_step=2,
                    end_at_step=10000, return_with_leftover_noise="disable")}, "roles", "one", "two")
    assert difference(two, one) < 1e-5
    assert difference(two[:, :, GIVEN], given[:, :, GIVEN]) < 1e-5


@stock("KSampler with denoise below 1", WORKS, "img2img of all generated domains at once")
def test_img2img(comfy):
    again = {"latent_image": link("first"), "seed": 2, "steps": 4}
    first, varied, fresh = latents(comfy, scene() | {
        "first": ksampler(), "varied": ksampler(**again, denoise=0.3), "fresh": ksampler(**again)},
        "first", "varied", "fresh")
    assert difference(varied[:, :, GIVEN], first[:, :, GIVEN]) < 1e-5
    assert 1e-3 < (varied - first).abs().mean() < (fresh - first).abs().mean()


@stock("KSampler on a batch", WORKS, "the first row is what it is alone")
def test_batch(comfy):
    single, = latents(comfy, scene() | {"made": ksampler()}, "made")
    several, = latents(comfy, scene(batch=3) | {"made": ksampler()}, "made")
    assert len(several) == 3 and difference(several[:1], single) < 1e-4
    assert (several[1] - several[0])[:, DRAWN].std() > 0.1


def custom(guider: dict, **changes) -> dict:
    return scene() | {
        "guider": guider, "noise": node("RandomNoise", noise_seed=1),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=link("load"), scheduler="simple", steps=2, denoise=1.0),
        "made": node("SamplerCustomAdvanced", **{
            "noise": link("noise"), "guider": link("guider"), "sampler": link("sampler"), "sigmas": link("sigmas"),
            "latent_image": link("roles", 2)} | changes)}


CFG_GUIDER = node("CFGGuider", model=link("load"), positive=link("roles"), negative=link("roles", 1), cfg=3.0)


@stock("SamplerCustomAdvanced, CFGGuider, BasicScheduler, KSamplerSelect, RandomNoise", WORKS, "equal to KSampler")
def test_custom_sampling(comfy):
    plain, made = latents(comfy, custom(CFG_GUIDER) | {"plain": ksampler()}, "plain", "made")
    assert difference(made, plain) < 1e-6


@stock("SamplerCustomAdvanced with Jodi Sampler, Sigmas and Noise", WORKS,
       "equal to Jodi Joint Sampler; through it the recorded trajectories of the original are met "
       "(tests/nodes/test_custom_sampling.py)")
def test_our_parts(comfy):
    ours = custom(CFG_GUIDER) | {
        "noise": node("JodiNoise", seed=1, kind="same for every role choice"), "sampler": node("JodiSampler"),
        "sigmas": node("JodiSigmas", model=link("load"), steps=2, denoise=1.0),
        "joint": node("JodiJointSampler", model=link("load"), positive=link("roles"), negative=link("roles", 1),
                      latent_image=link("roles", 2), seed=1, steps=2, cfg=3.0)}
    made, expected = latents(comfy, ours, "made", "joint")
    assert torch.equal(made, expected)


@stock("BasicGuider", WORKS, "equal to cfg 1")
def test_basic_guider(comfy):
    guider = node("BasicGuider", model=link("load"), conditioning=link("roles"))
    plain, made = latents(comfy, custom(guider) | {"plain": ksampler(cfg=1.0)}, "plain", "made")
    assert difference(made, plain) < 1e-5


@stock("SplitSigmas, DisableNoise", WORKS, "two stages equal one")
def test_split_sigmas(comfy):
    prompt = custom(CFG_GUIDER, sigmas=link("split")) | {
        "split": node("SplitSigmas", sigmas=link("sigmas"), step=1), "quiet": node("DisableNoise"), "plain": ksampler()}
    prompt["second"] = node("SamplerCustomAdvanced", **prompt["made"]["inputs"] | {
        "noise": link("quiet"), "sigmas": link("split", 1), "latent_image": link("made")})
    plain, second = latents(comfy, prompt, "plain", "second")
    assert difference(second, plain) < 1e-5


@stock("live previews", WORKS, "a picture per step, with the method 'latent2rgb'")
def test_live_previews(comfy):
    aiohttp = pytest.importorskip("aiohttp")
    prompt = scene() | {"made": ksampler(seed=time.time_ns() % 2**40, steps=3)}
    prompt["save"] = node("SaveLatent", samples=link("made"), filename_prefix="latents/previewed")

    async def pictures() -> list[bytes]:
        address = f"{comfy.url}/ws?" + urllib.parse.urlencode({"clientId": "previews"})
        received = []
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            await session.post(comfy.url + "/prompt", json={
                "prompt": prompt, "client_id": "previews", "extra_data": {"preview_method": "latent2rgb"}})
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    received.append(message.data)
                elif json.loads(message.data)["type"] in ("execution_success", "execution_error"):
                    return received

    previews = asyncio.run(asyncio.wait_for(pictures(), 60))
    assert len(previews) >= 2 and all(b"\xff\xd8\xff" in preview for preview in previews)    # JPEG


@stock("interrupt", WORKS, "stops the sampler; the next prompt runs as ever")
def test_interrupt(comfy):
    prompt = scene() | {"made": ksampler(steps=1000)}
    prompt["save"] = node("SaveLatent", samples=link("made"), filename_prefix="latents/never")
    started = comfy.queue(prompt)
    while not comfy.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(0.7)    # all before the sampler is cached
    comfy.post("/interrupt", {})
    messages = dict(comfy.wait(started, patience=30)["status"]["messages"])
    assert messages["execution_interrupted"]["node_type"] == "KSampler"
    assert torch.is_tensor(latents(comfy, scene() | {"made": ksampler()}, "made")[0])
