"""How far an optimizer step moves each expert: the RMS of its update over the RMS of its weights.

L MoE layers, M matrices of an expert (mlp1 and mlp2), E experts.
"""

from __future__ import annotations

import math

import torch
from torch import nn

# The most weights that are copied to be compared after the step, 64 MiB in float32. A larger model is measured by
# evenly spaced rows of each matrix.
MOST_VALUES = 2**24


class ExpertUpdates:
    """Create it before an optimizer step; ratios() measures the step.

    model: the raw module. Models without routed experts, or with frozen ones, have no ratios.
    """

    def __init__(self, model: nn.Module):
        layers = getattr(model, "routed_experts", list)()
        self.matrices = []  # L lists of M parameters (E, rows, columns)
        for layer in layers:
            parameters = (getattr(layer, name) for name in layer.expert_parameters)
            matrices = [p for p in parameters if p.ndim == 3 and p.requires_grad]
            self.matrices += [matrices] if matrices else []
        values = sum(matrix.numel() for layer in self.matrices for matrix in layer)  # of all ranks
        self.every = max(1, math.ceil(values / MOST_VALUES))
        self.before = [[self.rows(matrix).clone() for matrix in layer] for layer in self.matrices]

    def rows(self, matrix: nn.Parameter) -> torch.Tensor:
        """The rows that are compared, of the experts of this rank: a view of the weights."""
        held = matrix.to_local() if hasattr(matrix, "to_local") else matrix
        return held.detach()[:, :: self.every]

    def ratios(self) -> torch.Tensor | None:
        """(L, M, E), on all ranks the same; None without trainable experts. All ranks must call it together."""
        if not self.matrices:
            return None
        found = []
        for matrices, olds in zip(self.matrices, self.before):
            for matrix, old in zip(matrices, olds):
                weight = torch.linalg.vector_norm(old, dim=(1, 2))
                update = torch.linalg.vector_norm(self.rows(matrix) - old, dim=(1, 2))
                # weights of zeros: 0 if they stay, infinite if they do not
                found.append((update / weight).masked_fill(update == 0, 0.0))
        ratios = of_all_ranks(torch.stack(found, dim=1), self.matrices[0][0])  # (E, L * M)
        return ratios.T.unflatten(0, (len(self.matrices), -1))


def of_all_ranks(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The values (E, X) of all experts from those of this rank, which has the experts that it has of `like`."""
    if not hasattr(like, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor

    shape = torch.Size((like.shape[0], values.shape[1]))
    where = like.device_mesh, like.placements
    parts = DTensor.from_local(values, *where, run_check=False, shape=shape, stride=(shape[1], 1))
    return parts.full_tensor()
