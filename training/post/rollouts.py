"""What GRPO and PPO share: prompts, responses that the model samples, their rewards, and the updates from them.

A step samples `prompts` x `group` responses with the weights of now, judges them with plain functions (rewards.py), and
makes `updates` optimizer updates from them. The seed of a response is a function of (seed, step, row) and the position
in the prompts is exact, so a resumed run samples the same responses.

The responses are sampled from softmax(logits / temperature) of all ids, without top-k and top-p, and trained under the
same distribution. The log-probabilities that are trained are those of the training forward, never the sampler's.

Shapes: R responses in groups of equal prompts, T input tokens of the longest prompt with its response, L layers with a
router, k experts per token.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn

from architecture.generation.decode import generate, length_limit
from architecture.generation.sampling import row_generators
from architecture.generation.text import TextStream
from architecture.interface import IGNORE_INDEX, ModelOutput, RouterStats
from architecture.routing_rules import forced, routing_rules
from architecture.tokenizer import HARMONY
from data.documents import Source
from data.examples import BUNDLED, Example, open_examples
from data.loader import LoaderProgress
from data.rows import RowEncoder
from data.stories.tasks import tasks
from training.memory import forward_context
from training.post import objective
from training.post.policy import Scored, score
from training.post.rewards import Response, parse_rewards, reward_of
from training.post.sft import judged as of_tasks
from training.state.checkpoint import Progress
from training.state.run import Run, save
from training.step import StepResult, accumulate_gradients
from training.trainer import end_step, is_logged, update

ANY_LENGTH = 2**31  # tokens


class Rollout(NamedTuple):
    """The responses of a step, on the CPU. A response ends with EOT, which is a target, or is truncated."""

    input_ids: torch.Tensor  # (R, T) int64, [EOT, prompt, response], padded on the right with EOT
    targets: torch.Tensor  # (R, T) int64, IGNORE_INDEX on the prompt and behind the response
    responses: list[Response]  # their texts, for the rewards
    ended: torch.Tensor  # (R,) bool, whether a response ends with EOT
    chosen: (
        torch.Tensor | None
    )  # (R, T, L, k) int64, experts that the sampler chose, -1 where unknown; None if not kept

    @property
    def lengths(self) -> torch.Tensor:
        """(R,) int64, tokens of each response, with its EOT."""
        return (self.targets != IGNORE_INDEX).sum(1)


class Judged(NamedTuple):
    """The rewards of responses."""

    total: torch.Tensor  # (R,) float64, the weighted sum
    parts: dict[str, list[float]]  # of each reward, without its weight


class Prompts:
    """Takes the place of a TrainLoader: each item is the list of examples of a step. Its position is exact."""

    def __init__(self, source: Source, seed: int, number: int, state: dict[str, Any] | None):
        self._seed, self._number = seed, number
        self._documents = source.shuffled(seed, state and state["source"])
        self.progress = LoaderProgress(self._documents.epoch, state["documents"] if state else 0, 0)
        first = source.shuffled(seed, state and state["source"])
        texts = "\0".join(next(first).prompt for _ in range(number))
        self.first_batch_sha256 = hashlib.sha256(texts.encode()).hexdigest()

    def __next__(self) -> list[Example]:
        examples = [next(self._documents) for _ in range(self._number)]
        documents = self.progress.documents + self._number
        self.progress = LoaderProgress(self._documents.epoch, documents, 0)
        return examples

    def state_dict(self) -> dict[str, Any]:
        position = {"packing": "prompts", "seed": self._seed, "source": self._documents.state_dict()}
        return position | {"documents": self.progress.documents, "tokens": []}

    def close(self) -> None:
        self._documents.close()


def sample(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    seed: str,
    *,
    max_response: int,
    temperature: float,
    routing: bool = False,
) -> Rollout:
    """One response for each example, in one batch.

    seed: for row_generators.  routing: keep the experts that the sampler chooses.
    Raises ValueError if a prompt and max_response exceed the context of the model.
    """
    prompts, ends = list(map(prompt_encoder(tokenizer), examples)), end_tokens(tokenizer)
    log: list[tuple[list[int], torch.Tensor]] | None = [] if routing else None
    sampled = generate(
        model,
        prompts,
        max_tokens=max_response,
        temperature=temperature,
        stop_tokens=ends,
        generators=row_generators(seed, len(prompts)),
        routing=log,
    )
    starts = [len(prompt) for prompt in prompts]
    lengths = [start + len(response) for start, response in zip(starts, sampled)]
    input_ids = torch.full((len(prompts), max(lengths) - 1), tokenizer.eot_token)
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    for row, (prompt, response) in enumerate(zip(prompts, sampled)):
        input_ids[row, : lengths[row] - 1] = torch.tensor([*prompt, *response[:-1]])
        targets[row, starts[row] - 1 : lengths[row] - 1] = torch.tensor(response)
    ended = [response[-1] in ends for response in sampled]
    responses = [
        Response(text_of(tokenizer, ids[:-1] if over else ids), example, over, len(ids))
        for ids, over, example in zip(sampled, ended, examples)
    ]
    chosen = None if log is None else chosen_experts(log, starts, lengths)
    return Rollout(input_ids, targets, responses, torch.tensor(ended), chosen)


def prompt_encoder(tokenizer: Any) -> Callable[[Example], list[int]]:
    """What turns an example into the ids in front of its response, as in supervised fine-tuning."""
    encode = RowEncoder(tokenizer, ANY_LENGTH, None)

    def ids_of(example: Example) -> list[int]:
        row = encode(example)
        return row.ids[: int(row.scored.argmax())].tolist()

    return ids_of


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response: EOT, and that of a chat format."""
    chat = [tokenizer.encode_single_token("<|return|>")] if tokenizer.name == HARMONY else []
    return tokenizer.eot_token, *chat


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, ids)) + stream.finish()


def chosen_experts(
    log: list[tuple[list[int], torch.Tensor]], starts: Sequence[int], ends: Sequence[int]
) -> torch.Tensor:
    """(R, T, L, k) int64 from what generate_steps put into `routing`; -1 where the sampler did not choose.

    starts, ends: lengths of each prompt, and of it with its response, whose last token the sampler never read.
    """
    _, first = log[0]
    L, _, longest, k = first.shape
    found = torch.full((len(starts), max(ends) - 1, L, k), -1)
    for row, start in enumerate(starts):
        found[row, :start] = first[:, row, longest - start :].transpose(0, 1)
    start, end = torch.tensor(starts), torch.tensor(ends)
    for number, (held, chosen) in enumerate(log[1:]):
        rows = torch.tensor(held)
        place = start[rows] + number
        read = place < end[rows] - 1
        found[rows[read], place[read]] = chosen[:, read, 0].transpose(0, 1)
    return found


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


class Replay:
    """Has the routers of a model follow recorded experts, in the forward pass and when a block is computed again.

    The router's probabilities are those of now, from its full logits, so that it has a gradient.
    """

    def __init__(self, model: nn.Module):
        self.model, self.chosen = model, None

    def follow(self, chosen: torch.Tensor | None) -> None:
        """Follow chosen, (B, T, L, k) int64, until the next call; -1 and None leave the choice to the router."""
        self.chosen = None if chosen is None else [layer.flatten(0, 1) for layer in chosen.unbind(2)]

    def __enter__(self) -> Replay:
        numbers = iter(range(self.model.config.num_hidden_layers))

        def rule_of(layer: int, rule: Callable) -> Callable:
            number = next(numbers)  # routing_rules asks in the order of the layers

            def choose(own: torch.Tensor) -> torch.Tensor:
                if self.chosen is None:
                    return own
                recorded = self.chosen[number].to(own.device)
                return torch.where(recorded >= 0, recorded, own)

            return forced(rule, choose)

        self._rules = routing_rules(self.model, rule_of)
        self._rules.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._rules.__exit__(*error)


class NoReplay:
    """In place of Replay: the routers choose themselves."""

    def follow(self, chosen: torch.Tensor | None) -> None:
        pass


def flips(router: RouterStats, chosen: torch.Tensor) -> torch.Tensor:
    """(2,) int64: how many choices of the routers differ from recorded ones as sets, and how many were compared.

    chosen: (B, T, L, k) int64, -1 where unknown.  Under Replay, the choices that the routers would have made count.
    """
    k = chosen.shape[-1]
    own = [layer.choice.topk(k, dim=-1).indices.view(*chosen.shape[:2], k) for layer in router.routing]
    known = chosen[..., 0] >= 0
    differ = (torch.stack(own, dim=2).sort(-1).values != chosen.sort(-1).values).any(-1)
    return torch.stack(((differ & known).sum(), known.sum()))


class RolloutObjective(objective.Objective):
    """Samples responses and judges them; a subclass learns from them.

    cfg: a RolloutConfig.
    """

    group = 1  # responses to a prompt in a step

    def __init__(self, cfg: Any, tokenizer: Any):
        super().__init__(cfg, tokenizer)
        self.rewards = parse_rewards(cfg.rewards)
        pull = {"grpo": "beta", "ppo": "kl_coef"}[cfg.kind]
        if cfg.reference and not getattr(cfg, pull):
            raise ValueError(
                f"reference is read with {pull} above 0, got reference={cfg.reference} and {pull}=0.0; raise --{pull}, or "
                "leave --reference out"
            )
        self.step_in_words = (
            f"{cfg.prompts} prompts x {self.group} responses of at most {cfg.max_response} tokens, trained "
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
        cfg = self.cfg
        found = open_examples(
            cfg.dataset, Example, split=split, val_dataset=cfg.val_dataset, bundled=tasks, answered=False
        )
        if split == "train":
            self.examples = found
            return found
        self.held_out = [found[index] for index in range(min(cfg.held_out, len(found)))]
        for example in (self.examples[0], *self.held_out):  # raises for data that a reward cannot judge
            for name in self.rewards:
                reward_of(name, Response(example.response, example, True, 0))
        return self.stories(identity)

    def open_loader(self, source: Source, tokenizer: Any, **options: Any) -> Prompts:
        return Prompts(source, options["seed"], self.cfg.prompts, options["state"])

    def open_model(self, model: nn.Module, state: dict[str, Any] | None) -> None:
        self.routed = bool(hasattr(model, "routed_experts") and model.routed_experts())
        if self.cfg.routing_replay and not self.routed:
            raise ValueError(
                f"routing_replay needs a model with routers, and this {self.cfg.model} model has none; leave it out"
            )
        self.require_room(length_limit(model))

    def require_room(self, limit: int) -> None:
        """Raise ValueError if a prompt leaves no room for max_response: a run that met it later could not go on.

        Of the tasks of the story world, which are short and are made one by one, it looks at the held-out ones.
        """
        room, prompt_of = limit - self.cfg.max_response, prompt_encoder(self.tokenizer)
        for example in [*self.held_out, *(self.examples if self.examples.name != BUNDLED else ())]:
            if not example.messages and len(example.prompt.encode()) < room:
                continue  # a token has a byte or more
            if (number := len(prompt_of(example))) > room:
                raise ValueError(
                    f"{example.name}: the prompt needs {number} tokens, and a text may have {limit} (the model's context "
                    f"limit) with max_response={self.cfg.max_response}; lower --max_response, or shorten the prompt"
                )

    def step(self, run: Run, progress: Progress) -> tuple[StepResult, dict[str, float], dict[str, float]]:
        began, cfg = time.perf_counter(), self.cfg
        measured = is_logged(cfg, progress.step + 1, progress.share_done(cfg, margin=1))
        with saving(run, progress):
            examples = [example for example in next(run.loader) for _ in range(self.group)]
            keep = self.routed and (measured or cfg.routing_replay)
            rollout = self.sample(run, examples, f"{cfg.seed} step {progress.step}", routing=keep)
            sampled = time.perf_counter() - began
            judged = self.judge(rollout)
        self.compared: list[int] | None = None  # of flips, in the first update of the step
        result, norms, records = self.learn(run, progress, rollout, judged, measured)
        end_step(run, progress, result)
        seconds = time.perf_counter() - began
        if self.compared:
            records["post/routing_flips"] = self.compared[0] / self.compared[1]
        records |= self.reward_record("post", judged) | {
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
        with saving(run, progress):
            rollout = self.sample(run, self.held_out, f"{self.cfg.seed} held-out")
            judged = self.judge(rollout)
        responses, step = rollout.responses, progress.step
        run.writer.text(step, "samples/response", f"{responses[0].example.prompt}{responses[0].text}")
        record = self.reward_record("val", judged) | {
            "val/response_tokens": float(rollout.lengths.double().mean()),
            "val/ended": float(rollout.ended.double().mean()),
        }
        record |= of_tasks(self.held_out, [response.text for response in responses])
        told = ", ".join(f"{tag.removeprefix('val/')} {value:.4g}" for tag, value in record.items())
        run.writer.say(f"step {step}: on {len(responses)} held-out prompts {told}")
        return record

    def sample(self, run: Run, examples: Sequence[Example], seed: str, routing: bool = False) -> Rollout:
        cfg = self.cfg
        with run.autocast():
            return sample(
                run.model,
                self.tokenizer,
                examples,
                seed,
                max_response=cfg.max_response,
                temperature=cfg.temperature,
                routing=routing,
            )

    def judge(self, rollout: Rollout) -> Judged:
        """Raises ValueError, which names reward and prompt, if a reward raises or is no finite number."""
        parts = {name: [reward_of(name, response) for response in rollout.responses] for name in self.rewards}
        weighted = [[weight * value for value in parts[name]] for name, weight in self.rewards.items()]
        return Judged(torch.tensor(weighted, dtype=torch.float64).sum(0), parts)

    def reward_record(self, group: str, judged: Judged) -> dict[str, float]:
        """The mean reward, and that of each part."""
        parts = {f"{group}/reward/{name}": fmean(values) for name, values in judged.parts.items()}
        return {f"{group}/reward": float(judged.total.mean())} | parts

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
        """What `of` makes of what a model says of each batch, without gradients.

        With routing_replay, the policy follows the recorded experts, and the reference chooses its own.
        """
        found = []
        with self.replay(run, model) as replay, run.autocast():
            for batch in batches:
                replay.follow(batch.get("chosen"))
                ids, targets = (batch[name].to(run.device) for name in ("input_ids", "targets"))
                found.append(of(score(model, ids, targets, temperature=self.cfg.temperature)))
        return found

    def replay(self, run: Run, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        if self.cfg.routing_replay and model is run.compiled:
            return Replay(run.model)
        return contextlib.nullcontext(NoReplay())

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
            replay.follow(chosen)
            ids, targets = batch["input_ids"], batch["targets"]
            scored = score(run.compiled, ids, targets, temperature=self.cfg.temperature)
            loss = loss_of(scored, batch)
            sums.append(torch.stack((loss.detach(), -scored.logprobs.detach().sum())))
            if comparing and chosen is not None:
                compared.add_(flips(scored.router, chosen))
            return ModelOutput(None, loss * total, None, -scored.logprobs.detach(), scored.router)

        with self.replay(run, run.compiled) as replay, torch.set_grad_enabled(train):
            result = accumulate_gradients(
                run.compiled,
                batches,
                self.cfg,
                previous_share=progress.expert_share,
                carry=None,
                token_bytes=run.token_bytes,
                autocast=forward_context(run.model, self.cfg.offload, run.autocast),
                counts=counts,
                copied=run.copied,
                measured=measured,
                forward=forward,
            )
        norms = {"total": 0.0}
        if train:
            plain = [{name: batch[name] for name in ("input_ids", "targets")} for batch in batches]
            result, norms = update(run, progress, result, plain, measured)
        if comparing and int(compared[1]):
            self.compared = compared.tolist()
        loss, nats = torch.stack(sums).cpu().double().sum(0).tolist()
        return result._replace(loss=torch.tensor(nats / total)), norms, loss


@contextlib.contextmanager
def saving(run: Run, progress: Progress) -> Iterator[None]:
    """If a ValueError comes, save the run as it was when the `with` began, and say so."""
    position = run.loader.state_dict()
    try:
        yield
    except ValueError as error:
        path = save(run, progress, None, position)
        raise ValueError(f"{error}; the run was saved as {path}; continue it with --resume") from error
