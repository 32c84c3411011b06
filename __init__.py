"""Jodi for ComfyUI: the entry point of the node pack, and nothing else. Importable without ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI when it loads its custom nodes; returns the extension that lists ours."""
    from .nodes import JodiExtension
    return JodiExtension()
