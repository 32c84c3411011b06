"""What the trainer asks of a family of models. Everything else is the same for all of them.

A further family adds an entry here and in `config_families.FAMILIES`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from jodi_core.domains import JointConfig

from . import (dual_losses, dual_model, dual_source, dual_toy, jointnet_encoders, jointnet_losses, jointnet_model,
               jointnet_pictures, losses, model, order, pictures, toy)
from .losses import JointLoss
from .source import Source


@dataclass(frozen=True)
class Family:
    """The functions of one family; those of `model.py` and `losses.py` say what they take. The last five are the same
    for all that make pictures of pictures."""

    starting_config: Callable[..., JointConfig]    # of the model that a run starts from, without its weights
    make_model: Callable[..., nn.Module]
    choose_trained: Callable[..., None]            # freezes what the mode does not train
    blocks: Callable[..., Iterable[nn.Module]]     # that can be recomputed in the backward pass
    make_loss: Callable[..., JointLoss]            # around a model
    draw_roles: Callable                           # of a task
    draw_question: Callable
    write: Callable[..., None]                     # a trained model as a file
    encoders: Callable | None = None               # others than `encoders.Encoders`
    cache_toys: Callable = toy.cache_toys
    open_toys: Callable[..., Source] = toy.open_toys
    open_pictures: Callable[..., Source] = pictures.open_pictures
    make_order: Callable = order.by_size
    pipeline: Callable = model.pipeline            # of a model and encoders, to make pictures with
    caption_tokens: Callable[..., int] = model.caption_tokens    # that a model of a configuration reads


FAMILY = {
    "jodi": Family(model.starting_config, model.make_model, model.choose_trained, model.blocks, losses.make_loss,
                   losses.draw_task_roles, losses.draw_question, model.write),
    "jointnet": Family(jointnet_model.starting_config, jointnet_model.make_model, jointnet_model.choose_trained,
                       jointnet_model.blocks, jointnet_losses.make_loss, jointnet_losses.draw_task_roles,
                       jointnet_losses.draw_question, jointnet_model.write, jointnet_encoders.open_encoders,
                       pipeline=jointnet_pictures.JointNetPictures, caption_tokens=jointnet_model.caption_tokens),
    "dual_diffusion": Family(dual_model.starting_config, dual_model.make_model, dual_model.choose_trained,
                             dual_model.blocks, dual_losses.make_loss, dual_losses.draw_task_roles,
                             dual_losses.draw_question, dual_model.write, dual_model.open_encoders,
                             dual_toy.cache_toys, dual_toy.ToyTexts, dual_source.DualSource, order.by_task,
                             caption_tokens=dual_model.caption_tokens),
}
