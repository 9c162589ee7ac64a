"""A small gpt-oss in which no two axes of a tensor have the same size, so that no transposition goes unseen."""

import torch

from architecture.gptoss import ModelConfig, Transformer
from architecture.interface import LayerRouting, RouterStats

B, T, D, V = 2, 19, 20, 37  # 19 tokens are more than three windows
SHAPE = dict(num_hidden_layers=3, num_experts=7, experts_per_token=2, vocab_size=V, hidden_size=D,
             intermediate_size=9, head_dim=4, num_attention_heads=15, num_key_value_heads=3, sliding_window=6,
             initial_context_length=64, rope_scaling_factor=1.0)  # fmt: skip


def config(**changes) -> ModelConfig:
    return ModelConfig(**SHAPE | changes)


def model(seed: int = 0, attention: str = "auto", experts: str = "auto", **changes) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    return Transformer(config(**changes), attention=attention, experts=experts, generator=generator)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and targets, (B, T) each."""
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randint(V, (B, T), generator=draw) for _ in range(2))


def figures(stats: RouterStats) -> tuple[torch.Tensor, ...]:
    """load, mean_probability, z_loss, dropped and balance_loss."""
    return stats.load, stats.mean_probability, stats.z_loss, stats.dropped, stats.balance_loss


def of_one_layer(routing: LayerRouting) -> RouterStats:
    """The figures of one router; those of each layer have one row."""
    return RouterStats(routing=(routing,), layers=(0,), logits=(), chosen=())


@torch.no_grad()
def inputs_of(made: Transformer, modules: list, input_ids: torch.Tensor) -> list[tuple]:
    """The arguments of each module in a forward pass of the model in eval mode."""
    found = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, arguments: found.__setitem__(m, arguments)) for m in modules
    ]
    made.eval()(input_ids)
    for hook in hooks:
        hook.remove()
    return [found[m] for m in modules]
