"""The adapters: everything that touches ComfyUI's internals. One module per host object that is built or subclassed.

model.py    MODEL: network, BaseModel, model configuration
latent.py   the latent format of MODEL, with its previews
vae.py      VAE
text.py     CLIP
sampling.py the reference solver and noise as host sampler objects
"""
