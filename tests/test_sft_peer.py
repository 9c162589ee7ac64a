"""SFT against TRL's SFTTrainer: loss and gradient of an accumulated step, on the GptOss of transformers."""

import contextlib

import numpy as np
import pytest
import torch
from test_open_gpt_oss import model_of, state_of
from test_open_gpt_oss_peer import opened
from torch import nn

from architecture.interface import IGNORE_INDEX, ModelOutput, next_token_loss
from architecture.open_gpt_oss import export, names
from data.rows import Row, batch_of, packed_batch
from training.config import TrainConfig
from training.step import accumulate_gradients

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.peer
EOT = 259
STEP = (
    ((3, 2), (6, 9), (2, 5)),
    ((4, 1), (5, 7), (1, 3)),
)  # prompt and response of the examples of two micro-batches


@pytest.fixture(scope="module")
def examples() -> list[list[Row]]:
    draw = np.random.default_rng(0)
    made = []
    for part in STEP:
        ids = [np.array([EOT, *draw.integers(EOT, size=p + r), EOT]) for p, r in part]
        made.append([Row(text, np.arange(len(text)) > p, ()) for text, (p, _) in zip(ids, part)])
    return made


@pytest.fixture
def trainer(tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    export.write_folder(state_of(), tmp_path / "model", layout="hf")
    peer = opened(tmp_path / "model")
    peer.model.embed_tokens.padding_idx = (
        None  # of the export: end-of-text, which would get no gradient as an input
    )
    words = Tokenizer(WordLevel({"a": 0, "<pad>": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>"))
    return trl.SFTTrainer(
        model=peer,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            router_aux_loss_coef=0.0,  # the default adds the balance loss of the model's config
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([dict(prompt="a", completion="a")]),  # not used below
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
        ),
    )


def loss_of_trl(trainer, examples: list[list[Row]]) -> float:
    """The loss of the step, whose gradients are added to the model: its micro-batches as the Trainer passes them."""
    tokens = sum(int(row.scored.sum()) for part in examples for row in part)
    total = 0.0
    for part in examples:
        padded = nn.utils.rnn.pad_sequence
        ids, scored = ([torch.from_numpy(getattr(row, name)) for row in part] for name in ("ids", "scored"))
        inputs = {
            "input_ids": padded(ids, batch_first=True, padding_value=EOT),
            "attention_mask": padded([torch.ones_like(x) for x in ids], batch_first=True),
            "labels": padded(
                [x.where(s, IGNORE_INDEX) for x, s in zip(ids, scored)], batch_first=True, padding_value=IGNORE_INDEX
            ),
        }  # fmt: skip
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(tokens))
        loss.backward()
        total += float(loss.detach())
    return total


def our_loss(model: nn.Module, batches: list[dict[str, np.ndarray]]) -> float:
    """The loss of the step by our loop, whose gradients are added to the model."""
    tensors = [{name: torch.from_numpy(part) for name, part in batch.items()} for batch in batches]
    result = accumulate_gradients(
        model, tensors, TrainConfig(balance="none", compile="off"), previous_share=None, carry=None,
        token_bytes=torch.ones(EOT + 1), autocast=contextlib.nullcontext, measured=False,
    )  # fmt: skip
    return float(result.loss)


class OnPeer(nn.Module):
    """Our loss on the hidden states of the peer."""

    def __init__(self, peer):
        super().__init__()
        self.peer = peer

    def forward(self, input_ids, targets, carry=None):
        # no mask: padding is behind, where causal attention does not look
        hidden = self.peer.model(input_ids=input_ids).last_hidden_state
        return ModelOutput(None, *next_token_loss(hidden, self.peer.lm_head.weight, targets), router=None)


def test_on_the_same_hidden_states_loss_and_gradients_are_those_of_trl(trainer, examples):
    peer = trainer.model
    theirs = loss_of_trl(trainer, examples)
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    peer.zero_grad()
    ours = our_loss(OnPeer(peer), [batch_of(part, EOT, 20, None) for part in examples])
    # one rounding of float32, in which TRL computes the loss of float64 models, too
    assert ours == pytest.approx(theirs, rel=2**-23, abs=0)
    for name, p in peer.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=0, atol=1e-7)


def test_packed_examples_have_the_loss_and_the_gradients_that_trl_gives_them_apart(trainer, examples):
    theirs = loss_of_trl(trainer, examples)
    model = model_of(state_of()).train()
    batches = [packed_batch([part[:2], part[2:]], EOT, 24) for part in examples]
    assert our_loss(model, batches) == pytest.approx(theirs, rel=3e-7)
    grads = {}
    for name, p in model.named_parameters():
        grad = p.grad[: EOT + 1] if name in names.VOCABULARY else p.grad
        grads |= names.to_theirs(name, grad, model.config, "hf")
    wanted = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert grads.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-6 * largest)
