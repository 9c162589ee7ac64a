"""The vision model: its encoder against the paper's formulas, its routers, and equality with the trunk."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from small_model import SHAPE, B, D, T, V, figures
from torch.utils.flop_counter import FlopCounterMode

from architecture import gptoss_vision, registry
from architecture.gptoss import ModelConfig, Transformer
from architecture.gptoss_vision import PRESETS, VisionConfig, VisionEncoder, VisionLanguageTransformer
from architecture.images import ImageFormat
from architecture.interface import IGNORE_INDEX
from training.config import TrainConfig
from training.optimizer import build_optimizers, parameter_groups

# 6 images of 2 x 15 x 15 become 25 patches of 3 x 3 pixels, in a width of 28 = 4 heads x 7
VISION = dict(
    vision_embed_dim=28,
    vision_patch_size=3,
    vision_num_channels=2,
    vision_num_layers=3,
    vision_num_heads=4,
    image_size=15,
    vision_pool_token=True,
)
FEW = VISION | dict(image_size=6, vision_pool_token=False)  # 4 tokens of an image
NUMBER, P = 6, 26


def randomized(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """In float64, with weights that let every part matter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.4 if p.ndim == 1 or "position" in name or name.endswith("bias") else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=draw) * scale + ("norm" in name))
    return model.double()


def build(**changes) -> VisionLanguageTransformer:
    return randomized(VisionLanguageTransformer(VisionConfig(**SHAPE | FEW | changes), experts="loop"))


def trunk_of(model: VisionLanguageTransformer) -> Transformer:
    """The trunk with the weights of a vision model."""
    trunk = Transformer(ModelConfig(**SHAPE), experts="loop").to(model.norm.scale.dtype)
    own = model.state_dict()
    trunk.load_state_dict({name: own[name] for name in own if name not in model.added_parameters})
    return trunk


def draw_images(number=NUMBER, size=15, seed=2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, 2, size, size), generator=draw, dtype=torch.uint8)


def text(*shape: int, seed=3) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def image_ids(*numbers: int) -> torch.Tensor:
    """The ids of these images in a model of FEW."""
    return torch.cat([V + 4 * n + torch.arange(4) for n in numbers])


def mixed_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows without an image, with one, and with two, of which one is in another row, too."""
    ids = text(3, T)
    ids[1, 1:5] = image_ids(2)
    ids[2, 3:11] = image_ids(0, 2)
    targets = ids.roll(-1, 1)
    return ids, targets.where(targets < V, IGNORE_INDEX), draw_images(3, 6)


# ------------------------------------------------------------------------------------------ the encoder
def layer_norm(x, norm):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def reference(encoder: VisionEncoder, image: torch.Tensor) -> torch.Tensor:
    """One image (channels, S, S) -> (P, D), patch by patch and head by head: arXiv:2010.11929, eq. 1 to 4."""
    p, rows = 3, []
    if encoder.pool_token is not None:
        rows.append(encoder.pool_token)
    for i in range(image.shape[1] // p):
        for j in range(image.shape[2] // p):
            patch = image[:, p * i : p * i + p, p * j : p * j + p].reshape(-1)
            rows.append(linear(patch, encoder.patch_embedding) + encoder.position_embedding[i, j])
    z = torch.stack(rows)
    for block in encoder.block:
        q, k, v = linear(layer_norm(z, block.attn.norm), block.attn.qkv).chunk(3, dim=-1)
        heads = []
        for h in range(4):
            own = slice(7 * h, 7 * h + 7)
            score = (q[:, own] @ k[:, own].T / math.sqrt(7)).exp()
            heads.append(score / score.sum(-1, keepdim=True) @ v[:, own])
        z = z + linear(torch.cat(heads, dim=-1), block.attn.out)
        inner = linear(layer_norm(z, block.mlp.norm), block.mlp.mlp1)
        z = z + linear(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))), block.mlp.mlp2)
    return linear(layer_norm(z, encoder.norm), encoder.projector)


@pytest.mark.parametrize(
    "changes", [{}, dict(vision_pool_token=False), dict(vision_num_layers=0)], ids=["pool", "plain", "linear"]
)
def test_the_encoder_is_the_papers_in_values_and_gradients(changes):
    model = build(**VISION | changes)
    images = draw_images()
    features = model.encode_images(images)
    assert features.shape == (NUMBER * model.config.tokens_per_image, D)
    expected = torch.cat([reference(model.vision, image.double() / 127.5 - 1) for image in images])
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-11)
    wanted = torch.randn(features.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    parameters = list(model.vision.parameters())
    ours, theirs = (torch.autograd.grad((x * wanted).sum(), parameters) for x in (features, expected))
    assert all(grad.abs().max() > 1e-3 for grad in theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_floating_point_images_are_taken_as_they_are():
    model, images = build(), draw_images(3, 6)
    values = images.double() / 127.5 - 1
    assert values.min() < -0.9 and values.max() > 0.9
    assert torch.equal(model.encode_images(values), model.encode_images(images))


def cubic(distance: torch.Tensor) -> torch.Tensor:
    """The kernel of bicubic interpolation with a = -0.75 (Keys 1981, eq. 4)."""
    d, a = distance.abs(), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return near.where(d <= 1, far.where(d < 2, 0.0))


def resampling(old: int, new: int) -> torch.Tensor:
    """(new, old) weights along one side. Places beyond the border have the value at the border."""
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
    weights = torch.zeros(new, old, dtype=torch.float64)
    for place in range(-3, old + 3):
        weights[:, min(max(place, 0), old - 1)] += cubic(centre - place)
    return weights


def test_the_positions_of_another_image_size_are_interpolated():
    encoder = build(**VISION).vision
    table = encoder.position_embedding
    assert encoder.positions(5, 5) is table
    expected = torch.einsum("ri,cj,ijw->rcw", resampling(5, 7), resampling(5, 4), table)
    torch.testing.assert_close(encoder.positions(7, 4), expected, rtol=0, atol=1e-12)
    image = torch.randn(1, 2, 21, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = encoder(image)
    encoder.position_embedding = torch.nn.Parameter(expected)
    torch.testing.assert_close(ours[0], reference(encoder, image[0]), rtol=0, atol=1e-11)


VIT_NAMES = {  # ours: theirs, which are those of requirements-peers.txt
    "attn.norm": "layernorm_before", "attn.out": "attention.o_proj",
    "mlp.norm": "layernorm_after", "mlp.mlp1": "mlp.fc1", "mlp.mlp2": "mlp.fc2",
}  # fmt: skip


@pytest.mark.peer
def test_the_encoder_is_vit_of_transformers():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=28, num_hidden_layers=3, num_attention_heads=4, intermediate_size=112, image_size=15,
        patch_size=3, num_channels=2, layer_norm_eps=1e-6, attn_implementation="sdpa",
    )  # fmt: skip
    peer = randomized(ViTModel(config, add_pooling_layer=False)).eval()
    theirs = peer.state_dict()
    encoder = VisionEncoder(VisionConfig(**SHAPE | VISION)).double()
    positions = theirs["embeddings.position_embeddings"][0]
    ours = {
        "pool_token": theirs["embeddings.cls_token"][0, 0] + positions[0],
        "position_embedding": positions[1:].view(5, 5, 28),
    }
    for kind in ("weight", "bias"):
        ours[f"projector.{kind}"] = getattr(encoder.projector, kind)
        ours[f"norm.{kind}"] = theirs[f"layernorm.{kind}"]
        patch = theirs[f"embeddings.patch_embeddings.projection.{kind}"]
        ours[f"patch_embedding.{kind}"] = patch.flatten(1) if kind == "weight" else patch
        for n in range(3):
            qkv = [theirs[f"layers.{n}.attention.{x}_proj.{kind}"] for x in "qkv"]
            ours[f"block.{n}.attn.qkv.{kind}"] = torch.cat(qkv)
            for name, other in VIT_NAMES.items():
                ours[f"block.{n}.{name}.{kind}"] = theirs[f"layers.{n}.{other}.{kind}"]
    encoder.load_state_dict(ours)
    draw = torch.Generator().manual_seed(6)
    for size in ((15, 15), (21, 12)):
        images = torch.randn(NUMBER, 2, *size, generator=draw, dtype=torch.float64)
        expected = peer(images, interpolate_pos_encoding=True).last_hidden_state
        found = encoder(images)
        torch.testing.assert_close(found, linear(expected, encoder.projector), rtol=0, atol=1e-11)


def test_features_of_a_new_model_are_as_large_as_the_embeddings_of_text():
    for layers in (0, 2):
        config = registry.build_config("gptoss_vision", "toy", {"vision_num_layers": layers})
        model = registry.build_model("gptoss_vision", config, generator=torch.Generator().manual_seed(0))
        images = torch.randint(256, (5, 3, 48, 48), generator=torch.Generator().manual_seed(1)).byte()
        assert model.encode_images(images).std().item() == pytest.approx(0.02, rel=0.1)


# ------------------------------------------------------------------------------------- beside the trunk
@pytest.mark.parametrize("changes", [{}, dict(use_vision=False)], ids=["with an encoder", "use_vision=false"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_text_without_images_has_the_trunks_bits(changes, dtype):
    model = build(**changes).to(dtype)
    trunk, ids, targets = trunk_of(model), text(B, T), text(B, T, seed=4)
    ours, theirs = (made(ids, targets, return_logits=True) for made in (model, trunk))
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.token_losses, theirs.token_losses)
    for one, other in zip(figures(ours.router), figures(theirs.router)):
        assert torch.equal(one, other)
    for out in (ours, theirs):
        (out.loss + out.router.balance_loss).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, p in trunk.named_parameters():
        assert torch.equal(gradients[name], p.grad), name
    assert all(gradients[name] is None for name in model.added_parameters)
    assert bool(model.added_parameters) == model.config.use_vision


def test_the_weights_of_the_trunk_do_not_depend_on_the_variant():
    trunk = Transformer(ModelConfig(**SHAPE), generator=torch.Generator().manual_seed(5))
    for use_vision in (True, False):
        config = VisionConfig(**SHAPE | FEW, use_vision=use_vision)
        model = VisionLanguageTransformer(config, generator=torch.Generator().manual_seed(5))
        state = model.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in trunk.state_dict().items())
        assert state.keys() - trunk.state_dict().keys() == set(model.added_parameters)


def test_image_tokens_are_rows_of_the_features_and_text_is_as_in_the_trunk():
    """The blocks are the trunk's; only the table of embeddings is longer."""
    model = build(vision_router_bias=False, position="learned")
    ids, targets, images = mixed_batch()
    trunk = Transformer(ModelConfig(**SHAPE, position="learned"), experts="loop").double()
    own, added = model.state_dict(), model.added_parameters
    trunk.load_state_dict({name: own[name] for name in own if name not in added})
    features = model.encode_images(images)
    trunk.embed_tokens = lambda ids: torch.cat((trunk.embedding.weight, features))[ids]
    ours, theirs = (
        model(ids, targets, images=images, return_logits=True),
        trunk(ids, targets, return_logits=True),
    )
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-12)
    vision = list(model.vision.parameters())
    grads = [torch.autograd.grad(out.loss, [made.embedding.weight, *vision])
             for out, made in ((ours, model), (theirs, trunk))]  # fmt: skip
    assert all(grad.abs().max() > 1e-6 for grad in grads[1])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    again = model(ids, targets, features=features)
    assert torch.equal(again.token_losses, ours.token_losses)


def test_a_batch_that_mixes_rows_with_and_without_images_is_its_rows_alone():
    model = build()
    ids, _, images = mixed_batch()
    together = model(ids, images=images).logits
    alone = [
        model(ids[:1]),
        model(torch.cat((ids[1, :1], image_ids(0), ids[1, 5:]))[None], images=images[2:]),
        model(torch.cat((ids[2, :3], image_ids(1, 0), ids[2, 11:]))[None], images=images[[2, 0]]),
    ]
    for row, out in zip(together, alone):
        torch.testing.assert_close(row, out.logits[0], rtol=0, atol=1e-12)
    swapped = model(ids, images=images[[1, 0, 2]]).logits
    assert torch.equal(swapped[:2], together[:2]) and (swapped[2, 11:] - together[2, 11:]).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------- routers
def test_the_router_bias_is_added_for_image_tokens_only():
    model, plain = build(), build()
    with torch.no_grad():
        for block in plain.block:
            block.mlp.vision_router_bias.zero_()
    ids, _, images = mixed_batch()
    seen, image = [], ids >= V

    def keep(mlp, arguments):
        x = mlp.norm(arguments[0])
        seen.append((x @ mlp.gate.weight.T + mlp.gate.bias, mlp.vision_router_bias))

    for block in model.block:
        block.mlp.register_forward_pre_hook(keep)
    stats, without = model(ids, images=images).router, plain(ids, images=images).router
    assert len(seen) == 3
    for logits, (scores, bias), chosen in zip(stats.logits, seen, stats.chosen):
        expected = scores + torch.where(image[..., None], bias, 0.0)
        torch.testing.assert_close(logits, expected.detach(), rtol=0, atol=1e-12)
        best = expected.argsort(-1, descending=True)[..., :2]
        assert torch.equal(chosen.sort(-1).values, best.sort(-1).values)
    first = [x[0].sort(-1).values for x in (stats.chosen, without.chosen)]
    assert (first[0] != first[1])[image].any() and torch.equal(first[0][0], first[1][0])  # row 0 is text


def test_the_gradient_of_the_router_bias_is_that_of_finite_differences():
    model = build()
    ids, targets, images = mixed_batch()

    def loss():
        out = model(ids, targets, images=images)
        return out.loss + 0.3 * out.router.balance_loss + 0.1 * out.router.z_loss

    biases = [block.mlp.vision_router_bias for block in model.block]
    draw, step = torch.Generator().manual_seed(7), 1e-6
    for bias, grad in zip(biases, torch.autograd.grad(loss(), biases)):
        direction = torch.randn(7, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            ends = [(bias.add_(change * direction), loss())[1] for change in (step, -2 * step)]
            bias.add_(step * direction)
        slope = (ends[0] - ends[1]).item() / (2 * step)
        assert abs(slope) > 1e-3 and grad @ direction == pytest.approx(slope, rel=1e-6)


def test_image_tokens_count_in_the_balance_although_they_have_no_target():
    model = build()
    ids, targets, images = mixed_batch()
    targets[0] = IGNORE_INDEX
    stats = model(ids, targets, images=images).router
    counted = (targets != IGNORE_INDEX) | (ids >= V)
    for load, chosen in zip(stats.load, stats.chosen):
        assert load.tolist() == F.one_hot(chosen[counted], 7).sum((0, 1)).tolist()


# ------------------------------------------------------------------------------- counts, groups, presets
@pytest.mark.parametrize("values", [
    *(SHAPE | VISION | changes for changes in (
        {}, dict(vision_pool_token=False), dict(vision_num_layers=0), dict(use_vision=False),
        dict(vision_router_bias=False), dict(moe_layers=(1,)), dict(moe_layers=()))),
    *PRESETS.values(),
], ids=lambda values: str(values)[-60:])  # fmt: skip
def test_the_counts_are_those_of_the_built_model(values):
    config, trunk = VisionConfig(**values), ModelConfig(**{
        name: value for name, value in values.items() if name in ModelConfig.__dataclass_fields__})  # fmt: skip
    with torch.device("meta"):
        model = VisionLanguageTransformer(config)
    counts = config.parameter_counts()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert counts["total"] == sum(sizes.values())
    assert counts | {"total": 0} == trunk.parameter_counts() | {"total": 0}  # what a token of text passes
    assert (
        sum(sizes[name] for name in model.added_parameters)
        == counts["total"] - trunk.parameter_counts()["total"]
    )
    assert config.matrix_parameters() == sum(p.numel() for p in parameter_groups(model)["matrix"].values())


def test_every_added_parameter_has_its_optimizer_group():
    model = build(vision_pool_token=True)
    groups = {name: group for group, named in parameter_groups(model).items() for name in named}
    block = {"attn.norm.weight": "no_decay", "attn.norm.bias": "no_decay", "attn.qkv.weight": "matrix",
             "attn.qkv.bias": "no_decay", "attn.out.weight": "matrix", "attn.out.bias": "no_decay",
             "mlp.norm.weight": "no_decay", "mlp.norm.bias": "no_decay", "mlp.mlp1.weight": "matrix",
             "mlp.mlp1.bias": "no_decay", "mlp.mlp2.weight": "matrix", "mlp.mlp2.bias": "no_decay"}  # fmt: skip
    expected = {"patch_embedding.weight": "matrix", "patch_embedding.bias": "no_decay",
                "position_embedding": "no_decay", "pool_token": "no_decay", "norm.weight": "no_decay",
                "norm.bias": "no_decay", "projector.weight": "matrix", "projector.bias": "no_decay"}  # fmt: skip
    expected |= {f"block.{n}.{name}": group for n in range(3) for name, group in block.items()}
    expected = {f"vision.{name}": group for name, group in expected.items()}
    expected |= {f"block.{n}.mlp.vision_router_bias": "no_decay" for n in range(3)}
    assert {name: groups[name] for name in model.added_parameters} == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_of_the_optimizers_lowers_the_loss_of_a_batch_with_images(optimizer):
    model = build()
    ids, targets, images = mixed_batch()
    before = {name: p.clone() for name, p in model.named_parameters()}
    made, losses = build_optimizers(model, TrainConfig(optimizer=optimizer, lr=3e-3)), []
    for _ in range(3):
        out = model(ids, targets, images=images)
        losses.append(out.loss.item())
        out.loss.backward()
        for part in made:
            part.step()
            part.zero_grad()
    assert losses == sorted(losses, reverse=True)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("changes", [{}, dict(vision_pool_token=False), dict(vision_num_layers=0)], ids=str)
def test_the_flops_of_an_image_are_what_torch_counts(monkeypatch, changes):
    def eager(q, k, v):  # torch has no entry for the fused attention of a CPU
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v

    monkeypatch.setattr(gptoss_vision.F, "scaled_dot_product_attention", eager)
    model, block_size = build(**VISION | changes), 31
    with FlopCounterMode(display=False) as counter:
        model.encode_images(draw_images(1)).sum().backward()
    ours = model.config.flops_per_token(block_size) - ModelConfig(**SHAPE).flops_per_token(block_size)
    assert ours * block_size == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_the_large_preset_has_the_encoder_of_the_readme():
    config = VisionConfig(**PRESETS["large"])
    assert (config.image_size, config.tokens_per_image) == (224, 256)
    assert config.image_format == ImageFormat(224, 256, config.vocab_size)
    sizes = (
        config.vision_embed_dim,
        config.vision_patch_size,
        config.vision_num_layers,
        config.vision_num_heads,
    )
    assert sizes == (1024, 14, 24, 16) and config.vision_num_channels == 3
    assert VisionConfig(**SHAPE | FEW, use_vision=False).image_format is None
    assert PRESETS.keys() == registry.model_class("gptoss").presets.keys()


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("changes, told", [
    (dict(image_size=16), "image_size must be a multiple of vision_patch_size (3), got 16; set image_size=18"),
    (dict(image_size=24), "image_size must leave room for text, and an image takes 64 of 64 tokens, got 24"),
    (dict(vision_embed_dim=30), "vision_embed_dim must be a multiple of vision_num_heads (4), got 30; set "
                                "vision_embed_dim=32"),
    (dict(vision_num_layers=-1), "vision_num_layers must be at least 0; got -1"),
])  # fmt: skip
def test_a_config_that_cannot_be_built_is_refused(changes, told):
    with pytest.raises(ValueError, match="^" + re.escape(told)):
        VisionConfig(**SHAPE | FEW | changes)


def test_a_config_survives_json_and_replacement():
    config = VisionConfig(**SHAPE | FEW)
    assert registry.config_from_dict("gptoss_vision", dataclasses.asdict(config)) == config
    assert dataclasses.replace(config, image_size=9).tokens_per_image == 9


def test_ids_without_their_images_are_refused():
    model = build()
    ids, _, images = mixed_batch()
    for given, number in ((None, 0), (images[:2], 8)):
        told = f"input_ids must be below {V + number}, for {V} ids of text and {number} image tokens, got {V + 11}"
        with pytest.raises(ValueError, match=re.escape(told)):
            model(ids, images=given)
    with pytest.raises(ValueError, match="both; leave out one"):
        model(ids, images=images, features=model.encode_images(images))
    with pytest.raises(ValueError, match="reads no images .use_vision=false."):
        build(use_vision=False)(ids, images=images)


def test_a_batch_without_images_or_without_targets_is_that_of_the_trunk():
    model, ids = build(), text(2, T)
    trunk = trunk_of(model)
    no_images = model(ids, images=draw_images(0, 6)).logits
    assert torch.equal(no_images, trunk(ids).logits)
    ids, targets, images = mixed_batch()
    out = model(ids, torch.full_like(targets, IGNORE_INDEX), images=images)
    assert (out.loss.item(), int(out.num_targets)) == (0, 0) and out.token_losses.shape == ids.shape


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 3, 6, 6), (1, 2, 6, 7), (1, 2, 0, 6)], ids=str)
def test_images_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=re.escape(f"patch_size (3), got {shape}; resize them to 6")):
        build().encode_images(torch.zeros(shape))
