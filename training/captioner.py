"""Captions for the pictures of a folder that have none, written by a Dual Diffusion model."""

from jodi_core import DualDiffusionPipeline
from jodi_core.files import atomic_target

from .picture_folder import PictureFolder


def write_captions(folder: PictureFolder, model: str, device: str | None, seed: int) -> int:
    """A .txt file beside each picture without a caption, in which it can be corrected; how many.

    model: as `DualDiffusionPipeline.from_pretrained` takes it. A picture that cannot be read is left without one.
    """
    pipeline = DualDiffusionPipeline.from_pretrained(model, device=device)
    written = 0
    for line in sorted(folder.without_caption):
        picture = folder.folder / folder.lines[line][0]
        try:
            text, = pipeline.caption(picture, seed=seed)
        except (OSError, ValueError):    # its labels will say so
            continue
        if text:
            with atomic_target(picture.with_suffix(".txt"), overwrite=True) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            folder.add_caption(line, text)
            written += 1
    return written
