"""The Jodi transformer against the dense computation, and each of its savings against the work that it saves."""

import pytest
import torch

from benchmarks.dense import DenseJodi, sample
from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from jodi_core.sampling import flow_timesteps, guided, sample_flow_dpm

SMALL = dict(hidden_size=64, depth=2, num_heads=4, in_channels=4, input_size=8, caption_channels=24,
             model_max_length=10, y_norm_scale_factor=1.0)
FLOAT64, FLOAT32 = 1e-12, 3e-6    # largest difference over largest value
TIME = 312.5

JOINT, CONTROL, PERCEIVE = [0] * 8, [0, 2, 2, 1, 2, 1, 2, 2], [1, 2, 2, 0, 2, 2, 0, 2]
MIXED, NOTHING, ONLY_GIVEN = [0, 1, 2, 0, 2, 1, 2, 0], [2] * 8, [1] * 4 + [2] * 4


def random_model(dtype=torch.float64, **changes) -> JodiTransformer:
    """All weights random and of a size at which every one of them shows in the result."""
    torch.manual_seed(3)
    model = JodiTransformer(JodiConfig(**SMALL | changes), dtype=dtype).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        gain = "norm" in name
        value.normal_(std=0.3 if value.ndim == 1 or "table" in name else 1.5 * value[0].numel() ** -0.5).add_(gain)
    return model


def inputs(model, rows, size=(4, 6), tokens=10):
    """x, t, y (rows, tokens, width), clean_x."""
    generator, config = torch.Generator().manual_seed(5), model.config
    dtype = model.y_embedder.y_embedding.dtype

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)
    shape = rows, config.num_domains, config.in_channels, *size
    return (draw(*shape), torch.linspace(20, 990, rows, dtype=dtype), draw(rows, tokens, config.caption_channels),
            draw(*shape))


def prefix(lengths, tokens=10):
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


def relative(found, expected):
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def joint(full_BLChw, roles):
    return roles.keep_active(full_BLChw.transpose(1, 2))


@pytest.fixture
def calls():
    """calls(module) is a list that will hold the first argument of every call of the module."""
    handles = []

    def watch(module):
        seen = []
        handles.append(module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0])))
        return seen
    yield watch
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def dense(model):
    return DenseJodi(model)


# ---- the published interface ------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    {}, {"patch_size": 2}, {"patch_size": 4}, {"patch_embed_kernel": 3}, {"patch_size": 2, "patch_embed_kernel": 5},
    {"qk_norm": True}, {"cross_norm": True}, {"y_norm": False}, {"use_pe": False}, {"pe_interpolation": 0.5},
    {"depth": 1}, {"linear_head_dim": 16, "num_heads": 2, "mlp_ratio": 1.3},
], ids=str)
def test_rows_of_different_roles_equal_the_dense_computation(changes):
    model = random_model(**changes)
    role = torch.tensor([MIXED, JOINT, PERCEIVE, CONTROL, NOTHING, MIXED, ONLY_GIVEN])
    lengths = [3, 10, 5, 1, 4, 8, 2]
    x, t, y, clean_x = inputs(model, len(role), size=(4, 8))
    expected = DenseJodi(model).batch(x, t, y, role, lengths, clean_x)
    found = model(x, t, y[:, None], role, prefix(lengths), clean_x)
    assert relative(found, expected) < FLOAT64
    assert not found[4].any() and not found[6].any(), "nothing generated, nothing returned"


@pytest.mark.parametrize("labels", [0, 3, 9])
def test_any_number_of_domains(labels):
    model = random_model(domains=tuple(f"domain {i}" for i in range(1 + labels)))
    generator = torch.Generator().manual_seed(labels)
    role = torch.cat([torch.zeros(1, 1 + labels, dtype=int),
                      torch.randint(0, 3, (4, 1 + labels), generator=generator)])
    x, t, y, clean_x = inputs(model, 5)
    expected = DenseJodi(model).batch(x, t, y, role, [10] * 5, clean_x)
    assert relative(model(x, t, y[:, None], role, clean_x=clean_x), expected) < FLOAT64


def test_float32_stays_close_to_the_dense_float64(dense):
    role, lengths = torch.tensor([MIXED, JOINT, PERCEIVE]), [3, 10, 5]
    single = random_model(torch.float32)
    x, t, y, clean_x = inputs(single, 3)
    double = DenseJodi(single)
    double.weights = {name: value.double() for name, value in double.weights.items()}
    expected = double.batch(x.double(), t.double(), y.double(), role, lengths, clean_x.double())
    assert relative(single(x, t, y[:, None], role, prefix(lengths), clean_x).double(), expected) < FLOAT32


def test_guidance_batch_repeats_roles_masks_and_clean_latents(model, dense):
    role, lengths = torch.tensor([CONTROL, PERCEIVE]), [4, 7]
    x, t, y, clean_x = inputs(model, 2)
    null = torch.randn_like(y)
    expected = torch.cat([dense.batch(x, t, text, role, lengths, clean_x) for text in (null, y)])
    found = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, y])[:, None], role,
                  prefix(lengths)[:, None, None].int(), clean_x)
    assert relative(found, expected) < FLOAT64


def test_without_clean_latents_the_conditions_are_zero(model, dense):
    x, t, y, _ = inputs(model, 1)
    expected = dense.batch(x, t, y, torch.tensor([CONTROL]), [10], torch.zeros_like(x))
    assert relative(model(x, t, y[:, None], torch.tensor([CONTROL])), expected) < FLOAT64


def test_a_transposed_size_gets_its_own_position_table(model, dense):
    """Both have 24 tokens: a table kept by token count would be the other one's."""
    role = torch.tensor([JOINT])
    for size in ((4, 6), (6, 4), (2, 12), (4, 6)):
        x, t, y, clean_x = inputs(model, 1, size)
        assert relative(model(x, t, y[:, None], role), dense.batch(x, t, y, role, [10], clean_x)) < FLOAT64


@pytest.mark.parametrize("change, message", [
    ({"x": (2, 7, 4, 4, 6)}, "8 domains"), ({"x": (2, 8, 3, 4, 6)}, "4 channels"), ({"x": (3, 8, 4, 4, 6)}, "rows"),
    ({"role": (3, 8)}, "role has 3 rows"), ({"mask": (3, 10)}, "mask has 3 rows"), ({"role": (2, 7)}, "7 roles for 8"),
    ({"clean_x": (2, 8, 4, 6, 4)}, "clean_x is"), ({"y": (1, 1, 10, 24)}, "y has 1 rows"), ({"t": (1,)}, "t has 1 "),
])
def test_shapes_that_do_not_belong_together_are_refused(model, change, message):
    shapes = {"x": (2, 8, 4, 4, 6), "t": (2,), "y": (2, 1, 10, 24), "role": (2, 8), "mask": (2, 10),
              "clean_x": (2, 8, 4, 4, 6)} | change
    values = {name: torch.zeros(shape, dtype=int if name in ("role", "mask") else torch.float64)
              for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        model(**values)


def test_a_size_that_the_patches_do_not_divide_is_refused():
    model = random_model(patch_size=4)
    x, t, y, _ = inputs(model, 1, size=(6, 8))
    with pytest.raises(ValueError, match="6x8 is not divisible by the patch size 4"):
        model(x, t, y[:, None], torch.tensor([JOINT]))


# ---- exact equivalences (spec 1.7), by the sampler's door -----------------------------------------------------------

def test_a_ignored_domains_never_enter_the_sequence(model, dense, calls):
    roles = JointRoles(model.config.domains, MIXED)
    x, t, y, clean_x = inputs(model, 3)
    tokens = calls(model.blocks[0])
    found = model.velocity(joint(x, roles), t, model.prepare(y, None, roles, joint(clean_x, roles)))
    expected = dense.batch(x, t, y, torch.tensor([MIXED] * 3), [10] * 3, clean_x)
    assert relative(found, joint(expected, roles)) < FLOAT64
    assert tokens[0].shape == (3, len(roles.active), 4 * 6, 64)


def test_b_with_the_image_given_text_and_guidance_have_no_effect(model, dense):
    roles, role = JointRoles(model.config.domains, PERCEIVE), torch.tensor([PERCEIVE])
    x, t, y, clean_x = inputs(model, 1)
    null, clean = torch.randn_like(y), joint(clean_x, roles)
    unconditional, conditional = (dense.batch(x, t, text, role, [length], clean_x)
                                  for text, length in ((null, 10), (y, 3)))
    assert torch.equal(unconditional, conditional)
    silent = model.velocity(joint(x, roles), t, model.prepare(None, None, roles, clean))
    assert relative(silent, joint(unconditional + 4.5 * (conditional - unconditional), roles)) < FLOAT64
    context = model.prepare(torch.cat([null, y]), prefix([3]), roles, clean, branches=2)
    assert context.branches == 1 and torch.equal(model.velocity(joint(x, roles), t, context), silent)


def test_c_e_h_constants_are_computed_once_for_all_steps(model, dense, calls):
    """Text keys and values, role vectors, tokens of given domains: none of their modules runs in a step."""
    roles, role = JointRoles(model.config.domains, CONTROL), torch.tensor([CONTROL])
    x, _, y, clean_x = inputs(model, 1)
    condition = roles.active[roles.condition_slots[0]]
    once = [model.y_embedder, model.role_block, model.role_embedder, model.domain_embedding,
            model.x_embedders[condition], *(block.cross_attn.kv_linear for block in model.blocks)]
    counts = [calls(module) for module in once]
    time_block = calls(model.t_block)
    context = model.prepare(y, prefix([6]), roles, joint(clean_x, roles))
    for t in (999.0, 500.5, 3.0):
        t_1 = torch.tensor([t], dtype=x.dtype)
        found = model.velocity(joint(x, roles), t_1, context)
        assert relative(found, joint(dense.batch(x, t_1, y, role, [6], clean_x), roles)) < FLOAT64
    assert [len(count) for count in counts] == [1] * len(once)
    assert [part.shape[0] for part in time_block] == [1] * 3


def test_c2_only_the_valid_prefix_of_the_text_matters(model, dense):
    roles = JointRoles(model.config.domains, JOINT)
    x, t, y, clean_x = inputs(model, 1)
    expected = dense.batch(x, t, y, torch.tensor([JOINT]), [4], clean_x)
    for text, mask in ((y[:, :4], None), (y, prefix([4])), (y[:, :7], prefix([4], 7))):
        found = model.velocity(joint(x, roles), t, model.prepare(text, mask, roles))
        assert relative(found, joint(expected, roles)) < FLOAT64


def test_c2_the_published_interface_computes_keys_of_attended_tokens_only(model, dense):
    x, t, y, clean = inputs(model, rows=2)
    role, keys = torch.tensor([JOINT, CONTROL]), []
    norm = model.blocks[0].cross_attn.k_norm
    handle = norm.register_forward_pre_hook(lambda module, args: keys.append(args[0].shape[1]))
    found = model(x, t, y[:, None], role, prefix([4, 6]).long(), clean)
    handle.remove()
    assert keys == [6, 6]
    assert relative(found, dense.batch(x, t, y, role, torch.tensor([4, 6]), clean)) < FLOAT64


@pytest.mark.parametrize("depth", [1, 3])
def test_d_the_last_block_computes_conditions_as_keys_only(depth, calls):
    model = random_model(depth=depth)
    roles = JointRoles(model.config.domains, MIXED)
    x, t, y, clean_x = inputs(model, 2)
    last, given = model.blocks[-1], model.final_layers[roles.active[roles.condition_slots[0]]]
    queries, mixed, finals = (calls(module) for module in (last.cross_attn, last.mlp, given))
    found = model.velocity(joint(x, roles), t, model.prepare(y, None, roles, joint(clean_x, roles)))
    expected = DenseJodi(model).batch(x, t, y, torch.tensor([MIXED] * 2), [10] * 2, clean_x)
    assert relative(found, joint(expected, roles)) < FLOAT64
    generated = len(roles.generated_slots)
    assert queries[0].shape[1] == mixed[0].shape[1] == generated and not finals


@pytest.mark.parametrize("role", [JOINT, MIXED])
@pytest.mark.parametrize("depth", [1, 2])
def test_f_guidance_branches_share_the_first_self_attention(role, depth, calls):
    model = random_model(depth=depth)
    roles, dense = JointRoles(model.config.domains, role), DenseJodi(model)
    x, _, y, clean_x = inputs(model, 2)
    t, null = torch.tensor([TIME], dtype=x.dtype), torch.randn_like(y)
    attention = [calls(block.attn) for block in model.blocks]
    context = model.prepare(torch.cat([null, y]), prefix([4, 9]), roles, joint(clean_x, roles), branches=2)
    found = model.velocity(joint(x, roles), t, context)
    expected = [dense.batch(x, t.expand(2), text, torch.tensor([role] * 2), [4, 9], clean_x) for text in (null, y)]
    assert relative(found, joint(torch.cat(expected), roles)) < FLOAT64
    assert [len(seen[0]) for seen in attention] == [2, 4][:depth]


def test_f_two_branches_take_one_time(model):
    roles = JointRoles(model.config.domains, JOINT)
    x, t, y, _ = inputs(model, 2)
    with pytest.raises(ValueError, match="one time for all rows"):
        model.velocity(joint(x, roles), t, model.prepare(torch.cat([y, y]), None, roles, branches=2))


def test_g_the_state_of_given_domains_is_never_read(model):
    roles = JointRoles(model.config.domains, MIXED)
    x, t, y, clean_x = inputs(model, 2)
    context = model.prepare(y, None, roles, joint(clean_x, roles))
    broken = joint(x, roles).clone()
    broken[:, :, list(roles.condition_slots)] = torch.nan
    found = model.velocity(broken, t, context)
    assert torch.equal(found, model.velocity(joint(x, roles), t, context))
    assert not found[:, :, list(roles.condition_slots)].any()


def test_j_the_direct_solver_form_gives_the_original_sampling_run(model, dense):
    """The product's state is float32 whatever the model: that is what is left of the difference."""
    roles = JointRoles(model.config.domains, CONTROL)
    x, _, y, clean_x = inputs(model, 1)
    null = torch.randn_like(y)
    expected = sample(dense, x[0], CONTROL, [(null[0], 6), (y[0], 6)], 4.5, clean_x[0], steps=6)
    context = model.prepare(torch.cat([null, y]), prefix([6]), roles, joint(clean_x, roles), branches=2)
    state = sample_flow_dpm(guided(lambda x, t: model.velocity(x.double(), torch.tensor([1000 * t]).double(), context),
                                   4.5), joint(x, roles), flow_timesteps(6))
    generated = list(roles.generated_slots)
    assert relative(state[0].double()[:, generated], joint(expected[None], roles)[0][:, generated]) < 1e-5


def test_k_pictures_of_one_prompt_share_its_text_and_conditions(model, dense):
    """Two prompts with three pictures each: two rows of text, one of clean latents."""
    roles, role = JointRoles(model.config.domains, CONTROL), torch.tensor([CONTROL] * 6)
    x, t, y, clean_x = inputs(model, 6)
    y, clean_x = y[:2], clean_x[:1]
    context = model.prepare(y, prefix([4, 9]), roles, joint(clean_x, roles))
    assert len(context.text[0][0]) == 2 and len(context.clean_tokens) == 1
    expected = dense.batch(x, t, y.repeat_interleave(3, dim=0), role, [4] * 3 + [9] * 3, clean_x.expand_as(x))
    assert relative(model.velocity(joint(x, roles), t, context), joint(expected, roles)) < FLOAT64


# ---- precision --------------------------------------------------------------------------------------------------

def test_bfloat16_stays_close():
    """Compared at a time that bfloat16 can represent: the fast features turn with every unit of time."""
    single = random_model(torch.float32)
    role, lengths = torch.tensor([MIXED, PERCEIVE]), [3, 10]
    x, _, y, clean_x = inputs(single, 2)
    arguments = x, torch.tensor([312.0, 984.0]), y[:, None], role, prefix(lengths), clean_x
    expected = single(*arguments)
    found = single.bfloat16()(*arguments)
    assert found.dtype == torch.bfloat16 and relative(found.float(), expected) < 6e-2


def test_time_is_rounded_to_the_dtype_of_x_unless_it_shall_be_exact():
    model = random_model(torch.float32)
    roles = JointRoles(model.config.domains, JOINT)
    x, _, y, _ = inputs(model, 1)
    exact, rounded = torch.tensor([983.2]), torch.tensor([984.0])

    def velocity(dtype, t, **options):
        network = random_model(dtype)
        return network.velocity(joint(x, roles).to(dtype), t, network.prepare(y.to(dtype), None, roles, **options))
    assert torch.equal(velocity(torch.bfloat16, exact), velocity(torch.bfloat16, rounded))
    assert relative(velocity(torch.bfloat16, exact, exact_time=True), velocity(torch.bfloat16, rounded)) > 0.05
    assert relative(velocity(torch.float32, exact), velocity(torch.float32, rounded)) > 0.05


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_autocast_does_not_round_the_time():
    """Training runs float32 weights under autocast: it must learn the times that sampling will ask for."""
    model = random_model(torch.float32)
    x, _, y, _ = inputs(model, 1)
    role, t = torch.tensor([JOINT]), torch.tensor([983.2])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, t, y[:, None], role)
    exact, rounded = (model(x, time, y[:, None], role) for time in (t, t.bfloat16().float()))
    assert found.dtype == torch.float32
    assert relative(found, exact) < 0.15 < 0.3 < relative(found, rounded)


# ---- training ---------------------------------------------------------------------------------------------------

def test_dropped_captions_become_the_stored_one_with_all_its_tokens(model, dense):
    roles, role = JointRoles(model.config.domains, JOINT), torch.tensor([JOINT] * 3)
    x, t, y, clean_x = inputs(model, 3)
    stored = model.y_embedder.y_embedding
    texts = torch.stack([y[0], stored, y[2]])
    expected = dense.batch(x, t, texts, role, [4, 10, 6], clean_x)
    context = model.prepare(y[:, :6], prefix([4, 2, 6], 6), roles, null_rows_T=torch.tensor([False, True, False]))
    assert relative(model.velocity(joint(x, roles), t, context), joint(expected, roles)) < FLOAT64


def test_training_drops_captions_by_chance():
    model = random_model(class_dropout_prob=0.3)
    x, t, y, _ = (part.expand(64, *part.shape[1:]) for part in inputs(model, 1, size=(2, 2)))
    role = torch.tensor([JOINT])
    kept, = model(x[:1], t[:1], y[:1, None], role)
    dropped, = model(x[:1], t[:1], model.y_embedder.y_embedding[None, None], role)
    torch.manual_seed(0)
    out = model.train()(x, t, y[:, None], role.expand(64, -1))
    is_kept, is_dropped = ((out - one).flatten(1).abs().amax(dim=1) < 1e-9 for one in (kept, dropped))
    assert (is_kept ^ is_dropped).all() and 10 <= is_dropped.sum() <= 29


def test_initial_weights_are_those_of_the_original():
    torch.manual_seed(0)
    model = JodiTransformer(JodiConfig(**SMALL | {"hidden_size": 256, "y_norm_scale_factor": 0.01, "qk_norm": True}))
    model.init_weights()
    block, weights = model.blocks[0], model.state_dict()
    assert not block.attn.proj.bias.any() and not model.final_layers[3].linear.bias.any()
    deviations = {
        "t_block.1.weight": 0.02, "y_embedder.y_proj.fc1.weight": 0.02, "domain_embedding": 0.02,
        "role_embedder.weight": 0.02, "blocks.1.scale_shift_table": 256 ** -0.5,
        "final_layers.2.scale_shift_table": 256 ** -0.5, "y_embedder.y_embedding": 24 ** -0.5,
        "blocks.0.attn.qkv.weight": (2 / (4 * 256)) ** 0.5, "x_embedders.1.proj.weight": (2 / (4 + 256)) ** 0.5,
        "final_layers.0.linear.weight": (2 / (4 + 256)) ** 0.5,
    }
    for name, deviation in deviations.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.15), name
    assert weights["attention_y_norm.weight"].unique().item() == pytest.approx(0.01)
    assert weights["blocks.0.attn.q_norm.weight"].unique().item() == 1
