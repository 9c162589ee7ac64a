"""Muon: momentum whose update is brought closer to an orthogonal matrix.

Matrices of one shape are updated together.
torch.optim.Muon accepts 2-D parameters only. It repeats one polynomial five times; this one applies three
different polynomials. On the gradients of a real run the two are not the same: see POLYNOMIALS.

Sources: Keller Jordan, https://kellerjordan.github.io/posts/muon/; scale and decay: arXiv:2502.16982.
"""

import math

import torch

# Coefficients (a, b, c) of three odd polynomials x <- a x + b x^3 + c x^5 (Polar Express, arXiv:2505.16932).
# Each is the best approximation of 1 on the interval to which the one before maps [0.02, 1].
#
# They act on the singular values of a matrix of norm 1. Values from 0.02 to 1 end between 0.9 and 1.1.
# Smaller values grow at most 55-fold; the five published rounds of (3.4445, -4.7750, 2.0315) multiply them by
# up to 485. Most singular values of a real gradient are smaller: in block 1
# of configs/light.yaml, steps 20 and 60, 50 to 91 % were below 0.02, and 40 to 88 % were still below 0.7
# after the three polynomials.
POLYNOMIALS = (
    (7.7110, -22.1138, 16.2487),
    (3.2153, -2.4112, 0.5013),
    (2.2183, -1.5940, 0.4107),
)

STACKED_VALUES = (
    2**26
)  # most values in one batch of matrices: 256 MiB in float32, of which three exist at once


class Muon(torch.optim.Optimizer):
    """Accepts parameters (rows, columns), and (E, rows, columns) that hold E independent matrices."""

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
        # AdamW's update has an RMS of about 0.2, an orthogonal matrix one of 1 / sqrt(longer side). This
        # factor (2502.16982, eq. 4) gives an orthogonal update the RMS of AdamW's. Ours is not orthogonal:
        # its RMS was 0.08 to 0.16 in the run above, and lower for attention than for experts.
        scale = 0.2 * math.sqrt(max(parameters[0].shape[-2:]))
        for parameter, update in zip(parameters, updates):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update, alpha=-lr * scale)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Move the singular values of each matrix towards 1, and keep its singular vectors.

    The matrix is first divided by its norm. Singular values above 0.02 then end within 0.1 of 1, smaller ones
    grow at most 55-fold, and zeros stay zero.

    matrices: (..., rows, columns).  Returns the same shape and dtype. Computed in bfloat16 on CUDA, elsewhere
    in the dtype of the input.
    """
    x = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices[None]  # (E, rows, columns)
    if matrices.is_cuda:
        x = x.bfloat16()
    tall = x.size(1) > x.size(2)
    if tall:  # x x^T is then the smaller of the two products
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the gradient of an expert without tokens is 0
    for a, b, c in POLYNOMIALS:  # x <- (a + b x x^T + c (x x^T)^2) x
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).view(matrices.shape)
