"""Muon: momentum whose update is brought close to an orthogonal matrix.

torch.optim.Muon accepts 2-D parameters only. It repeats one polynomial five times; this one applies four
different polynomials, which do the same for real gradients in one round less (benchmarks/LOG.md).

The cost grows with all matrices, not with those that a token uses: with many experts, a step of Muon takes
longer than the model's forward and backward pass (benchmarks/LOG.md).

Sources: Keller Jordan, https://kellerjordan.github.io/posts/muon/; scale and decay: arXiv:2502.16982.
"""

import math
from typing import Any

import torch

# Coefficients (a, b, c) of four odd polynomials x <- a x + b x^3 + c x^5. Each is the best approximation of 1
# on the interval to which those before it map [0.002, 1] (Polar Express, arXiv:2505.16932; computed by Remez
# exchange in benchmarks/muon_polynomials.py).
#
# They act on the singular values of a matrix of norm 1. Values from 0.002 to 1 end between 0.68 and 1.32.
# Smaller values grow 358-fold. Real gradients have such values: in configs/light.yaml at step 60, 2 to 5 % of
# an expert's and 21 to 42 % of attention's.
POLYNOMIALS = (
    (8.42679, -24.93613, 18.49249),
    (4.11165, -3.05913, 0.57495),
    (3.71457, -2.77812, 0.54294),
    (2.78195, -2.07493, 0.46350),
)

LONG = 2  # from this ratio of its sides on, a matrix is updated through its smaller gram matrix


class Muon(torch.optim.Optimizer):
    """Accepts parameters (rows, columns), and (E, rows, columns) that hold E independent matrices."""

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        # The polynomials are in the settings so that a checkpoint says by which ones it was trained.
        settings = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, polynomials=POLYNOMIALS)
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[tuple[torch.Tensor, ...]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, (rows, columns) = self.state[parameter], parameter.shape[-2:]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                at_once = max(1, batch_values(parameter) // (rows * columns))
                tensors = (parameter.detach(), parameter.grad.contiguous(), state["momentum_buffer"])
                if hasattr(parameter, "device_mesh"):  # a DTensor, split over its first axis
                    if parameter.ndim == 2:
                        step_gathered(tensors, group)
                        continue
                    tensors = [tensor.to_local() for tensor in tensors]  # whole matrices
                for part in zip(*(t.view(-1, rows, columns).split(at_once) for t in tensors)):
                    if len(part[0]):  # a rank may have no matrix
                        by_shape.setdefault(part[0].shape, []).append(part)
            for parts in by_shape.values():
                at_once = max(1, batch_values(parts[0][0]) // parts[0][0].numel())
                for start in range(0, len(parts), at_once):
                    step_together(parts[start : start + at_once], group)


def batch_values(tensor: torch.Tensor) -> int:
    """The most values in one batch of matrices. On a CPU, a batch and its results stay in the cache."""
    return 2**18 if tensor.device.type == "cpu" else 2**26


def step_together(parts: list[tuple[torch.Tensor, ...]], group: dict[str, Any]) -> None:
    """Update matrices of one shape. parts: (weights, gradients, momentum), each (E, rows, columns)."""
    directions = [direction(gradients, average, group) for _, gradients, average in parts]
    updates = orthogonalize(torch.cat(directions), group["polynomials"])
    for (weights, _, _), update in zip(parts, updates.split(parts[0][0].size(0))):
        apply(update, weights, max(updates.shape[-2:]), group)


def step_gathered(tensors: tuple[torch.Tensor, ...], group: dict[str, Any]) -> None:
    """Update a matrix whose rows are split over ranks. tensors: its weights, gradient and momentum, DTensors.

    Each rank gathers the matrix, computes its whole update, and keeps its own rows.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    weights, gradient, average = tensors
    mesh, placements, shape = weights.device_mesh, weights.placements, weights.shape
    part = direction(gradient.to_local(), average.to_local(), group)
    part = DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=weights.stride())
    update = orthogonalize(part.full_tensor()[None], group["polynomials"])[0]
    update = distribute_tensor(update, mesh, placements, src_data_rank=None)
    apply(update.to_local().to(gradient.device), weights.to_local(), max(shape), group)


def direction(gradients: torch.Tensor, average: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Move the average of the gradients, and return Nesterov's direction."""
    average.lerp_(gradients, 1 - group["momentum"])
    return gradients.lerp(average, group["momentum"])


def apply(update: torch.Tensor, weights: torch.Tensor, longer_side: int, group: dict[str, Any]) -> None:
    """Decay the weights, and add an orthogonal update, scaled."""
    # AdamW's update has an RMS of about 0.2, an orthogonal matrix one of 1 / sqrt(longer side). This
    # factor (2502.16982, eq. 4) gives an orthogonal update the RMS of AdamW's. With POLYNOMIALS the RMS was 0.20
    # to 0.21 for the experts of `light` from step 20 on; for its attention 0.15 to 0.16 at step 20 and 0.20 to
    # 0.21 at step 200 (benchmarks/results/muon_gradients_light.json).
    scale = 0.2 * math.sqrt(longer_side)
    weights.mul_(1 - group["lr"] * group["weight_decay"])
    weights.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrices: torch.Tensor, polynomials=POLYNOMIALS) -> torch.Tensor:
    """Move the singular values of each matrix towards 1, and keep its singular vectors.

    The matrix is first divided by its norm. Then each polynomial is applied to its singular values.

    matrices: (E, rows, columns).  Returns the same shape and dtype. Computed in bfloat16 on CUDA, elsewhere
    in the dtype of the input.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(1) > x.size(2)
    if tall:  # x x^T is then the smaller of the two products
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the gradient of an expert without tokens is 0
    if x.dtype != torch.bfloat16 and x.size(2) >= LONG * x.size(1):
        x = factor(x @ x.mT, polynomials) @ x
    else:
        for a, b, c in polynomials:  # x <- (a + b x x^T + c (x x^T)^2) x
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def factor(gram: torch.Tensor, polynomials) -> torch.Tensor:
    """The matrix f such that f x is x after all polynomials; gram: x x^T, (E, rows, rows).

    A round here takes four products of (rows, rows) matrices, and no product with x. In bfloat16 the small
    eigenvalues of gram, which are the squares of singular values, would be lost.
    """
    f = p = None
    for a, b, c in polynomials:
        if p is not None:
            gram = p @ gram @ p  # the gram of p x
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        f = p if f is None else p @ f
    return f
