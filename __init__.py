"""Jodi for ComfyUI: the entry point of the node pack, and nothing else. Importable without ComfyUI."""

WEB_DIRECTORY = "./web"
OLDEST_HOST = (0, 27)


async def comfy_entrypoint():
    """Called by ComfyUI when it loads its custom nodes; returns the extension that lists ours."""
    from comfyui_version import __version__
    if tuple(map(int, __version__.split(".")[:2])) < OLDEST_HOST:
        raise RuntimeError(f"Jodi needs ComfyUI {'.'.join(map(str, OLDEST_HOST))} or newer, but this is {__version__}: "
                           "update ComfyUI")
    from .nodes import JodiExtension
    return JodiExtension()
