"""The Jodi transformer and its sampler spelled out: every domain computed always, one sample, one guidance branch and
one step at a time, attention as full score matrices, nothing kept for later. Slow on purpose: the product is compared
with it, by tests/core/test_jodi.py and by performance.py.

Weights are a dictionary in the published names. Letters: L domains, N tokens per domain, C channels, M text tokens,
h x w latent, H x W token grid.
"""

import math

import torch
import torch.nn.functional as F

GENERATE, CONDITION, IGNORE = 0, 1, 2


class DenseJodi:
    def __init__(self, model):
        """Of a JodiTransformer only the configuration and the weights are used."""
        self.config = model.config
        self.weights = {name: value.detach() for name, value in model.state_dict().items()}

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def batch(self, x_BLChw, t_B, y_BMW, role_BL, lengths_B, clean_BLChw):
        """Velocities (B, L, C, h, w), zeros where nothing is generated. lengths_B: valid text tokens per row."""
        rows = [self.row(*row) for row in zip(x_BLChw, t_B, y_BMW, role_BL.tolist(), lengths_B, clean_BLChw)]
        generated = (role_BL == GENERATE)[:, :, None, None, None]
        return torch.where(generated, torch.stack(rows), 0)

    def row(self, x_LChw, t, y_MW, role_L, length, clean_LChw):
        """Velocity (L, C, h, w) of one sample; meaningless where the role is not generate."""
        patch = self.config.patch_size
        grid = x_LChw.shape[-2] // patch, x_LChw.shape[-1] // patch
        tokens_LNC = self.tokens(x_LChw, role_L, clean_LChw, grid)
        r_LC = self.weights["role_embedder.weight"][role_L] + self.weights["domain_embedding"]
        role_L6C = self.linear("role_block.1", F.silu(r_LC)).unflatten(-1, (6, -1))
        time_C = self.time_vector(t)
        time_6C = self.linear("t_block.1", F.silu(time_C)).unflatten(-1, (6, -1))
        text_MC, attended_M = self.caption(y_MW, length, role_L)
        for number in range(self.config.depth):
            tokens_LNC = self.block(f"blocks.{number}", tokens_LNC, time_6C, role_L6C, text_MC, attended_M, role_L,
                                    grid)
        return torch.stack([self.final(i, tokens_LNC[i], time_C + r_LC[i], grid) for i in range(len(role_L))])

    # ---- before the blocks ------------------------------------------------------------------------------------

    def tokens(self, x_LChw, role_L, clean_LChw, grid):
        config = self.config
        kernel, tokens = config.patch_embed_kernel, []
        for i, role in enumerate(role_L):
            picture = clean_LChw[i] if role == CONDITION else x_LChw[i]
            name = f"x_embedders.{i}.proj"
            patches = F.conv2d(picture[None], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"],
                               stride=config.patch_size, padding=kernel // 2 if kernel else 0)
            token_NC = patches[0].flatten(1).T
            if config.use_pe:
                token_NC = token_NC + self.positions(*grid).to(token_NC)
            tokens.append(torch.zeros_like(token_NC) if role == IGNORE else token_NC)
        return torch.stack(tokens)

    def positions(self, height, width):
        """(N, C): sine and cosine of the column, then of the row, both running over the base size."""
        config = self.config
        base, quarter = config.input_size / config.patch_size, config.hidden_size // 4
        omega = torch.tensor([10000 ** (-k / quarter) for k in range(quarter)], dtype=torch.float64)
        rows = []
        for i in range(height):
            for j in range(width):
                u = torch.tensor(float(j)) / (width / base) / config.pe_interpolation     # float32
                v = torch.tensor(float(i)) / (height / base) / config.pe_interpolation
                u, v = u.double() * omega, v.double() * omega
                rows.append(torch.cat([u.sin(), u.cos(), v.sin(), v.cos()]))
        return torch.stack(rows)

    def time_vector(self, t):
        frequency = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angle = t.float() * frequency
        features = torch.cat([angle.cos(), angle.sin()]).to(t.dtype)
        return self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", features)))

    def caption(self, y_MW, length, role_L):
        """Text (M, C) and which of its tokens are attended (M,). A given image replaces both."""
        if role_L[0] == CONDITION:
            y_MW = self.weights["y_embedder.y_embedding"]
            length = len(y_MW)
        attended_M = torch.arange(len(y_MW), device=y_MW.device) < length
        hidden = F.gelu(self.linear("y_embedder.y_proj.fc1", y_MW), approximate="tanh")
        text_MC = self.linear("y_embedder.y_proj.fc2", hidden)
        if self.config.y_norm:
            text_MC = rms_norm(text_MC, self.weights["attention_y_norm.weight"], self.config.norm_eps)
        return text_MC, attended_M

    # ---- a block ----------------------------------------------------------------------------------------------

    def block(self, name, x_LNC, time_6C, role_L6C, text_MC, attended_M, role_L, grid):
        modulation_L6C = self.weights[f"{name}.scale_shift_table"] + time_6C + role_L6C
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_L6C[:, :, None].unbind(1)    # (L, 1, C)
        attended = self.self_attention(f"{name}.attn", layer_norm(x_LNC) * (1 + scale_a) + shift_a, role_L)
        x_LNC = x_LNC + gate_a * attended
        x_LNC = x_LNC + self.cross_attention(f"{name}.cross_attn", x_LNC, text_MC, attended_M)
        mixed = layer_norm(x_LNC) * (1 + scale_m) + shift_m
        return x_LNC + gate_m * torch.stack([self.mix(f"{name}.mlp", picture_NC, grid) for picture_NC in mixed])

    def self_attention(self, name, z_LNC, role_L):
        q, k, v = self.linear(f"{name}.qkv", z_LNC).chunk(3, dim=-1)
        if self.config.qk_norm:
            q, k = (rms_norm(part, self.weights[f"{name}.{which}_norm.weight"], 1e-5)
                    for part, which in ((q, "q"), (k, "k")))
        ignored_L = torch.tensor([role == IGNORE for role in role_L], device=k.device)
        k = k.masked_fill(ignored_L[:, None, None], 0)
        heads = []
        for q_SK, k_SK, v_SK in zip(*(part.flatten(0, 1).split(self.config.linear_head_dim, -1) for part in (q, k, v))):
            score_SS = F.relu(q_SK) @ F.relu(k_SK).T
            heads.append(score_SS @ v_SK / (score_SS.sum(dim=1, keepdim=True) + 1e-8))
        return self.linear(f"{name}.proj", torch.cat(heads, dim=-1)).view(z_LNC.shape)

    def cross_attention(self, name, x_LNC, text_MC, attended_M):
        q, (k, v) = self.linear(f"{name}.q_linear", x_LNC), self.linear(f"{name}.kv_linear", text_MC).chunk(2, dim=-1)
        if self.config.cross_norm:
            q, k = (rms_norm(part, self.weights[f"{name}.{which}_norm.weight"], 1e-6)
                    for part, which in ((q, "q"), (k, "k")))
        width = self.config.hidden_size // self.config.num_heads
        heads = []
        for q_LNK, k_MK, v_MK in zip(*(part.split(width, -1) for part in (q, k, v))):
            score_LNM = q_LNK @ k_MK.T / math.sqrt(width) - 10000.0 * ~attended_M
            heads.append(score_LNM.softmax(dim=-1).to(v_MK) @ v_MK)
        return self.linear(f"{name}.proj", torch.cat(heads, dim=-1))

    def mix(self, name, z_NC, grid):
        weight = {layer: self.weights[f"{name}.{layer}_conv.conv.weight"] for layer in ("inverted", "depth", "point")}
        bias = {layer: self.weights[f"{name}.{layer}_conv.conv.bias"] for layer in ("inverted", "depth")}
        z_1CHW = z_NC.T.unflatten(1, grid)[None]
        wide = F.silu(F.conv2d(z_1CHW, weight["inverted"], bias["inverted"]))
        value, gate = F.conv2d(wide, weight["depth"], bias["depth"], padding=1, groups=wide.shape[1]).chunk(2, dim=1)
        return F.conv2d(value * F.silu(gate), weight["point"])[0].flatten(1).T

    # ---- after the blocks -------------------------------------------------------------------------------------

    def final(self, i, x_NC, condition_C, grid):
        shift_C, scale_C = self.weights[f"final_layers.{i}.scale_shift_table"] + condition_C
        features_NF = self.linear(f"final_layers.{i}.linear", layer_norm(x_NC) * (1 + scale_C) + shift_C)
        (height, width), patch, channels = grid, self.config.patch_size, self.config.in_channels
        out = features_NF.new_zeros(channels, height * patch, width * patch)
        for row in range(height):
            for column in range(width):
                for py in range(patch):
                    for px in range(patch):
                        start = (py * patch + px) * channels
                        out[:, row * patch + py, column * patch + px] = \
                            features_NF[row * width + column, start:start + channels]
        return out


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms_norm(x, gain, eps):
    return gain * x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def sample(dense, noise_LChw, role_L, captions, guidance, clean_LChw, steps, shift=3.0):
    """The original's way: all domains in the solver state, a noise prediction per branch, guidance on the noise, data
    recovered from it. captions: (features (M, W), valid length) of the unconditional and the conditional branch.
    Returns the last state (L, C, h, w) with clean latents in place of the conditions."""
    levels = [1 - value for value in torch.linspace(1, 0.001, steps + 1, dtype=torch.float64).tolist()]
    times = [shift * s / (1 + (shift - 1) * s) for s in reversed(levels)]
    x, data_before, log_snr_before = noise_LChw, None, None
    for i, (t, t_next) in enumerate(zip(times, times[1:])):
        noises = [(1 - t) * dense.row(x, x.new_tensor(1000 * t), features, role_L, length, clean_LChw) + x
                  for features, length in captions]
        noise = noises[0] + guidance * (noises[1] - noises[0])
        data = (x - t * noise) / (1 - t)
        log_snr = math.log((1 - t) / t)
        if i == steps - 1:
            x = data
            break
        h = math.log((1 - t_next) / t_next) - log_snr
        direction = data
        if i > 0:
            direction = data + (data - data_before) * h / (2 * (log_snr - log_snr_before))
        x = t_next / t * x - (1 - t_next) * math.expm1(-h) * direction
        data_before, log_snr_before = data, log_snr
    given = torch.tensor([role == CONDITION for role in role_L], device=x.device)[:, None, None, None]
    return torch.where(given, clean_LChw, x)
