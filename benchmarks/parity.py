"""Compare the whole model with transformers' GptOssForCausalLM on the same random weights.

    python -m benchmarks.parity          writes benchmarks/results/parity.json

transformers must be installed: requirements-peers.txt.

Logits and the gradients of the mean loss with respect to every parameter are compared, at sizes where no two
axes are equal, over prompts longer than three windows, with YaRN on and off. Biases and sinks are of order
one, some gates and ups are clamped, and no router decision is close enough to a tie for rounding to flip it.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import names
from architecture.open_gpt_oss.verify import peer_of
from benchmarks.publish import publish

BATCH, TOKENS = 2, 23
# 15 heads in 3 groups are 5 a group, which is another number; 23 tokens are almost four windows of 6.
SHAPE = {
    **dict(num_hidden_layers=4, num_experts=7, experts_per_token=2, vocab_size=37, hidden_size=20),
    **dict(intermediate_size=9, swiglu_limit=1.5, head_dim=12, num_attention_heads=15, num_key_value_heads=3),
    **dict(sliding_window=6, initial_context_length=64, rope_theta=500.0, rope_ntk_beta=4.0),
}
YARN_FACTOR = {"yarn": 8.0, "plain rope": 1.0}
CASES = [(dtype, rope) for dtype in ("float32", "float64") for rope in YARN_FACTOR]
SMALLEST_MARGIN = 1e-4  # between the k-th and the next router logit, far above the rounding of float32


def random_model(config: ModelConfig, dtype: torch.dtype, seed: int = 1) -> Transformer:
    """A model whose weights are far from their initial values: biases and sinks of order 1, uneven norms."""
    model = Transformer(config, attention="eager", experts="loop")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0.0, 1.0, generator=generator)
            if name.endswith("norm.scale"):
                p.mul_(0.3).add_(1.0)
            elif name.endswith("sinks"):
                p.add_(1.0)
            elif not name.endswith("bias"):  # a matrix keeps the scale of its input
                p.mul_(0.7 * p.shape[-1] ** -0.5)
    return model.to(dtype)


def to_peer(tensors: dict[str, torch.Tensor], config: ModelConfig) -> dict[str, torch.Tensor]:
    """Our parameters, or their gradients, under the peer's names and in the peer's layouts."""
    mapped = (names.to_theirs(name, tensor, config, "hf") for name, tensor in tensors.items())
    return {name: tensor for tensors in mapped for name, tensor in tensors.items()}


def build_peer(model: Transformer):
    """The peer with the same weights and with eager attention and experts."""
    peer = peer_of(model)
    if peer.dtype == torch.float64:  # the peer's norm computes in float32
        for name, module in list(peer.named_modules()):
            if type(module).__name__ == "GptOssRMSNorm":
                norm = torch.nn.RMSNorm(
                    model.config.hidden_size, eps=module.variance_epsilon, dtype=peer.dtype
                )
                norm.load_state_dict(module.state_dict())
                peer.set_submodule(name, norm)
    return peer


def compare(dtype: str, rope: str, attention: str = "eager", experts: str = "loop") -> dict:
    """Largest differences of logits and gradients, and how far the comparison exercises the model."""
    config = ModelConfig(**SHAPE, rope_scaling_factor=YARN_FACTOR[rope])
    reference = random_model(config, getattr(torch, dtype))
    peer = build_peer(reference)
    model = Transformer(config, attention=attention, experts=experts).to(getattr(torch, dtype))
    model.load_state_dict(reference.state_dict())
    generator = torch.Generator().manual_seed(2)
    input_ids, targets = torch.randint(config.vocab_size, (2, BATCH, TOKENS), generator=generator)

    margins, clamped = [], []  # the smallest margin and the clamped share of each layer of the peer

    def note_margin(router, arguments, out):
        highest = out[0].topk(config.experts_per_token + 1).values
        margins.append(highest.diff().abs()[:, -1].min())

    def note_clamped(gate, x):
        clamped.append((x.abs() > config.swiglu_limit).double().mean())
        return gate(x)

    for layer in peer.model.layers:
        layer.mlp.router.register_forward_hook(note_margin)
        layer.mlp.experts._apply_gate = functools.partial(note_clamped, layer.mlp.experts._apply_gate)
    peer_logits = peer(input_ids).logits
    F.cross_entropy(peer_logits.flatten(0, 1), targets.flatten()).backward()

    logits = model(input_ids).logits
    output = model(input_ids, targets)
    output.loss.backward()
    gradients = to_peer({name: p.grad for name, p in model.named_parameters()}, config)
    peer_gradients = {name: p.grad for name, p in peer.named_parameters()}
    assert gradients.keys() == peer_gradients.keys()
    differences = {n: (gradients[n] - g).abs().max().item() for n, g in peer_gradients.items()}
    worst = max(differences, key=differences.get)
    sizes = {name: g.abs().max().item() for name, g in peer_gradients.items()}
    return {
        "dtype": dtype,
        "rope": rope,
        "attention": attention,
        "experts": experts,
        "logits_max_difference": (logits - peer_logits).abs().max().item(),
        "logits_max": peer_logits.abs().max().item(),
        "gradient_max_difference": differences[worst],
        "gradient_max_difference_at": worst,
        "gradient_max": max(sizes.values()),
        "gradient_smallest_of_tensor_maxima": min(sizes.values()),
        "gradient_max_relative_difference": max(differences[n] / sizes[n] for n in sizes),
        "router_smallest_margin": min(margins).item(),
        "clamped_share": (sum(clamped) / len(clamped)).item(),
    }


def main() -> None:
    import transformers

    cases = [compare(dtype, rope) for dtype, rope in CASES]
    cases += [compare(dtype, rope, "sdpa", "sorted") for dtype, rope in CASES]

    def worst(figure: str) -> dict[str, float]:
        return {
            dtype: max(c[figure] for c in cases if c["dtype"] == dtype) for dtype in ("float32", "float64")
        }

    for case in cases:
        print(
            f"{case['dtype']:8} {case['rope']:10} {case['attention']:5} {case['experts']:6} "
            f"logits {case['logits_max_difference']:.1e} of {case['logits_max']:.2g}, "
            f"gradients {case['gradient_max_difference']:.1e} of {case['gradient_max']:.2g}, "
            f"margin {case['router_smallest_margin']:.1e}, clamped {case['clamped_share']:.0%}"
        )
    publish(
        "parity",
        {
            "transformers": transformers.__version__,
            "shape": SHAPE | {"batch": BATCH, "tokens": TOKENS},
            "logits_max_difference": worst("logits_max_difference"),
            "gradient_max_difference": worst("gradient_max_difference"),
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
