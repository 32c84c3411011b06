"""A start from which a small U-Net soon predicts noise.

Nearly all of what a network predicts at high noise levels is its input. A wide U-Net finds out how to hand it through;
a narrow one, whose every layer normalises, needs most of a short training for it. Here the first and the last
convolution do so from the first step: every latent channel goes through the outermost skip connection twice, with both
signs, and u = SiLU(u) - SiLU(-u). Everything stays trainable.
"""

import torch

from jodi_core.jointnet.network import JointNet


@torch.no_grad()
def pass_through(model: JointNet) -> None:
    """Both branches predict their own noisy latents, normalised, until they learn better.

    ValueError if the first level is too narrow for two copies of the latents.
    """
    config = model.config
    width, latent = config.channels[0], config.in_channels
    if width < 2 * latent:
        raise ValueError(f"start.pass_through needs a first level of {2 * latent} channels, twice the {latent} of the "
                         f"latents, but model.channels begins with {width}")
    pairs_WC = torch.zeros(width, latent)
    pairs_WC[:2 * latent] = torch.eye(latent).repeat_interleave(2, dim=0)
    pairs_WC[1:2 * latent:2] *= -1
    for branch in model.branches:
        for convolution, matrix in ((branch.conv_in, pairs_WC), (branch.conv_out, pairs_WC.T)):
            convolution.weight.zero_()
            convolution.weight[..., 1, 1] = matrix
            convolution.bias.zero_()
        last = branch.up_blocks[-1].resnets[-1]
        last.conv2.weight.zero_()
        last.conv2.bias.zero_()
        last.conv_shortcut.weight.zero_()
        last.conv_shortcut.weight[:, -width:, 0, 0] = torch.eye(width)
        last.conv_shortcut.bias.zero_()
