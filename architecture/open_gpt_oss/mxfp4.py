"""MXFP4, the 4-bit format of the official expert weights: pack, unpack, and run experts that stay packed.

A block is 32 neighbouring values of the last axis: 16 bytes and one scale byte. A byte holds an even value in
its low and the next odd value in its high four bits. A value is VALUES[code] * 2**(scale - 127), also for the
scale 255, which the specification calls NaN and transformers and gguf read as 2**128.
Source: the OCP Microscaling Formats specification 1.0; gpt_oss/torch/weights.py for the order of the codes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 32  # values in a block
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MATRICES = ("mlp1_weight", "mlp2_weight")  # of an MLPBlock; nothing else is stored in MXFP4


@functools.cache
def _four_values(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(65536, 4): twice the values in two neighbouring bytes, read as one little-endian number."""
    number, values = torch.arange(2**16, device=device), 2 * torch.tensor(VALUES, dtype=dtype, device=device)
    return torch.stack([values[number >> shift & 15] for shift in (0, 4, 8, 12)], dim=-1)


def unpack(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """blocks (..., G, 16) uint8, scales (..., G) uint8 -> (..., 32 G) in a floating point type."""
    if dtype == torch.float16:  # its range is smaller than that of the scales
        return unpack(blocks, scales, torch.float32).to(dtype)
    # a table of pairs of bytes is fastest
    number = blocks.contiguous().view(torch.uint16).flatten().int()
    table = _four_values(dtype, blocks.device)
    if dtype == torch.bfloat16:  # four of them are as wide as one int64, which is gathered in one move
        values = table.view(torch.int64).flatten().index_select(0, number).view(dtype)
    else:
        values = table.index_select(0, number)
    values = values.view(*scales.shape, SIZE)
    # 2**(scale - 128) is finite for every scale, which 2**(scale - 127) is not: hence twice the values above
    power = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - 128)
    return values.mul_(power.to(dtype)[..., None]).flatten(-2)


def packed_shapes(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of blocks and scales that hold a tensor. Raises ValueError if it cannot be cut into blocks."""
    *outer, size = shape
    if size % SIZE:
        raise ValueError(
            f"MXFP4 stores blocks of {SIZE} values, so hidden_size and intermediate_size must be multiples of "
            f"{SIZE}, got {size}"
        )
    return (*outer, size // SIZE, SIZE // 2), (*outer, size // SIZE)


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., 32 G) floating point -> blocks (..., G, 16) uint8 and scales (..., G) uint8.

    The exponent of a block is floor(log2(largest)) - 2, as in the specification, or one more where that gives
    a smaller squared error. Codes are the nearest values; ties go to the even code. Values that came from
    unpack are packed without loss. Raises ValueError if the last axis is no multiple of 32, or for NaN and
    infinity.
    """
    packed_shapes(weight.shape)  # raises
    x = weight.float().unflatten(-1, (-1, SIZE))
    largest = x.abs().amax(-1, keepdim=True)
    if not largest.isfinite().all():
        raise ValueError("MXFP4 cannot hold NaN or infinity; use a checkpoint whose training did not diverge")
    low = torch.frexp(largest).exponent - 3  # floor(log2(largest)) - 2
    low = low.where(largest > 0, 0).clamp(-127, 124)  # 4 * 2**126 would be infinite
    x = torch.ldexp(x, -low)  # in units of the lower exponent, because squares of the values may overflow
    values = torch.tensor(VALUES, device=x.device)
    codes = [_nearest(x), _nearest(x / 2)]
    errors = [(values[code] * unit - x).square().sum(-1, keepdim=True) for code, unit in zip(codes, (1, 2))]
    higher = errors[1] < errors[0]
    code = codes[1].where(higher, codes[0]).to(torch.uint8)
    scales = (low + higher.int() + 127).to(torch.uint8).squeeze(-1)
    return code[..., 0::2] | code[..., 1::2] << 4, scales


def _nearest(x: torch.Tensor) -> torch.Tensor:
    """The code of the nearest value, int64; a tie goes to the even code."""
    size = x.abs()
    middle = torch.tensor([(a + b) / 2 for a, b in zip(VALUES, VALUES[1:8])], device=x.device)
    code = torch.bucketize(size, middle)  # a tie gets the lower code
    tie = size == middle[code.clamp(max=6)]
    code = code + (tie & (code % 2 == 1))
    return code + 8 * (torch.signbit(x)).long()


def relative_error(weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """Of each expert: the norm of the difference over the norm of the weight. Two (E, out, in) -> (E,)."""
    weight, packed = weight.float().flatten(1), packed.float().flatten(1)
    return (weight - packed).norm(dim=1) / weight.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


# ---------------------------------------------------------------------------------------------- at run time
class PackedWeight(nn.Module):
    """One of the two stacks of expert matrices, in MXFP4."""

    def __init__(self, shape: torch.Size):
        """shape: (E, out, in)."""
        super().__init__()
        self.shape, (blocks, scales) = shape, packed_shapes(shape)
        self.register_buffer("blocks", torch.zeros(blocks, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(scales, dtype=torch.uint8))

    def matrix(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """(out, in): the matrix of one expert, unpacked."""
        return unpack(self.blocks[expert], self.scales[expert], dtype)


def packed_experts(x, index, weight, experts):
    """loop_experts (architecture/gptoss.py) for PackedWeight: unpacks an expert only if a token chose it."""
    chosen = x.new_zeros(*index.shape, x.shape[-1])  # (N, k, D)
    for e in index.unique().tolist():
        token, slot = torch.where(index == e)
        mlp1, mlp2 = (stack.matrix(e, x.dtype) for stack in (experts.mlp1_weight, experts.mlp2_weight))
        up = F.linear(x[token], mlp1, experts.mlp1_bias[e])
        chosen[token, slot] = F.linear(experts.activation(up), mlp2, experts.mlp2_bias[e])
    return (chosen * weight[..., None].to(x.dtype)).sum(1)


def pack_experts(model: nn.Module) -> None:
    """Replace the expert matrices of a model on the meta device by empty packed ones."""
    for block in model.block:
        for name in MATRICES:
            shape = getattr(block.mlp, name).shape
            delattr(block.mlp, name)
            with torch.device("meta"):
                setattr(block.mlp, name, PackedWeight(shape))
        block.mlp.run_experts = packed_experts
