"""GPT-OSS with a state that is carried from segment to segment: what this adds to gptoss.py.

A text is read in segments. One vector per row, the state, is carried from each segment to the next. It
enters a segment through a slot in front of the tokens: a learned embedding plus a projection of the state.
The output of the segment's last token becomes the next state. A document starts with a state of zeros.

The idea comes from the README of VizuaraAI's nano-gpt-oss, which has no code for it. Choices made here:
  - The slot has position -1, so that tokens keep the positions they have in the trunk (gptoss.py).
  - The output is RMS-normalized before it becomes the state, which bounds the length of the state by sqrt(D).
  - With gated_update, the next state lies between the old state and the new output.

Three choices were measured (configs/ablations/context_choices.yaml: 500,000 tokens of TinyStories, segments
of 64, five seeds, nats per token after the first segment). No difference is resolved:

    gated_update         no: without the gate 0.004 +- 0.004 lower, and 2 D^2 + D fewer parameters
    --tbptt              4: gradients through 4, 2 or 1 segments differ by less than 0.003 +- 0.006 and take
                         the same time; 4 segments of 8 x 64 are 2,048 tokens per step, as with train.py
    slot_always_visible  yes: 0.003 +- 0.007 lower than with a slot hidden beyond a window of half a segment

Shapes: B rows, T tokens of a segment, D hidden_size.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from architecture.generation.decode import check_prompts
from architecture.generation.sampling import check_sampling, draw, filter_logits, require_finite
from architecture.generation.segments import PADDING, SLOT, SegmentCache, SegmentDecoder
from architecture.gptoss import PRESETS, ModelConfig, Transformer, visible_keys
from architecture.interface import IGNORE_INDEX, ModelOutput
from common.settings import option


# ----------------------------------------------------------------------------------------------- config
@dataclass(frozen=True, kw_only=True)
class ContextConfig(ModelConfig):
    """The config of the trunk and the settings of the state."""

    segment_length: int = option(64, "tokens of a segment; block_size of train_context.py", at_least=1)
    slot_always_visible: bool = option(True, "sliding layers see the slot from beyond their window, too")
    gated_update: bool = option(False, "the next state is a learned mixture of the old one and the output")
    carry_state: bool = option(True, "false: the state is zero in every segment, for comparison")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            "segment_length",
            self.segment_length <= self.context_limit,
            f"must be between 1 and the context limit ({self.context_limit})",
            f"set segment_length={self.context_limit} or fewer",
        )

    def parameter_counts(self) -> dict[str, int]:
        """As for the trunk; the parameters of the slot and the state are not active for a token."""
        d, counts = self.hidden_size, super().parameter_counts()
        gate = 2 * d * d + d if self.gated_update else 0
        return counts | {"total": counts["total"] + d + d * d + gate}

    def flops_per_token(self, block_size: int) -> float:
        """As for the trunk, with the slot, which passes through every block like a token."""
        return super().flops_per_token(block_size + 1) * (block_size + 1) / block_size


# --------------------------------------------------------------------------------------------- the parts
def visible_keys_and_slot(
    query_positions, key_positions, window: int | None, *, always: bool
) -> torch.Tensor:
    """visible_keys and the slot: (B or 1, T) and (B or 1, S) int64 -> (B or 1, 1, T, S) bool.

    always: tokens also see the slot from beyond the window. A query in front of the slot is padding; it sees
    everything, so that no row is empty, and its output is not used.
    """
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    slot = key == SLOT
    if window is not None and not always:
        slot = slot & (key > query - window)
    return visible_keys(query_positions, key_positions, window) | slot | (query < SLOT)


class UpdateGate(nn.Module):
    """The share of the new output in each value of the next state. old, new (B, D) -> (B, D) in (0, 1)"""

    def __init__(self, size: int):
        super().__init__()
        self.linear = nn.Linear(2 * size, size)

    def forward(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat((old, new), dim=-1)).sigmoid()


# ----------------------------------------------------------------------------------------------- the model
class ContextTransformer(Transformer):
    """The trunk over one segment of each row. `carry` is the state (B, D), or None at the beginning."""

    name, config_class, presets = "gptoss_context", ContextConfig, PRESETS
    carries = True  # trained on lanes, whose batches mark the beginnings of documents
    extends = "gptoss"  # can start from weights of this model, which lack added_parameters
    length_limit = 2**31 - 1  # longest text; it is read segment by segment
    lean_parts = *Transformer.lean_parts, UpdateGate
    optimizer_rules = (
        (r"slot", "no_decay"),
        (r"state_projection\.weight", "decay"),
        (r"update_gate\.linear\.weight", "decay"),
    )

    def __init__(self, config: ContextConfig, *, generator: torch.Generator | None = None, **backends: str):
        """Arguments as for the trunk. The weights of the trunk are drawn first, as without this variant."""
        super().__init__(config, generator=generator, **backends)
        if self.attention_backend == "flex":
            raise ValueError("attention=flex cannot mask the slot; use attention=sdpa")
        d = config.hidden_size
        self.mask = functools.partial(visible_keys_and_slot, always=config.slot_always_visible)
        self.slot = nn.Parameter(torch.zeros(d))
        self.state_projection = nn.Linear(d, d, bias=False)
        self.update_gate = UpdateGate(d) if config.gated_update else None
        self._init_added(generator)

    @classmethod
    def auto_backends(cls, config: ContextConfig, device_type: str, dtype: str) -> dict[str, str]:
        """As for the trunk, without flex, which cannot mask the slot."""
        return super().auto_backends(config, device_type, dtype) | {"attention": "sdpa"}

    @property
    def added_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the trunk does not have."""
        gate = ("update_gate.linear.weight", "update_gate.linear.bias")
        return ("slot", "state_projection.weight", *(gate if self.config.gated_update else ()))

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        carry: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
        **others,
    ) -> ModelOutput:
        """As for the trunk, for one segment of each row.

        carry: (B, D), the state after the previous segment; None for zeros.
        reset: (B,) bool, the rows in which a document begins.
        The carry of the output is the state after this segment. It comes from the last position with a
        target, or without targets from the last position; a row without any target keeps its state.
        """
        state = self.new_state(len(input_ids))
        if carry is not None:
            if carry.shape != state.shape:
                raise ValueError(
                    f"carry must have a state of {state.shape[1]} values for each of {len(state)} rows, got "
                    f"{tuple(carry.shape)}; pass the carry that the previous segment returned"
                )
            if self.config.carry_state:
                state = carry.to(state.dtype)
                state = state if reset is None else state.masked_fill(reset[:, None], 0.0)
        return super().forward(input_ids, targets, carry=state, **others)

    # ------------------------------------------------------------------ methods of the trunk, overridden
    def embed(self, input_ids, targets, positions, cache, carry):
        """-> hidden (B, 1 + T, D) with the slot in front, positions and counted (B or 1, 1 + T).

        With a cache, a row gets a slot only if it begins a segment, that is, if its positions contain 0.
        If no row begins one, the column of the slot is left out.
        """
        length = self.config.segment_length
        if input_ids.shape[1] > length:
            raise ValueError(
                f"a segment may have at most {length} tokens (segment_length), got {input_ids.shape[1]}; "
                "pass the rest as the next segment, with the carry of this one"
            )
        if cache is not None:
            if positions is None:
                raise ValueError("positions are required with a cache; pass those within the segment")
            cache.check_room(*input_ids.shape)
        hidden, positions, counted = super().embed(input_ids, targets, positions, None, None)
        # padding has negative positions in the trunk, but -1 is the slot here
        positions = positions.masked_fill(positions < 0, PADDING)
        at = torch.full_like(positions[:, :1], SLOT)
        if cache is not None:
            begins = (positions == 0).any(1, keepdim=True)
            if not begins.any():
                return hidden, positions, counted
            at = at.where(begins, PADDING)
        slot = self.slot + self.state_projection(carry.to(self.slot.dtype))
        hidden = torch.cat((slot[:, None].to(hidden.dtype), hidden), dim=1)
        if counted is None:
            counted = torch.ones_like(input_ids, dtype=torch.bool)
        return hidden, torch.cat((at, positions), dim=1), F.pad(counted, (1, 0))

    def run_blocks(self, hidden, positions, counted, cache, documents=None):
        """As for the trunk, on the output of embed. The results do not contain the slot.

        A segment is of one document, and documents is not used.
        """
        tokens = hidden.shape[1]
        if cache is None or (positions[:, 0] == SLOT).any():
            tokens -= 1
        hidden, router = super().run_blocks(hidden, positions, counted, cache)
        if router is not None:
            router = replace(
                router,
                logits=tuple(x[:, -tokens:] for x in router.logits),
                chosen=tuple(x[:, -tokens:] for x in router.chosen),
            )
        return hidden[:, -tokens:], router

    def head(self, hidden, targets, return_logits: bool, carry) -> ModelOutput:
        """hidden (B, T, D) -> logits and loss as for the trunk, and the next state (B, D) as carry."""
        output = super().head(hidden, targets, return_logits, None)
        return output._replace(carry=self.next_state(hidden, targets, carry))

    def next_state(self, hidden, targets, state) -> torch.Tensor:
        """The state (B, D) after a segment with the outputs hidden (B, T, D)."""
        if targets is None:
            last = hidden[:, -1]
        else:
            scored = targets != IGNORE_INDEX
            places = torch.arange(1, 1 + targets.shape[1], device=targets.device)
            count = (scored * places).amax(1)  # (B,) tokens up to the last one with a target
            index = (count - 1).clamp(min=0)[:, None, None].expand(-1, -1, hidden.shape[-1])
            last = hidden.gather(1, index).squeeze(1)
        new = F.rms_norm(last.to(state.dtype), last.shape[-1:], eps=1e-5)
        if self.update_gate is not None:
            share = self.update_gate(state.to(self.slot.dtype), new.to(self.slot.dtype))
            new = torch.lerp(state, new, share.to(state.dtype))
        return new if targets is None else torch.where(count[:, None] > 0, new, state)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As for the trunk, and the added parameters."""
        super().init_weights(generator)
        if hasattr(self, "slot"):  # not yet when the constructor of the trunk calls this
            self._init_added(generator)

    @torch.no_grad()
    def _init_added(self, generator: torch.Generator | None) -> None:
        """Slot and projected state start with the std of an embedding, the gate near 1/2."""
        self.slot.normal_(0.0, 0.02, generator=generator)
        std = 0.02 * self.config.hidden_size**-0.5
        self.state_projection.weight.normal_(0.0, std, generator=generator)
        if self.update_gate is not None:
            self.update_gate.linear.weight.normal_(0.0, 0.02, generator=generator)
            self.update_gate.linear.bias.zero_()

    # ----------------------------------------------------------------------------------------- generation
    def new_state(self, rows: int) -> torch.Tensor:
        """(rows, D) zeros in float32 or wider, the state at the beginning of a document."""
        dtype = torch.promote_types(self.slot.dtype, torch.float32)
        return torch.zeros(rows, self.config.hidden_size, dtype=dtype, device=self.slot.device)

    def new_cache(self, batch: int, max_length: int | None = None) -> SegmentCache:
        """An empty cache for the current segment of each row; max_length is not used."""
        cfg, weight = self.config, self.unembedding.weight
        head_shape = (cfg.num_key_value_heads, cfg.head_dim)
        return SegmentCache(
            cfg.num_hidden_layers, batch, cfg.segment_length, head_shape, weight.device, weight.dtype
        )

    def new_decoder(self, rows: int, max_length: int, use_cache: bool) -> SegmentDecoder:
        """The decoder that generation/decode.py uses for this model."""
        return SegmentDecoder(self, rows, use_cache)


class TokenGenerator:
    """Generates one text over several calls of generate(), until reset() begins another.

    The signature is that of OpenAI's reference (gpt_oss/torch/model.py), where max_tokens=0 means no limit.
    In training, documents begin with end-of-text; the first prompt after a reset should also begin with it.
    """

    def __init__(
        self, checkpoint: str | Path, device: str | torch.device = "cpu", *, seed: int | None = None
    ):
        """checkpoint: a file of this variant.  seed: for sampling; None draws a new one."""
        self.model = ContextTransformer.from_checkpoint(checkpoint, device)
        seed = secrets.randbits(31) if seed is None else seed
        self.random = torch.Generator().manual_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Begin a new document."""
        self._decoder = SegmentDecoder(self.model, rows=1)
        self._waiting: list[int] = []  # tokens that the model has not read yet

    def generate(
        self,
        prompt_tokens: Sequence[int],
        stop_tokens: Sequence[int] = (),
        temperature: float = 1.0,
        max_tokens: int = 0,
        return_logprobs: bool = False,
    ) -> Iterator[int | tuple[int, float]]:
        """Append the prompt to the text, then generate: an iterator over ids.

        return_logprobs: yields (id, log probability in nats at temperature 1). Every id that was yielded
        belongs to the text, including a stop token. Raises ValueError at once for an empty prompt and for
        arguments out of range.
        """
        check_prompts([prompt_tokens], self.model.config.vocab_size)
        if max_tokens < 0:
            raise ValueError(
                f"max_tokens must be at least 0, got {max_tokens}; 0 generates until a stop token"
            )
        check_sampling(1, temperature)
        self._waiting += prompt_tokens
        return self._generate(frozenset(stop_tokens), temperature, max_tokens, return_logprobs)

    def _generate(self, stop_tokens, temperature, max_tokens, return_logprobs):
        decoder, number = self._decoder, 0
        while max_tokens == 0 or number < max_tokens:
            if self._decoder is not decoder:
                raise ValueError("reset() ended the text of this generate(); call generate() again")
            logits = decoder.feed([self._waiting]).cpu().double()
            require_finite(logits)
            if temperature == 0:
                token = int(logits.argmax())
            else:
                uniform = torch.rand(1, generator=self.random, dtype=torch.float64)
                token = int(draw(filter_logits(logits, temperature), uniform))
            self._waiting, number = [token], number + 1
            yield (token, float(logits.log_softmax(-1)[0, token])) if return_logprobs else token
            if token in stop_tokens:
                return
