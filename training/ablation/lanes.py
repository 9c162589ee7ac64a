"""How many tokens lanes hold: where its document ends, the rest of a row is padding, which no budget counts."""

from __future__ import annotations

import itertools

from architecture.tokenizer import get_tokenizer
from training.config import TrainConfig
from training.data_documents import Source
from training.data_loader import encode

DOCUMENTS = 4000  # of TinyStories in rows of 512: the mean of a row to 0.7 %, in two seconds


def tokens_per_step(cfg: TrainConfig, source: Source) -> int:
    """Targets of a step, as they will be on average: by the first documents of the training data, each
    [EOT, tokens, EOT] along as many rows as it takes.
    """
    tokenizer, tokens, rows = get_tokenizer(cfg.tokenizer), 0, 0
    for document in itertools.islice(source.documents(), DOCUMENTS):
        targets = len(encode(tokenizer, document)) + 1
        tokens += targets
        rows += -(-targets // cfg.block_size)
    return max(1, round(cfg.batch_size * cfg.micro_batches * tokens / max(1, rows)))
