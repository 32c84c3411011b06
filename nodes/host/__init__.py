"""The adapters: everything that touches ComfyUI's internals. One module per host object that is built or subclassed.

model.py    MODEL: network, BaseModel, model configuration
latent.py   the latent format of MODEL, with its previews
vae.py      VAE
text.py     CLIP
dual_diffusion.py, dual_diffusion_text.py, picture_vae.py   MODEL, CLIP and VAE of Dual Diffusion, whose latents are
            pictures without a domain axis;  writing.py: its texts;  progress.py: drafts under a node
sampling.py the reference solver and noise as host sampler objects
"""
