"""Models that are folders of several files, in the host's folder for those of diffusers."""

import os
from pathlib import Path

import folder_paths

FOLDER = "diffusers: "    # before their names in a list of choices


def model_folders(parts: set[str]) -> dict[str, str]:
    """Choice -> path of every folder that has these sub-folders."""
    found = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for folder, inside, _ in os.walk(root, followlinks=True):
            if parts <= set(inside):
                found.setdefault(FOLDER + Path(folder).relative_to(root).as_posix(), folder)
    return found
