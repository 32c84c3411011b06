"""The Jodi transformer: an image and its labels, one linear attention over all of them (arXiv 2505.19084).

Two doors lead to the same blocks:
  `forward`   the published interface: all L domains in, roles per row, zeros out where nothing is generated;
  `prepare` + `velocity`   what a sampler uses: only active domains exist, and whatever does not change from step to
  step (text keys and values, role vectors, tokens of given domains) is computed once.

Every saving here is exact in real arithmetic; the letters in comments are those of docs/architecture.md.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..domains import JointRoles, Role
from .jodi_config import JodiConfig
from .layers import (CaptionEmbedder, FinalLayer, JodiBlock, PatchEmbed, TimeEmbedder, cached_position_table,
                     position_table, table_rows, time_features)

__all__ = ["JodiConfig", "JodiContext", "JodiTransformer", "module_name", "position_table", "published_name",
           "time_features"]

# Learned tables that the published files store as bare tensors. Here they are Embedding modules, because a host
# casts, offloads and patches modules only; their files keep the published names.
TABLES = ("scale_shift_table", "domain_embedding")


def published_name(key: str) -> str:
    """Name in the published files of one of our parameters."""
    return key.removesuffix(".weight") if key.removesuffix(".weight").endswith(TABLES) else key


def module_name(key: str) -> str:
    """Name of our parameter for a published key."""
    return f"{key}.weight" if key.endswith(TABLES) else key


def rename_keys(state_dict: dict, rename) -> None:
    for key in list(state_dict):
        if rename(key) != key:
            state_dict[rename(key)] = state_dict.pop(key)


@dataclass(frozen=True)
class JodiContext:
    """What stays the same during one sampling run. T text rows (branch-major), D active domains."""

    roles: JointRoles
    text: list[tuple[Tensor, Tensor]]     # keys and values per block, (T, heads, M, width) each
    mask: Tensor | None                   # (T, 1, 1, M) bool, True = attend
    role_DC: Tensor
    role_D6C: Tensor
    clean_tokens: Tensor | None           # (B or 1, given domains, N, C)
    branches: int                         # guidance branches: rows of the result per row of x
    exact_time: bool


class JodiTransformer(nn.Module):
    """See `JodiConfig` for sizes; modules come from `operations` so that a host can bring its casting layers."""

    def __init__(self, config: JodiConfig, *, device=None, dtype=None, operations=nn):
        super().__init__()
        self.config = config
        size, count = config.hidden_size, config.num_domains
        where = {"device": device, "dtype": dtype}
        self.x_embedders = nn.ModuleList(PatchEmbed(config, operations, **where) for _ in range(count))
        self.t_embedder = TimeEmbedder(size, operations, **where)
        self.t_block = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **where))
        self.domain_embedding = operations.Embedding(count, size, **where)
        self.role_embedder = operations.Embedding(len(Role), size, **where)
        self.role_block = nn.Sequential(nn.SiLU(), operations.Linear(size, 6 * size, **where))
        self.y_embedder = CaptionEmbedder(config, operations, **where)
        if config.y_norm:
            self.attention_y_norm = operations.RMSNorm(size, eps=config.norm_eps, **where)
        self.blocks = nn.ModuleList(JodiBlock(config, operations, **where) for _ in range(config.depth))
        self.final_layers = nn.ModuleList(FinalLayer(config, operations, **where) for _ in range(count))
        self.register_load_state_dict_pre_hook(lambda module, state_dict, prefix, *rest:
                                               rename_keys(state_dict, module_name))
        if operations is nn:    # a host's patcher looks parameters up by their module names
            self.register_state_dict_post_hook(lambda module, state_dict, prefix, metadata:
                                               rename_keys(state_dict, published_name))

    # ---- what stays the same over the steps -------------------------------------------------------------------

    def prepare(self, y_TMC: Tensor | None, mask_TM: Tensor | None, roles: JointRoles,
                clean_BCDHW: Tensor | None = None, *, branches: int = 1, null_rows_T: Tensor | None = None,
                attended: int | None = None, exact_time: bool = False,
                dtype: torch.dtype | None = None) -> JodiContext:
        """Everything of a sampling run that is constant.

        y_TMC         (T, M, width) text features, guidance branches first: T = branches * prompts
        mask_TM       1 where a text token is valid; None if all are
        clean_BCDHW   joint latent holding the clean latents of the condition slots (other slots unread)
        null_rows_T   True where the caption is dropped (training)
        attended      the first tokens that some row attends to, if that is known to be fewer than M
        With the image given, y, mask and branches are replaced by the stored caption: text and guidance have no
        effect then (1.7 b). dtype: of computation; default that of the clean latents or the text.
        """
        roles.require_work()
        example = clean_BCDHW if y_TMC is None else y_TMC
        dtype = dtype or example.dtype
        null_MC = self.y_embedder.y_embedding.to(example.device, dtype)
        if roles.image_given:
            y_TMC, mask_TM, branches = null_MC[None], None, 1
        elif null_rows_T is not None and null_rows_T.any():
            y_TMC, mask_TM = self.drop_captions(y_TMC, mask_TM, null_rows_T, null_MC)
        y_TMC = self.y_embedder(y_TMC.to(dtype))
        if self.config.y_norm:
            y_TMC = self.attention_y_norm(y_TMC)
        if attended is not None and mask_TM is not None:
            y_TMC, mask_TM = y_TMC[:, :attended], mask_TM[:, :attended]
        if mask_TM is not None:
            mask_TM = mask_TM.bool().repeat(y_TMC.shape[0] // mask_TM.shape[0], 1)[:, None, None]
        role_DC = table_rows(self.role_embedder, y_TMC, list(roles.active_roles)) + \
            table_rows(self.domain_embedding, y_TMC, list(roles.active))
        return JodiContext(
            roles=roles, text=[block.cross_attn.keys_values(y_TMC) for block in self.blocks], mask=mask_TM,
            role_DC=role_DC, role_D6C=self.role_block(role_DC).unflatten(-1, (6, -1)),
            clean_tokens=self.embed(clean_BCDHW.to(dtype), roles, roles.condition_slots)
            if roles.condition_slots else None, branches=branches, exact_time=exact_time)

    def drop_captions(self, y_TMC, mask_TM, null_rows_T, null_MC):
        """Dropped captions become the stored one, all of its tokens attended; the others are padded to its length."""
        pad = null_MC.shape[0] - y_TMC.shape[1]
        mask_TM = y_TMC.new_ones(y_TMC.shape[:2], dtype=torch.bool) if mask_TM is None else mask_TM.bool()
        y_TMC, mask_TM = F.pad(y_TMC, (0, 0, 0, pad)), F.pad(mask_TM, (0, pad))
        null_rows_T = null_rows_T.to(y_TMC.device)
        return torch.where(null_rows_T[:, None, None], null_MC, y_TMC), mask_TM | null_rows_T[:, None]

    def embed(self, x_BCDHW: Tensor, roles: JointRoles, slots: tuple[int, ...]) -> Tensor:
        """Tokens (B, len(slots), N, C) of some slots, position table added."""
        tokens = torch.stack([self.x_embedders[roles.active[slot]](x_BCDHW[:, :, slot]) for slot in slots], dim=1)
        if not self.config.use_pe:
            return tokens
        config, patch = self.config, self.config.patch_size
        height, width = x_BCDHW.shape[-2] // patch, x_BCDHW.shape[-1] // patch
        return tokens + cached_position_table(config.hidden_size, height, width, config.input_size // patch,
                                              config.pe_interpolation, tokens.dtype, tokens.device)

    # ---- one evaluation ---------------------------------------------------------------------------------------

    def velocity(self, x_BCDHW: Tensor, t_B: Tensor, context: JodiContext) -> Tensor:
        """v = noise - data for the active domains; zeros in condition slots.

        x_BCDHW   joint latent; its condition slots are not read
        t_B       (1,) or, without guidance branches, (B,) time in 0..1000; rounded to the dtype of x first, as the
                  published pipeline does, unless the context says exact_time
        Returns (branches * B, C, D, h, w).
        """
        roles, patch = context.roles, self.config.patch_size
        roles.check_latent(x_BCDHW)
        rows, _, _, height, width = x_BCDHW.shape
        if height % patch or width % patch:
            raise ValueError(f"latent size {height}x{width} is not divisible by the patch size {patch}")
        if context.branches > 1 and len(t_B) > 1:
            raise ValueError(f"{len(t_B)} times with {context.branches} guidance branches: give one time for all rows")
        tokens = self.embed(x_BCDHW, roles, roles.generated_slots)
        if context.clean_tokens is not None:
            given = context.clean_tokens.expand(rows, -1, -1, -1)
            tokens = merge_slots(tokens, given, roles.generated_slots, roles.condition_slots)
        time_BC = self.t_embedder(t_B if context.exact_time else t_B.to(x_BCDHW.dtype), tokens.dtype)
        time_B6C = self.t_block(time_BC).unflatten(-1, (6, -1))
        keep = list(roles.generated_slots) if roles.condition_slots else None
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, time_B6C, context.role_D6C, context.text[i], context.mask,
                           (height // patch, width // patch), query_slots=keep if i == len(self.blocks) - 1 else None,
                           branches=context.branches if i == 0 else 1)
        return self.unembed(tokens, time_BC, context, (height, width))

    def unembed(self, tokens_BDNC: Tensor, time_BC: Tensor, context: JodiContext, size) -> Tensor:
        """Final layer and unpatchify of the generated slots, zeros in the others."""
        (height, width), patch, channels = size, self.config.patch_size, self.config.in_channels
        rows = tokens_BDNC.shape[0]
        out = tokens_BDNC.new_zeros(rows, channels, len(context.roles.active), height, width)
        for i, slot in enumerate(context.roles.generated_slots):
            patches = self.final_layers[context.roles.active[slot]](tokens_BDNC[:, i], time_BC + context.role_DC[slot])
            patches = patches.view(rows, height // patch, width // patch, patch, patch, channels)
            out[:, :, slot] = patches.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, height, width)
        return out

    def forward(self, x: Tensor, t: Tensor, y: Tensor, role: Tensor, mask: Tensor | None = None,
                clean_x: Tensor | None = None) -> Tensor:
        """The published interface (spec 1.1).

        x, clean_x (B, L, C, h, w); t (B,) in 0..1000; y (B, 1, M, width); role (B, L) int; mask (B, M) or
        (B, 1, 1, M), a prefix of ones per row. If x has twice the rows of role, the latter (and clean_x, mask) are
        repeated: the guidance batch, whose unconditional half so uses the conditional mask.
        Returns (B, L, C, h, w), zeros where role is not generate. Rows are evaluated in groups of equal roles.
        ValueError for shapes that do not belong together.
        """
        self.check_inputs(x, t, y, role, mask, clean_x)
        dtype = self.y_embedder.y_embedding.dtype
        x, t, y = x.to(dtype), t.to(x.device, dtype), y.to(dtype).flatten(0, 1)
        rows = x.shape[0]
        role = role.repeat(rows // role.shape[0], 1)
        clean_x = torch.zeros_like(x) if clean_x is None else clean_x.to(dtype).repeat(
            rows // clean_x.shape[0], 1, 1, 1, 1)
        attended = None
        if mask is not None:
            mask = mask.reshape(mask.shape[0], -1).repeat(rows // mask.shape[0], 1)
            attended = None if self.training else max(1, int(mask.bool().sum(1).max()))    # dropped captions have more
            mask = mask.to(x.device)
        dropped = torch.rand(rows) < self.config.class_dropout_prob if self.training else None
        groups = defaultdict(list)
        for row, pattern in enumerate(role.tolist()):
            groups[tuple(pattern)].append(row)
        out = torch.zeros_like(x)
        for pattern, index in groups.items():
            roles = JointRoles(self.config.domains, pattern)
            if not roles.generated_slots:
                continue
            x_BCDHW, clean_BCDHW = (part[index][:, list(roles.active)].transpose(1, 2) for part in (x, clean_x))
            context = self.prepare(y[index], None if mask is None else mask[index], roles, clean_BCDHW,
                                   null_rows_T=None if dropped is None else dropped[index], attended=attended)
            v_BCDHW = self.velocity(x_BCDHW, t[index], context)
            out[torch.tensor(index)[:, None], torch.tensor(roles.active)] = v_BCDHW.transpose(1, 2).to(dtype)
        return out

    def check_inputs(self, x, t, y, role, mask, clean_x) -> None:
        domains, channels = self.config.num_domains, self.config.in_channels
        if x.ndim != 5 or x.shape[1:3] != (domains, channels):
            raise ValueError(f"x is {tuple(x.shape)}, but this model takes (batch, {domains} domains, {channels} "
                             "channels, height, width)")
        if clean_x is not None and clean_x.shape[1:] != x.shape[1:]:
            raise ValueError(f"clean_x is {tuple(clean_x.shape)}, but x is {tuple(x.shape)}")
        repeats = {"t": (t, 1), "y": (y, 1), "role": (role, 2), "mask": (mask, 2), "clean_x": (clean_x, 2)}
        for name, (part, times) in repeats.items():
            if part is not None and len(x) not in (len(part), times * len(part)):
                raise ValueError(f"{name} has {len(part)} rows, but x has {len(x)}")

    # ---- training from nothing --------------------------------------------------------------------------------

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial values of the original (spec 1.6); MixFFN convolutions keep the framework's."""
        size = self.config.hidden_size
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in self.x_embedders:
            nn.init.xavier_uniform_(embedder.proj.weight.flatten(1))
        narrow = (self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.t_block[1], self.role_block[1],
                  self.y_embedder.y_proj.fc1, self.y_embedder.y_proj.fc2, self.role_embedder, self.domain_embedding)
        for module in narrow:
            nn.init.normal_(module.weight, std=0.02)
        for module in (*self.blocks, *self.final_layers):
            nn.init.normal_(module.scale_shift_table.weight, std=size ** -0.5)
        nn.init.normal_(self.y_embedder.y_embedding, std=self.config.caption_channels ** -0.5)
        if self.config.y_norm:
            nn.init.constant_(self.attention_y_norm.weight, self.config.y_norm_scale_factor)


def merge_slots(generated: Tensor, given: Tensor, generated_slots, condition_slots) -> Tensor:
    """Interleave two (B, D', N, C) tensors along the domain axis into active order."""
    slots = dict(zip((*generated_slots, *condition_slots), (*generated.unbind(1), *given.unbind(1))))
    return torch.stack([slots[slot] for slot in sorted(slots)], dim=1)
