"""Muon, batched: momentum, then the nearest orthogonal matrix, for all matrices of one shape at once.

torch.optim.Muon takes 2-D parameters only, and takes five products of the same coefficients for what
three do here.
Keller Jordan, https://kellerjordan.github.io/posts/muon/; scale and decay: arXiv:2502.16982.
"""

import math

import torch

# Three odd polynomials x <- a x + b x^3 + c x^5. Each is the best approximation of 1 on the interval in
# which the one before left the singular values (Polar Express, arXiv:2505.16932), from [0.02, 1] on: they
# end within 1 +- 0.1, and what begins below 0.02 grows 55-fold. Five rounds of the constants of the first
# publication (3.4445, -4.7750, 2.0315) end between 0.68 and 1.2.
POLYNOMIALS = (
    (7.7110, -22.1138, 16.2487),
    (3.2153, -2.4112, 0.5013),
    (2.2183, -1.5940, 0.4107),
)

STACKED_VALUES = 2**26  # of one batch of matrices: 256 MiB in float32, for a few moments three times


class Muon(torch.optim.Optimizer):
    """For parameters (rows, columns), or (E, rows, columns) holding E independent matrices."""

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                at_once = max(1, STACKED_VALUES // parameters[0].numel())
                for start in range(0, len(parameters), at_once):
                    self._step_together(parameters[start : start + at_once], group)

    def _step_together(self, parameters, group) -> None:
        lr, momentum = group["lr"], group["momentum"]
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            averages.append(state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum))
        gradients = torch.stack([parameter.grad for parameter in parameters])
        updates = orthogonalize(gradients.lerp_(torch.stack(averages), momentum))  # Nesterov
        # An orthogonal matrix has an RMS of 1 / sqrt(longer side), AdamW's update one of about 0.2: with
        # this factor one learning rate serves both (2502.16982, eq. 4).
        scale = 0.2 * math.sqrt(max(parameters[0].shape[-2:]))
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update, alpha=-lr * scale)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T, roughly, of each matrix U S V^T: its singular values move close to 1, and zeros stay.

    matrices: (..., rows, columns).  Computed in bfloat16 on CUDA and in the dtype of the input
    elsewhere; returns the shape and dtype of the input.
    """
    x = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices[None]  # (E, rows, columns)
    if matrices.is_cuda:
        x = x.bfloat16()
    tall = x.size(1) > x.size(2)
    if tall:  # so that x x^T is of the smaller side
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # an expert without tokens is all 0
    for a, b, c in POLYNOMIALS:  # x <- (a + b x x^T + c (x x^T)^2) x
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).view(matrices.shape)
