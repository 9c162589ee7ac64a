"""Log-probabilities of whole texts under a model, in batches of padded rows.

Shapes: B texts, T tokens of the longest one.
"""

# Import no torch here, so that --help is immediate.

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Reader(NamedTuple):
    """A model with its tokenizer, and how it reads: at most `window` tokens at once."""

    name: str
    model: Any
    window: int
    batch_size: int

    def nats(self, texts: Sequence[str], progress: Callable[[int], Any] = lambda number: None) -> list[float]:
        """-log P of each text behind an end-of-text token, whose own probability does not count; 0 for "".

        Texts of more than `window` tokens are read in windows that overlap by half. All tokens are scored once.
        progress: receives the number of texts that are done.
        Raises ValueError if a result is not finite.
        """
        import torch

        from architecture.tokenizer import encode_text

        tokenizer = self.model.tokenizer
        rows = [[tokenizer.eot_token, *encode_text(tokenizer, text).tolist()] for text in texts]
        found = [0.0] * len(rows)
        order = sorted((i for i, row in enumerate(rows) if len(row) > 1), key=lambda i: len(rows[i]))
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for place, nats in zip(batch, self._batch([rows[place] for place in batch])):
                    found[place] = nats
                progress(len(batch))
        return found

    def _batch(self, rows: list[list[int]]) -> list[float]:
        import torch

        from architecture.interface import IGNORE_INDEX
        from common.device import autocast, choose_dtype
        from evaluation.windows import Reading, read

        device = next(self.model.parameters()).device
        length = max(map(len, rows)) - 1
        inputs = torch.full((len(rows), length), rows[0][0])
        targets = torch.full_like(inputs, IGNORE_INDEX)
        for number, row in enumerate(rows):
            inputs[number, : len(row) - 1] = torch.tensor(row[:-1])
            targets[number, : len(row) - 1] = torch.tensor(row[1:])
        casting = functools.partial(autocast, device, choose_dtype("auto", device))
        if getattr(self.model, "carries", False):
            losses = self._carried(inputs, targets, casting)
        else:
            losses = read(
                self.model, inputs, targets, self.window, Reading(overlap=self.window // 2), casting
            ).losses
        sums = losses.sum(1).tolist()
        if not all(map(math.isfinite, sums)):
            raise ValueError(
                f"{self.name} gives losses that are not finite, so it has no scores; use a checkpoint from before its "
                "loss became NaN or infinite"
            )
        return sums

    def _carried(
        self, inputs: torch.Tensor, targets: torch.Tensor, casting: Callable[[], Any]
    ) -> torch.Tensor:
        """(B, T) losses of a model that reads segments and carries a state from each to the next."""
        import torch

        device, state, losses = next(self.model.parameters()).device, None, []
        for start in range(0, inputs.shape[1], self.window):
            part = [x[:, start : start + self.window].to(device) for x in (inputs, targets)]
            with casting():
                output = self.model(*part, carry=state)
            state = output.carry
            losses.append(output.token_losses.double().cpu())
        return torch.cat(losses, dim=1)


def open_reader(
    path: Any, saved: dict[str, Any], settings: dict[str, Any], device: str, batch_size: int
) -> Reader:
    """The model of a checkpoint with the window of its training.

    saved, settings: from architecture.checkpoint.read_checkpoint and training.state.checkpoint.saved_settings.
    Raises ValueError for a model that is not causal (training/causality.py).
    """
    from architecture import checkpoint, registry
    from common import device as machine
    from common.script import say
    from training.causality import require_causal

    place = machine.choose_device(device)
    model = checkpoint.model_of(registry.model_class(saved["model_name"]), saved, path).to(place).eval()
    if model.tokenizer is None:
        raise ValueError(
            f"{path} has no tokenizer, so it cannot read text; use a checkpoint that train.py wrote"
        )
    limit = getattr(model.config, "context_limit", None)
    window = settings.get("block_size") or limit
    if getattr(model, "carries", False):
        window = model.config.segment_length
    window = min(window, limit or window)
    casting = functools.partial(machine.autocast, place, machine.choose_dtype("auto", place))
    for probe in require_causal(model, batch_size, window, device=place, autocast=casting):
        say(probe.line)
    return Reader(str(path), model, window, batch_size)
