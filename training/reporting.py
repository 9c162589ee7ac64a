"""The records that a run logs, and the text at its start and end."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from statistics import fmean
from typing import Any

import torch

from architecture.generation.decode import length_limit
from architecture.generation.text import generate_texts
from architecture.interface import load_share
from common.device import peak_flops, peak_memory_gb
from data.documents import Source
from training import lora
from training.balance import BIAS_BUFFER
from training.costs import changed_fields, expert_layers
from training.monitor import captions, instruments
from training.monitor.page_layout import page_layout
from training.monitor.probes import context_record, sink_mass
from training.monitor.routing import Routing, max_violation, share_by_medium, total_variation
from training.state.checkpoint import Progress
from training.state.run import Run
from training.step import StepResult
from training.validation import Evaluation

NARRATE_SECONDS = 15.0
GAP = 0.25  # of validation loss above training loss, as a share of it, that means overfitting
PAGE = "http://localhost:6006/#custom_scalars"  # the default port of TensorBoard, and our layout
SHOWN = 8  # images in the logs
SAMPLE_SEED, SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 1, 300, 0.8  # for the stories


def step_record(run: Run, result: StepResult) -> dict[str, float]:
    """Loss, router statistics and data position of one step."""
    cfg = run.cfg
    record = {
        "data/epoch": run.loader.progress.epoch,
        "data/padding_share": 1 - result.tokens / cfg.slots_per_step,
        "train/loss": float(result.loss),
    }
    if result.load is not None:
        record |= instruments.by_layer("moe/max_violation", result.layers, max_violation(result.load))
    if result.nats is None:  # the last step of max_minutes, if it took longer than expected, is not measured
        return record
    record["train/bits_per_byte"] = float(result.nats / math.log(2) / result.num_bytes.clamp(min=1))
    if result.load is not None:
        record["train/balance_loss"] = float(result.balance_loss)
        record["train/z_loss"] = float(result.z_loss)
        if getattr(run.model.config, "capacity_factor", None) is not None:
            record |= instruments.by_layer("moe/dropped", result.layers, result.dropped)
        record |= instruments.margin_record(result.layers, result.margins)
        if result.logit_gradients is not None:
            tag = "moe/router_logit_grad_rms"
            record |= instruments.by_layer(tag, result.layers, result.logit_gradients)
    if result.expert_updates is not None:
        record |= instruments.update_record(result.expert_updates)
    return record


def gradient_record(norms: dict[str, float]) -> dict[str, float]:
    """Gradient norms before clipping: the total, and one for each kind of parameter."""
    return {f"optim/grad_norm/{kind}".removesuffix("/total"): norm for kind, norm in norms.items()}


def speed_record(run: Run, progress: Progress, since: tuple[int, float]) -> dict[str, float]:
    """Throughput since (tokens, seconds), memory, and utilization if the peak of the device is known."""
    rate = (progress.tokens - since[0]) / max(progress.seconds - since[1], 1e-9)
    record = {
        "perf/tokens_per_second": rate,
        "perf/peak_memory_gb": peak_memory_gb(run.device),
        "perf/seconds": progress.seconds,
        "data/tokens": progress.tokens,
    }
    peak = peak_flops(run.device, run.cfg.dtype)
    if peak is not None:
        done = rate * run.model.config.flops_per_token(run.cfg.block_size)
        record["perf/mfu"] = done / (run.ranks.number * peak)
    return record


def is_routed(run: Run) -> bool:
    """Whether the model has routers."""
    return any(name.endswith(BIAS_BUFFER) for name, _ in run.model.named_buffers())


def layout(run: Run) -> dict[str, dict[str, list[str]]]:
    """The TensorBoard charts that will have data in this run."""
    config = run.model.config
    return page_layout(
        routed=is_routed(run),
        capacity=getattr(config, "capacity_factor", None) is not None,
        sinks=getattr(config, "attention_sinks", False),
        utilisation=peak_flops(run.device, run.cfg.dtype) is not None,
        carries=run.cfg.carries,
        images=run.first_image_id is not None,
        kind=run.cfg.kind,
    )


def show_evaluation(
    run: Run, progress: Progress, found: Evaluation, batches: list[dict[str, torch.Tensor]]
) -> None:
    """Log an evaluation with its pictures and a story, and print one line about it.

    batches: the fixed validation batches. The first one gives the attention on the sinks.
    """
    step, writer = progress.step, run.writer
    record = {"val/loss": found.loss, "val/bits_per_byte": found.bits_per_byte}
    record |= instruments.position_record(found.by_position)
    if found.by_segment is not None:
        record |= instruments.position_record(found.by_segment, "val/loss_by_segment")
    if run.cfg.carries:
        record |= context_record(run.model, batches, run.device, run.autocast)
    if (routing := found.routing) is not None:
        record |= instruments.router_record(routing, progress.choices, progress.load)
        writer.show(
            step,
            "moe/load",
            load_share(routing.load).tolist(),
            pictures=lambda: instruments.load_picture(load_share(routing.load), routing.layers),
        )
        if run.first_image_id is not None:
            record |= show_media(run, step, routing)
        table = instruments.kinds_table(routing, run.token_kinds)
        writer.show(
            step,
            "moe/token_kinds",
            table,
            pictures=lambda: instruments.kinds_pictures(table),
            markdown=lambda: instruments.kinds_markdown(table),
        )
    batch = {name: tensor.to(run.device) for name, tensor in batches[0].items()}
    if mass := sink_mass(run.model, batch, run.autocast):
        record |= instruments.sink_record(mass)
        values = {f"layer_{layer:02d}": heads.tolist() for layer, heads in mass.items()}
        writer.show(step, "attention/sink_mass", values, pictures=lambda: instruments.sink_picture(mass))
    if run.examples:
        record |= show_captions(run, step)
    writer.log(step, record)
    if not run.examples:
        writer.text(step, "samples/story", sample_stories(run, 1)[0])
    writer.say(f"step {step}: validation loss {in_words(found)}")


def show_captions(run: Run, step: int) -> dict[str, float]:
    """Show images with what the model says. Returns the share of the examples in which it is right."""
    told = captions.captioned(run.model, run.examples)
    shown = told[:SHOWN]
    run.writer.show(
        step,
        "samples/captions",
        captions.as_json(shown),
        pictures=lambda: {"samples/captions": captions.picture(shown)},
        markdown=lambda: "\n\n".join(map(captions.as_line, shown)),
    )
    return {"val/exact_match": fmean(said.right for said in told)}


def show_media(run: Run, step: int, routing: Routing) -> dict[str, float]:
    """Show the load of the experts from text tokens and from image tokens. Returns their distance, by layer."""
    text, image = share_by_medium(routing, run.first_image_id)
    for tag, share, of in (("moe/load_text", text, ", text"), ("moe/load_image", image, ", images")):
        drawn = functools.partial(instruments.load_picture, share, routing.layers, tag, of)
        run.writer.show(step, tag, share.tolist(), pictures=drawn)
    distance = total_variation(text, image)
    return instruments.by_layer("moe/image_text_distance", routing.layers, distance)


def overfitting(val: float, train: Sequence[float], epoch: int) -> str:
    """What to say if the validation loss is far above the training loss in the third pass or later, else "".

    train: the training losses since the evaluation before.  epoch: the pass, counted from 0.
    """
    if epoch < 2 or not train or val <= (1 + GAP) * fmean(train):
        return ""
    return (
        f"overfitting: in pass {epoch + 1} over the data, validation loss is {val:.4f}, and training loss "
        f"{fmean(train):.4f}; use more text, a smaller model or a shorter run (sample.py --best takes the "
        "checkpoint of lowest validation loss)"
    )


def in_words(found: Evaluation) -> str:
    documents = f"{found.documents:,} {'document' if found.documents == 1 else 'documents'}"
    loss = f"{found.loss:.4f} nats/token ({documents}: an interval needs three or more), "
    if found.half_width is not None:
        loss = f"{found.loss:.4f} +- {found.half_width:.4f} nats/token (95 %, over {documents}), "
    return f"{loss}{found.bits_per_byte:.4f} bits per byte, over {found.tokens:,} tokens"


def samples(run: Run, number: int) -> list[str]:
    """What the trained model writes: about images of the validation data, or stories."""
    if run.examples:
        return [captions.as_line(told) for told in captions.captioned(run.model, run.examples[:number])]
    return sample_stories(run, number)


def sample_stories(run: Run, number: int) -> list[str]:
    """Stories that start a new text, with one seed, so that they differ by the weights alone."""
    tokens = min(SAMPLE_TOKENS, length_limit(run.model) - 1)
    return generate_texts(run.model, [""] * number, tokens, SAMPLE_TEMPERATURE, seed=SAMPLE_SEED)


def describe(run: Run, source: Source, validation: Source) -> str:
    """The first lines of a run: model, data, length, device and folders."""
    cfg, counts = run.cfg, run.model.config.parameter_counts()
    changed = ", ".join(changed_fields(cfg, run.model.config))
    length = f"{cfg.max_iters:,} steps" if cfg.max_iters else f"{cfg.max_minutes:g} minutes in steps"
    segments = f" x {cfg.tbptt} segments" if cfg.carries else ""
    unit = "windows" if cfg.carries else "micro-batches"
    parts = f"{run.ranks.number} processes, {cfg.parallel}, " if run.ranks.number > 1 else ""
    parts += f"{cfg.grad_accum} {unit} of " if cfg.grad_accum > 1 else ""
    experts = f", experts {cfg.experts}, balance {cfg.balance}" if is_routed(run) else ""
    other = validation.left_out() if validation.not_read != source.not_read else ""  # not the same twice
    if getattr(run.model.config, "capacity_factor", None) is not None:
        experts += ", capacity by score: train/loss is not causal, val/loss is"
    rows = f"{parts}{cfg.rows} rows{segments} x {cfg.block_size} tokens"
    rows = (run.objective and run.objective.step_in_words) or rows
    return (
        f"{cfg.model} {cfg.model_size}{changed and f' with {changed}'}: "
        f"{counts['total']:,} parameters, {counts['active']:,} active per token{expert_layers(run.model.config)}\n"
        f"data: {source.name}{source.left_out()}, validation {validation.name}{other}, tokenizer {run.tokenizer.name}\n"
        f"{length} of {cfg.slots_per_step:,} tokens ({rows}) on {cfg.device} in {cfg.dtype} "
        f"({cfg.threads} {'thread' if cfg.threads == 1 else 'threads'}, attention {cfg.attention}{experts})\n"
        f"writing {cfg.out_dir}/"
        + (f" and {run.tensorboard_dir}/" if run.tensorboard_dir else "")
        + (f"\n{lora.describe(run.model)}" if cfg.lora_rank else "")
    )


def narrated(batches: Iterable[dict], say: Callable[[str], None]) -> Iterator[dict]:
    """Yield the batches, and print the number of scored tokens now and then. The total is not known."""
    said, tokens = time.monotonic(), 0
    for batch in batches:
        yield batch
        tokens += batch["targets"].numel()
        if time.monotonic() - said > NARRATE_SECONDS:
            say(f"  {tokens:,} validation tokens scored")
            said = time.monotonic()


def final_record(run: Run, progress: Progress, found: Evaluation) -> dict[str, Any]:
    """The figures of a finished run, as they are logged."""
    counts = run.model.config.parameter_counts()
    return {
        "loss": found.loss,
        "loss_half_width": found.half_width,
        "bits_per_byte": found.bits_per_byte,
        "validation_tokens": found.tokens,
        "validation_documents": found.documents,
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        "parameters": counts["total"],
        "active_parameters": counts["active"],
        **instruments.load_figures(found.routing),
    }


def activation() -> str:
    """The command that activates the environment of this process, as a line; "" if it is active."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return ""
    script = Path(sys.prefix) / "bin" / "activate"
    with contextlib.suppress(ValueError):  # it is not below the current folder
        script = script.relative_to(Path.cwd())
    return f"  source {quote(str(script))}\n"


def summary(run: Run, final: dict[str, Any], found: Evaluation, stories: list[str], path: Path) -> str:
    """The text at the end of a run: stories, or what it writes to held-out prompts, figures and the next commands."""
    kind = "image" if run.examples else "held-out prompt" if run.objective else "story"
    told = "\n".join(f"--- {kind} {i}\n{story}" for i, story in enumerate(stories, start=1))
    cfg, name, board = run.cfg, quote(str(path)), ""
    if run.tensorboard_dir:
        board = f"\n  tensorboard --logdir {quote(cfg.tensorboard_root)}    # then open {PAGE}"
    data = "".join(  # without these flags a new run would take the default data and rewards
        f" --{field} {quote(value)}"
        for field in "dataset val_dataset text_column story_dataset story_val_dataset rewards".split()
        if (value := getattr(cfg, field, None)) != getattr(type(cfg), field, None)
    )
    asked = f" --prompt {quote(run.objective.held_out[0].prompt)}" if run.objective else ""
    asked = "" if "\n" in asked else asked  # a prompt of several lines is hard to read
    return (
        f"{told}\n---\n"
        f"validation loss  {in_words(found)}\n"
        f"training         {final['steps']:,} steps, {final['tokens']:,} tokens in {final['seconds']:,.0f} s "
        f"({final['tokens_per_second']:,.0f} tokens/s), in pass {run.loader.progress.epoch + 1} over the data\n"
        f"parameters       {final['parameters']:,}, {final['active_parameters']:,} active per token\n"
        f"next:\n{activation()}"
        f"  python sample.py --checkpoint {name}{' --image FILE' if run.examples else asked}{board}\n"
        f"  python -m evaluation.report {quote(cfg.out_dir)}    # the same pictures as one page, no server\n"
        f"  python {cfg.program} --init_from {name}{data} --out_dir {quote(f'{cfg.out_dir}_next')}"
    )
