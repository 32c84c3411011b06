"""Picture and text as domains: which of them is given and which is made.

The text has no slot in the joint latent: it is a sequence of token numbers, and a blank among them what a masked part
is to a picture (see `words`).
"""

from collections.abc import Sequence

from ..domains import JointRoles

DOMAINS = IMAGE, TEXT = ("image", "text")
PICTURE_FROM_TEXT = JointRoles.of(DOMAINS, generate=[IMAGE], condition=[TEXT])
TEXT_FROM_PICTURE = JointRoles.of(DOMAINS, generate=[TEXT], condition=[IMAGE])


def roles_of(generate: Sequence[str], image_given: bool) -> JointRoles:
    """Roles by name; a text that is not generated is given, if only an empty one.

    ValueError unless one of the two is made of the other: never both at once, and no text without a picture.
    """
    roles = JointRoles.of(DOMAINS, generate, [IMAGE] * image_given + [TEXT] * (TEXT not in generate))
    if roles not in (PICTURE_FROM_TEXT, TEXT_FROM_PICTURE):
        told = ", ".join(f"{name} {role.name.lower()}" for name, role in zip(roles.domains, roles.roles))
        raise ValueError(f"Dual Diffusion cannot do this: {told}. Generate the image of a text, or the text of a "
                         "given image")
    return roles
