"""Muon, batched: momentum, then the nearest orthogonal matrix, for every expert at once.

torch.optim.Muon takes 2-D parameters only; on these the two compute the same update (tested).
Keller Jordan, https://kellerjordan.github.io/posts/muon/; scale and decay: arXiv:2502.16982.
"""

import math

import torch


class Muon(torch.optim.Optimizer):
    """For parameters (rows, columns), or (E, rows, columns) holding E independent matrices."""

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonalize(parameter.grad.lerp(average, momentum))  # Nesterov
                # An orthogonal matrix has an RMS of 1 / sqrt(longer side), AdamW's update one of
                # about 0.2: with this factor one learning rate serves both (2502.16982, eq. 4).
                scale = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * scale)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T, roughly, of each matrix U S V^T: its singular values move close to 1, and zeros stay.

    matrices: (..., rows, columns).  Five Newton-Schulz steps, in bfloat16 on CUDA and in the dtype
    of the input elsewhere; returns the shape and dtype of the input.
    """
    x = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices[None]  # (E, rows, columns)
    if matrices.is_cuda:
        x = x.bfloat16()
    tall = x.size(1) > x.size(2)
    if tall:  # so that x x^T is of the smaller side
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # an expert without tokens is all 0
    for _ in range(5):  # x <- a x + (b x x^T + c (x x^T)^2) x
        a, b, c = 3.4445, -4.7750, 2.0315
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).view(matrices.shape)
