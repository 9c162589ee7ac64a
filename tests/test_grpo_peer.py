"""GRPO and its relatives against TRL's GRPOTrainer: loss and gradients, on the GptOss of transformers."""

import pytest
import torch
from test_open_gpt_oss import model_of, state_of
from test_open_gpt_oss_peer import opened

from architecture.interface import IGNORE_INDEX
from architecture.open_gpt_oss import export, names
from training.post import grpo
from training.post.policy import score

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.peer
PAD, BETA, MOST = 259, 0.2, 8
LENGTHS = ((3, 7), (3, 2), (5, 4), (5, 8))  # of prompt and response, in two groups
ADVANTAGES = torch.tensor([1.3, -1.3, -0.4, 0.4])
CLIP = {kind: (0.01, 0.02) if kind == "gspo" else clip for kind, clip in grpo.CLIP.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Our model, and a trainer with the same weights whose loss a test chooses."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder, state = tmp_path_factory.mktemp("grpo"), state_of()
    export.write_folder(state, folder / "model", layout="hf")
    words = Tokenizer(WordLevel({"a": 0, "<pad>": 1, "<eos>": 2, "<unk>": 3}, unk_token="<unk>"))
    trainer = trl.GRPOTrainer(
        model=opened(folder / "model"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),  # not used below
        args=trl.GRPOConfig(
            output_dir=str(folder / "trl"),
            router_aux_loss_coef=0.0,  # the default adds the balance loss of the model's config
            use_bias_correction_kl=False,  # the default multiplies k3 with the ratio
            beta=0.0,  # the default, too; set below, so that no reference is loaded
            loss_type="grpo",  # the default is dapo
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=MOST,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([dict(prompt="a")]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
        ),
    )
    trainer.current_gradient_accumulation_steps, trainer.beta = 1, BETA
    return model_of(state).train(), trainer


@pytest.mark.parametrize("kind", grpo.CLIP)
def test_loss_and_gradients_are_those_of_trl(models, kind):
    ours, trainer = models
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(PAD, (n,), generator=draw) for n, _ in LENGTHS]
    responses = [torch.randint(PAD, (n,), generator=draw) for _, n in LENGTHS]
    mask = torch.arange(MOST) < torch.tensor([n for _, n in LENGTHS])[:, None]
    completion, prompt = torch.full((4, MOST), PAD), torch.full((4, 5), PAD)
    input_ids, targets = torch.full((4, 12), PAD), torch.full((4, 12), IGNORE_INDEX)
    for row, (p, r) in enumerate(zip(prompts, responses)):
        prompt[row, 5 - len(p) :], completion[row, : len(r)] = p, r
        input_ids[row, : len(p) + len(r) - 1] = torch.cat((p, r[:-1]))
        targets[row, len(p) - 1 : len(p) + len(r) - 1] = r
    scored = targets != IGNORE_INDEX

    ours.zero_grad()
    logp = score(ours, input_ids, targets).logprobs
    apart = torch.rand(2, 4, MOST, generator=draw) - 0.5
    of_responses = torch.zeros(4, MOST)
    of_responses[mask] = logp.detach()[scored]
    old, reference = of_responses + apart  # before and of the reference, as TRL takes them
    in_rows = torch.zeros(2, 4, 12)
    in_rows[:, scored] = torch.stack((old, reference))[:, mask]
    weights = grpo.token_weights(scored, kind, MOST).float()
    loss, found = grpo.policy_loss(
        logp, in_rows[0], ADVANTAGES, weights, loss=kind, clip=CLIP[kind], reference=in_rows[1], beta=BETA
    )
    loss.backward()
    assert 0 < found["clip_fraction"] < scored.sum()

    trainer.loss_type = "grpo" if kind == "gspo" else kind
    trainer.importance_sampling_level = "sequence" if kind == "gspo" else "token"
    trainer.epsilon_low, trainer.epsilon_high = CLIP[kind]
    trainer.model.zero_grad()
    inputs = dict(
        prompt_ids=prompt,
        prompt_mask=(torch.arange(5) >= 5 - torch.tensor([n for n, _ in LENGTHS])[:, None]).long(),
        completion_ids=completion,
        completion_mask=mask.long(),
        advantages=ADVANTAGES,
        old_per_token_logps=old,
        ref_per_token_logps=reference,
        num_items_in_batch=mask.sum(),
    )
    theirs = trainer._compute_loss(trainer.model.train(), inputs)
    theirs.backward()
    print(kind, loss.item(), theirs.item())
    assert abs(loss.item() - theirs.item()) < 1e-6
    grads = {}
    for name, p in ours.named_parameters():
        grad = p.grad[:260] if name in names.VOCABULARY else p.grad
        grads |= names.to_theirs(name, grad, ours.config, "hf")
    wanted = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert grads.keys() == wanted.keys()
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        assert (grads[name] - grad).abs().max() < 1e-5 * largest, name
    print(max(float((grads[name] - grad).abs().max()) for name, grad in wanted.items()) / largest)
