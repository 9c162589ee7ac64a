"""What GRPO and PPO share: prompts, responses that the model samples, their rewards, and the updates from them.

A step samples `prompts` x `group` responses with the present weights, judges them with plain functions (rewards.py), and
makes one or more optimizer updates from them. The seed of a response is a function of (seed, step, row) and the position
in the prompts is exact, so a resumed run samples the same responses.

Shapes: R responses in groups of equal prompts, T input tokens of the longest prompt with its response.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.generation.decode import length_limit
from architecture.interface import IGNORE_INDEX, ModelOutput
from data.documents import Source
from data.examples import Example
from training.post import objective
from training.post.policy import Scored, score
from training.post.prompts import Prompts
from training.post.reference import IN_TRAINING_ONLY
from training.post.replay import flips, replayed_routing
from training.post.rewards import Response, parse_rewards, reward_of
from training.post.sampling import Rollout, prompt_encoder, sample
from training.post.settings import RolloutConfig
from training.state.checkpoint import Progress
from training.state.run import Run, save
from training.step import StepResult
from training.trainer import end_step, gradients, next_is_logged, update

CHECK_SECONDS = 10  # for the rewards to judge the training data before a run; 100,000 lines usually take 2


class Judged(NamedTuple):
    """The rewards of responses."""

    total: torch.Tensor  # (R,) float64, the weighted sum
    parts: dict[str, list[float]]  # of each reward, without its weight

    def record(self, group: str) -> dict[str, float]:
        """The mean reward, and that of each part."""
        parts = {f"{group}/reward/{name}": fmean(values) for name, values in self.parts.items()}
        return {f"{group}/reward": float(self.total.mean())} | parts


def micro_batches(
    size: int, rows: torch.Tensor, targets: torch.Tensor, **tensors: torch.Tensor
) -> tuple[list[dict[str, torch.Tensor]], list[int]]:
    """The rows of a rollout in batches of `size`, without columns that are padding in all of its rows, and their targets.

    rows: (n,) int64, those that train; each has a target.  tensors: (R, T, ...), or (R,) for one value of a response.
    """
    batches, counts = [], []
    for some in rows.split(size):
        scored = targets[some] != IGNORE_INDEX
        width = int(scored.any(0).nonzero().max()) + 1
        held = {"targets": targets, **tensors}
        batches.append({n: x[some, :width] if x.ndim > 1 else x[some] for n, x in held.items()})
        counts.append(int(scored.sum()))
    return batches, counts


class RolloutObjective(objective.Objective):
    """Samples responses and judges them; a subclass learns from them."""

    answered = False  # a prompt needs no response

    def __init__(self, cfg: RolloutConfig, tokenizer: Any):
        super().__init__(cfg, tokenizer)
        self.rewards = parse_rewards(cfg.rewards)
        self.step_in_words = (
            f"{cfg.prompts} prompts x {cfg.group} responses of at most {cfg.max_response} tokens, trained "
            f"{cfg.batch_size} at a time"
        )

    def learn(
        self, run: Run, progress: Progress, rollout: Rollout, judged: Judged, measured: bool
    ) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        """Update the weights, by `optimize`. Returns the last result, the norms, and records.

        measured: whether the records are logged.
        """
        raise NotImplementedError

    def open_data(self, *, split: str, identity: str | None = None) -> Source:
        found = super().open_data(split=split, identity=identity)
        if split == "train":
            for example in (found[0], *self.held_out):  # raises for data that a reward cannot judge
                for name in self.rewards:
                    reward_of(name, Response(example.response, example, True, 1))
            until = time.perf_counter() + CHECK_SECONDS
            for example in itertools.takewhile(lambda _: time.perf_counter() < until, found.in_memory()):
                for name in self.rewards:  # without a text, because judging all of them may take minutes
                    reward_of(name, Response("", example, True, 1))
        return found

    def open_loader(self, source: Source, tokenizer: Any, **options: Any) -> Prompts:
        return Prompts(source, options["seed"], self.cfg.prompts, options["state"])

    def open_model(self, model: nn.Module, state: dict[str, Any] | None) -> None:
        self.routed = bool(hasattr(model, "routed_experts") and model.routed_experts())
        if self.cfg.routing_replay and not self.routed:
            raise ValueError(
                f"routing_replay needs a model with routers, and this {self.cfg.model} model has none; leave it out"
            )
        if changing := [name for name in IN_TRAINING_ONLY if getattr(model.config, name, None)]:
            raise ValueError(
                f"{self.cfg.program} compares the log-probabilities of several passes, which {' and '.join(changing)} of "
                f"the model would change from one to the next; add {' '.join(f'--{n} {IN_TRAINING_ONLY[n]}' for n in changing)}"
            )
        self.require_room(length_limit(model))
        super().open_model(model, state)

    def require_room(self, limit: int) -> None:
        """Raise ValueError if a prompt leaves no room for max_response: a run that met it later could not go on."""
        room, prompt_of = limit - self.cfg.max_response, prompt_encoder(self.tokenizer)
        for example in (*self.held_out, *self.source.long_prompts(room)):
            if (number := len(prompt_of(example))) > room:
                raise ValueError(
                    f"{example.name}: the prompt needs {number} tokens, and a text may have {limit} (the model's context "
                    f"limit) with max_response={self.cfg.max_response}; lower --max_response, or shorten the prompt"
                )

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        began, cfg = time.perf_counter(), self.cfg
        measured = next_is_logged(run, progress)
        position = run.loader.state_dict()
        examples = [example for example in next(run.loader) for _ in range(cfg.group)]
        keep = self.routed and (measured or cfg.routing_replay)
        rollout = self.sample(run, examples, f"{cfg.seed} step {progress.step}", routing=keep)
        sampled = time.perf_counter() - began
        judged = self.judge(run, progress, rollout, position)
        self.compared: list[int] | None = None  # of flips, in the first update of the step
        result, norms, records = self.learn(run, progress, rollout, judged, measured)
        end_step(run, progress, result)
        seconds = time.perf_counter() - began
        if self.compared:
            records["post/routing_flips"] = self.compared[0] / self.compared[1]
        records |= judged.record("post") | {
            "post/reward_std": float(judged.total.std(correction=0)),
            "post/response_tokens": float(rollout.lengths.double().mean()),
            "post/ended": float(rollout.ended.double().mean()),
            "post/sampling_share": sampled / seconds,
            "post/samples_per_second": len(examples) / seconds,
            "data/padding_share": float((rollout.targets == IGNORE_INDEX).double().mean()),
        }
        return result, norms, records

    def evaluate(self, run: Run, progress: Progress) -> dict[str, float]:
        """Judge one response to each held-out example, with the same seeds every time."""
        rollout = self.sample(run, self.held_out, f"{self.cfg.seed} held-out")
        judged = self.judge(run, progress, rollout, run.loader.state_dict())
        record = judged.record("val") | {
            "val/response_tokens": float(rollout.lengths.double().mean()),
            "val/ended": float(rollout.ended.double().mean()),
        }
        return self.shown(run, progress, rollout.responses, record)

    def sample(self, run: Run, examples: Sequence[Example], seed: str, routing: bool = False) -> Rollout:
        return sample(
            run.model,
            self.tokenizer,
            examples,
            seed,
            max_response=self.cfg.max_response,
            temperature=self.cfg.temperature,
            routing=routing,
        )

    def judge(self, run: Run, progress: Progress, rollout: Rollout, position: dict[str, Any]) -> Judged:
        """The rewards of responses.

        If a reward raises or is no finite number, this saves the run as it was at that position in the prompts, and
        raises ValueError, which names reward and prompt.
        """
        try:
            parts = {name: [reward_of(name, r) for r in rollout.responses] for name in self.rewards}
        except ValueError as error:
            path = save(run, progress, None, position)
            raise ValueError(f"{error}; the run was saved as {path}; continue it with --resume") from error
        weighted = [[weight * value for value in parts[name]] for name, weight in self.rewards.items()]
        return Judged(torch.tensor(weighted, dtype=torch.float64).sum(0), parts)

    def logprobs(
        self, run: Run, model: nn.Module, batches: list[dict[str, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """What a model gives to the targets of each batch, (B, T) float32 on the device, without gradients."""
        return self.measure(run, model, batches, lambda scored: scored.logprobs)

    @torch.no_grad()
    def measure(
        self,
        run: Run,
        model: nn.Module,
        batches: list[dict[str, torch.Tensor]],
        of: Callable[[Scored], Any],
    ) -> list[Any]:
        """Score each batch with a model, without gradients, and return `of` each result.

        With routing_replay, the policy follows the recorded experts, and the reference chooses its own.
        """
        found = []
        with self.routing(run, model) as follow, run.autocast():
            for batch in batches:
                follow(batch.get("chosen"))
                ids, targets = (batch[name].to(run.device) for name in ("input_ids", "targets"))
                found.append(of(score(model, ids, targets, temperature=self.cfg.temperature)))
        return found

    def routing(self, run: Run, model: nn.Module) -> contextlib.AbstractContextManager[Callable]:
        """replayed_routing of the policy, if the run has it; else nothing is followed."""
        if self.cfg.routing_replay and model is run.compiled:
            return replayed_routing(run.model)
        return contextlib.nullcontext(lambda chosen: None)

    def optimize(
        self,
        run: Run,
        progress: Progress,
        batches: list[dict[str, torch.Tensor]],
        counts: list[int],
        loss_of: Callable[[Scored, dict[str, torch.Tensor]], torch.Tensor],
        *,
        measured: bool,
        train: bool = True,
    ) -> tuple[StepResult, dict[str, float], float]:
        """One update of the weights, with the gradients of all batches. Returns the result, the norms and the loss.

        batches, counts: from micro_batches. They have input_ids, targets, chosen if it was kept, and what loss_of needs.
        loss_of: gets what the policy says of a batch, and its tensors on the device, and returns the part of this batch
        in the loss of the update, ().
        train: False measures only. The loss of the result is the mean of -log p of the responses.
        """
        total, sums = sum(counts), []
        compared = torch.zeros(2, dtype=torch.int64, device=run.device)
        comparing = measured and self.compared is None  # later updates have other weights than the sampler

        def forward(carry: Any = None, **batch: torch.Tensor) -> ModelOutput:
            chosen = batch.get("chosen")
            follow(chosen)
            ids, targets = batch["input_ids"], batch["targets"]
            scored = score(run.compiled, ids, targets, temperature=self.cfg.temperature)
            loss = loss_of(scored, batch)
            sums.append(torch.stack((loss.detach(), -scored.logprobs.detach().sum())))
            if comparing and chosen is not None:
                compared.add_(flips(scored.router, chosen))
            return ModelOutput(None, loss * total, None, -scored.logprobs.detach(), scored.router)

        with self.routing(run, run.compiled) as follow, torch.set_grad_enabled(train):
            result = gradients(run, progress, batches, counts, measured, forward)
        norms = {"total": 0.0}
        if train:
            plain = [{name: batch[name] for name in ("input_ids", "targets")} for batch in batches]
            result, norms = update(run, progress, result, plain, measured)
        if comparing and int(compared[1]):
            self.compared = compared.tolist()
        loss, nats = torch.stack(sums).cpu().double().sum(0).tolist()
        return result._replace(loss=torch.tensor(nats / total)), norms, loss
