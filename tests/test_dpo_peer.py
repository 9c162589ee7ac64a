"""DPO against TRL's DPOTrainer: loss and gradient of one batch, on the GptOss of transformers."""

import math

import numpy as np
import pytest
import torch
from test_open_gpt_oss import model_of, state_of
from test_open_gpt_oss_peer import opened

from architecture.open_gpt_oss import export, names
from data.rows import Row, pair_batch
from training.post.dpo import compare

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.peer
EOT, BETA = 259, 0.1
LENGTHS = ((3, 5, 9), (6, 7, 2), (4, 10, 6))  # of prompt, chosen and rejected response


@pytest.fixture(scope="module")
def rows() -> list[tuple[Row, Row]]:
    draw = np.random.default_rng(0)
    made = []
    for prompt, *responses in LENGTHS:
        first = [EOT, *draw.integers(EOT, size=prompt)]
        ids = [np.array([*first, *draw.integers(EOT, size=n), EOT]) for n in responses]
        made.append(tuple(Row(text, np.arange(len(text)) > prompt, ()) for text in ids))
    return made


def test_loss_and_gradient_are_those_of_trl(tmp_path, rows):
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ours, peers = [], []
    for number, scale in enumerate((1.0, 1.1)):  # the reference differs in every weight
        state = state_of()
        state["model"] = {name: tensor * scale for name, tensor in state["model"].items()}
        export.write_folder(state, tmp_path / str(number), layout="hf")
        ours.append(model_of(state))
        peers.append(opened(tmp_path / str(number)))
    words = Tokenizer(WordLevel({"a": 0, "b": 1, "<pad>": 2, "<eos>": 3, "<unk>": 4}, unk_token="<unk>"))
    trainer = trl.DPOTrainer(
        model=peers[0],
        ref_model=peers[1],
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=BETA,
            router_aux_loss_coef=0.0,  # the default adds the balance loss of the model's config
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([dict(prompt="a", chosen="b", rejected="a")]),  # not used below
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
        ),
    )
    flat = [row for responses in zip(*rows) for row in responses]
    longest = max(len(row.ids) for row in flat)

    def padded(parts, value):
        return torch.stack(
            [torch.tensor(np.pad(p, (0, longest - len(p)), constant_values=value)) for p in parts]
        )

    inputs = {
        "input_ids": padded([row.ids for row in flat], EOT),
        "attention_mask": padded([np.ones(len(row.ids), np.int64) for row in flat], 0),
        "completion_mask": padded([row.scored.astype(np.int64) for row in flat], 0),
    }
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    batch = {name: torch.from_numpy(part) for name, part in pair_batch(rows, EOT).items()}
    found = compare(ours[0].train(), ours[1], **batch)
    loss = found.losses(BETA).mean()
    loss.backward()
    loss, theirs = float(loss.detach()), float(theirs.detach())
    assert abs(loss - theirs) < 3e-7 * theirs and abs(loss - math.log(2)) > 0.01
    grads = {}
    for name, p in ours[0].named_parameters():
        grad = p.grad[:260] if name in names.VOCABULARY else p.grad
        grads |= names.to_theirs(name, grad, ours[0].config, "hf")
    wanted = {name: p.grad for name, p in peers[0].named_parameters()}
    assert grads.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    padding = peers[0].get_input_embeddings().padding_idx  # transformers gives its embedding no gradient
    grads["model.embed_tokens.weight"][padding] = 0
    for name, grad in wanted.items():
        assert (grads[name] - grad).abs().max() < 3e-6 * largest, name
