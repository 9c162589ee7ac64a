"""README.md of an exported folder: a model card, made from a checkpoint and the records of its run.

The card says nothing that neither of them holds, and it names what is not recorded. Texts from them are
escaped, and of a path only the end is shown.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from architecture.checkpoint import ANOTHER, best_checkpoint, config_from_dict, described
from architecture.gptoss_vision import VisionConfig
from architecture.open_gpt_oss.names import CLASSES
from architecture.tokenizer import END_OF_TEXT
from common.files import parse_json, read_json, reading

LONGEST = 200  # characters of a text from the records
TINYSTORIES = "roneneldan/TinyStories"
ENGLISH = ("bundled", TINYSTORIES)
WAY_OUT = "move it away: the export works without it"

# The tables of the card. A row of which a fact is missing says "not recorded".
ARCHITECTURE = {
    "parameters": "{total:,}, of which {active:,} are active per token",
    "layers": "{num_hidden_layers}: {windows}",
    "width": "{hidden_size:,}",
    "heads": "{num_attention_heads} for queries, {num_key_value_heads} for keys and values, {head_dim} wide",
    "experts": "{num_experts} per layer, {experts_per_token} per token, {intermediate_size:,} wide",
    "positions": "RoPE, base {rope_theta:,.0f}{yarn}{nope}",
    "context limit": "{context_limit:,} tokens",
    "tokenizer": "{tokenizer_name}, {ids:,} ids",
}
IMAGES = {
    "images": "{vision_num_channels} channels of {image_size} x {image_size} pixels, {tokens_per_image} tokens each",
    "encoder": "ViT of {vision_num_layers} layers, {vision_embed_dim:,} wide, {vision_num_heads} heads, patches of "
    "{vision_patch_size} x {vision_patch_size} pixels",
}
TRAINING = {
    "data": "{dataset_name}",
    "content of the data": "{training_data}",
    "documents": "{documents:,} begun, in pass {data_pass} over the data",
    "tokens": "{tokens:,}",
    "steps": "{step:,}{planned}",
    "optimizer": "{optimizer}{for_the_rest}, weight decay {weight_decay:g}, gradient norm at most {clip}",
    "learning rate": "{lr:g} at its peak; {schedule} schedule, {warmup:.0%} of the steps as warmup{fall}",
    "batch": "{batch_tokens:,} tokens per step: {grad_accum} x {batch_size} rows of {block_size} tokens, {packing}",
    "balance of the experts": "{balance}{weight}",
    "seed": "{seed}",
}
EVALUATION = {
    "loss": "{loss:.4f} nats per token, {interval}",
    "bits per byte": "{bits_per_byte:.4f}",
    "scored": "{scored}",
    "content of the validation data": "{validation_data}",
    "seeds": "one: no spread over seeds is known",
}
MACHINE = {
    "device": "{device}; CPU threads: {threads}",
    "precision": "computed in {dtype}, weights kept in {stored}",
    "training time": "{seconds:,.0f} s, {speed:,.0f} tokens per second",
    "versions": "torch {torch}; Python {python}",
    "commit of nano-gpt-oss": "{commit}",
}
WEIGHTS = {
    "none": "",
    "aux": ": balance loss with the weight {balance_coef:g}",
    "aux_global": ": balance loss on the load of the step before, with the weight {balance_coef:g}",
    "bias": ": selection bias that moves by {bias_rate:g} per step at the peak learning rate",
}

IN_TRANSFORMERS = f"""\
With `transformers` 5. In training the token `{END_OF_TEXT}` precedes each text, so a prompt begins with it:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
prompt = "{END_OF_TEXT}" + "Once upon a time"
inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
tokens = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
```

"""
IN_OURS = f"""\
With nano-gpt-oss, which puts `{END_OF_TEXT}` in front of a prompt by itself:

```bash
python sample.py --checkpoint FOLDER --prompt "Once upon a time"
python train.py --init_from FOLDER --dataset DATA --out_dir NEW    # fine-tune
```"""

IN_LLAMA_CPP = f"""\
With llama.cpp, which puts `{END_OF_TEXT}` in front of a prompt by itself, as in training:

```bash
llama-server -m model.gguf --port 8080      # answers in the API of OpenAI:
curl http://127.0.0.1:8080/v1/completions -d '{{"prompt": "Once upon a time", "max_tokens": 100}}'
```

The same from Python, without a server, with `xllamacpp`, a build of llama.cpp:

```python
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.n_parallel = "model.gguf", 1
model = xllamacpp.Server(params)
answer = model.handle_completions({{"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0.8}})
print(answer["choices"][0]["text"])
```

llama.cpp computes attention with a cache of 16 bits unless it is told `-fa off -ctk f32 -ctv f32`."""
IN_MLX = f"""\
With `mlx-lm`. In training the token `{END_OF_TEXT}` precedes each text, so a prompt begins with it:

```python
from mlx_lm import generate, load

model, tokenizer = load(".")  # this folder
prompt = tokenizer.encode("{END_OF_TEXT}" + "Once upon a time", add_special_tokens=False)
print(generate(model, tokenizer, prompt=prompt, max_tokens=100))
```"""
IN_VISION = """\
With `transformers` 5 and the package `gpt_oss_vision` of nano-gpt-oss (`pip install -e .[vision]` in its folder):

```python
from gpt_oss_vision import GPTOSSVisionForCausalLM, GPTOSSVisionProcessor
from PIL import Image

folder = "."  # this folder
processor = GPTOSSVisionProcessor.from_pretrained(folder)
model = GPTOSSVisionForCausalLM.from_pretrained(folder, dtype="auto")
image = Image.open("path/to/image.jpg")
inputs = processor(text="", images=image, return_tensors="pt")  # or text="... <|image|> ..."
tokens = model.generate(**inputs, max_new_tokens=50, do_sample=False)
print(processor.decode(tokens[0], skip_special_tokens=True))
```

Without that package, `GptOssForCausalLM` of `transformers` reads the half that continues texts, and names the
tensors that it leaves out. No test of long texts is recorded, with or without NoPE.

With nano-gpt-oss:

```bash
python sample.py --checkpoint FOLDER --image FILE
```"""
# How to use each format of export.py; "vision" is hf for a model that sees.
USE = {
    "vision": IN_VISION,
    "hf": IN_TRANSFORMERS + IN_OURS,
    "original": IN_OURS,
    "gguf": IN_LLAMA_CPP,
    "mlx": IN_MLX,
}
# Names that the Hugging Face Hub has for formats.
LIBRARY = {"hf": "transformers", "vision": "transformers", "mlx": "mlx"}

CITATION = "OpenAI, *gpt-oss-120b & gpt-oss-20b Model Card*, 2025, arXiv:2508.10925 (the architecture)."
CITATION_OF_THE_DATA = "\n\nEldan and Li, *TinyStories*, 2023, arXiv:2305.07759 (the data)."
LICENCE = """\
None was chosen. Whoever publishes these files chooses one, and writes it here and into the first lines of this
file. It must agree with the licences of the training data and of weights from elsewhere."""


def model_card(
    path: str | Path,
    state: dict[str, Any],
    *,
    layout: str,
    dtype: str,
    changes: Sequence[str] = (),
    error_lines: Sequence[str] = (),
    watts: float | None = None,
) -> str:
    """The text of README.md: Markdown with the YAML front matter of the Hugging Face Hub.

    path: the checkpoint, whose folder may hold config.json, metrics.jsonl and best.json of its run.
    state: the dictionary of that checkpoint.  layout: one of USE.  dtype: of the exported weights.
    changes: what else the export changed, a Markdown sentence each.  error_lines: the relative error of each
    MXFP4 tensor, a line each; () without MXFP4.  watts: mean power during the training.
    Raises ValueError for damaged records, and for watts that give no energy.
    """
    spent = energy(state, watts)
    with reading(path, "a run's settings", way_out=ANOTHER):
        facts = _facts(Path(path).parent, state)
        layout = "vision" if "use_vision" in facts else layout
        precision = f"Weights are in {dtype}"
        precision += "." if facts["stored"] == dtype else f"; the checkpoint has {facts['stored']}."
        changed = "\n".join(f"- {sentence}" for sentence in (precision, *changes))
        if error_lines:
            changed += "\n- The experts' matrices are in MXFP4. The relative error of each:\n\n"
            changed += "\n".join(("```", *error_lines, "```"))
        sections = {
            "Architecture": _table(ARCHITECTURE | (IMAGES if facts.get("use_vision") else {}), facts),
            "Intended uses and limits": _limits(facts),
            "Training data and procedure": _table(TRAINING, facts) if facts["trained"] else "Not recorded.",
            "Evaluation": _evaluation(facts),
            "What the export changed": changed,
            "Environmental impact": spent,
            "Technical specification": _table(MACHINE, facts) if facts["trained"] else "Not recorded.",
            "How to use it": USE[layout],
            "Citation": CITATION + CITATION_OF_THE_DATA * (facts.get("dataset_name") == TINYSTORIES),
            "Licence": LICENCE,
        }
        first = [_front_matter(layout, facts, bool(error_lines)), _head(facts)]
    return "\n\n".join([*first, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


# ---------------------------------------------------------------------------------------------------- facts
def _facts(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint and the records of its run say, under the names that the tables use."""
    config = config_from_dict(CLASSES[state["model_name"]].config_class, state["config"])
    train, progress = state.get("train_config") or {}, state.get("progress") or {}
    held, position = state.get("data_identity") or {}, state.get("data")
    starts, final = _records(folder, state)
    windows = Counter(f"the last {window:,} tokens" if window else "all tokens" for window in config.windows)
    yarn = f", YaRN x {config.rope_scaling_factor:g} from {config.initial_context_length:,} tokens"
    facts = asdict(config) | config.parameter_counts() | train
    facts |= {
        "windows": ", ".join(f"{number} see {what}" for what, number in windows.items()),
        "yarn": yarn if config.rope_scaling_factor > 1 else "",
        "nope": f"; none in every {config.nope_stride}. layer (NoPE)" if config.nope_stride else "",
        "tokens_per_image": config.tokens_per_image if isinstance(config, VisionConfig) else None,
        "context_limit": config.context_limit,
        "interval": "no interval recorded",
        "tokenizer_name": state["tokenizer"]["name"],
        "ids": config.num_ids,
        "stored": str(next(iter(described(state["model"]).values())).dtype).removeprefix("torch."),
        "step": state["step"],
        "planned": _planned(state["step"], train, starts),
        "training_data": held.get("training data"),
        "validation_data": held.get("validation data"),
        "trained": bool(train),
        "init_from": _end(train.get("init_from"), 2),
        "commit": _each("commit", starts) or state.get("commit"),
        "torch": _each("torch", starts),
        "python": _each("python", starts),
    }
    on_the_hub = re.match(r"([\w.-]+/[\w.-]+)@", facts["training_data"] or "")
    facts["dataset_name"] = on_the_hub[1] if on_the_hub else _end(train.get("dataset"), 1)
    if position:
        facts |= {"documents": position["documents"], "data_pass": position["source"]["epoch"] + 1}
    if progress:
        tokens, seconds = progress["tokens"], progress["seconds"]
        facts |= {"tokens": tokens, "seconds": seconds, "speed": tokens / max(seconds, 1e-9)}
    if train:
        facts["batch_tokens"] = train["grad_accum"] * train["batch_size"] * train["block_size"]
        facts["for_the_rest"] = " (matrices; adamw for the rest)" if train["optimizer"] == "muon" else ""
        facts["clip"] = f"{train['grad_clip']:g}" if train["grad_clip"] else "unlimited"
        facts["fall"] = f", {train['decay']:.0%} as decay" if train["schedule"] == "wsd" else ""
        facts["weight"] = WEIGHTS[train["balance"]].format(**train)
    if final:
        width, documents = final.get("loss_half_width"), final.get("validation_documents")
        facts |= {"loss": final["loss"], "bits_per_byte": final["bits_per_byte"]}
        if width is not None:
            facts["interval"] = f"+- {width:.4f} (95 %, over documents)"
        facts["scored"] = f"{final['validation_tokens']:,} tokens"
        facts["scored"] += f" of {documents:,} documents" if documents else ""
    elif scored := state.get("scored"):  # an evaluation before the end, of fewer tokens
        facts |= {"loss": scored["val_loss"], "bits_per_byte": scored["val_bits_per_byte"]}
        facts["scored"] = f"at most {train['eval_tokens']:,} tokens"
    best = best_checkpoint(folder) if starts else None
    is_best = best is not None and best["checkpoint"] == f"checkpoint_{state['step']}.pt"
    facts["best"] = " with the lowest validation loss of its run" * is_best
    return {name: value for name, value in facts.items() if value is not None}


def _records(folder: Path, state: dict[str, Any]) -> tuple[list[dict], dict[str, Any]]:
    """The starts of the run before this checkpoint, and its closing figures without the prefix "final/".

    Both are empty where the folder has no records, or has those of another model.
    """
    config, metrics, final = folder / "config.json", folder / "metrics.jsonl", {}
    with reading(config, "the config.json of a run", way_out=WAY_OUT):
        facts = read_json(config) if config.is_file() else {}
        here = json.loads(json.dumps([state["config"], state.get("data_identity")]))  # JSON has no tuples
        if [facts.get("model"), facts.get("data")] != here:
            return [], {}
        starts = []
        for start in facts["starts"]:  # --resume_from goes back, and the steps after it are trained again
            starts = [earlier for earlier in starts if earlier["step"] < start["step"]] + [start]
        starts = [start for start in starts if start["step"] < state["step"]]
    with reading(metrics, "the metrics.jsonl of a run", way_out=WAY_OUT):
        for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
            if b'"final/loss"' in line and line.endswith(b"}"):  # a kill may have cut the last line
                record = parse_json(line)
                if record["step"] == state["step"]:
                    final = {name.removeprefix("final/"): value for name, value in record.items()}
    return starts, final


def _planned(step: int, train: dict[str, Any], starts: list[dict]) -> str:
    planned, extension = train.get("max_iters"), train.get("extend")
    told = f" of {planned:,} planned" if planned and planned != step else ""
    if planned and extension and step > planned - extension:
        told += f", of which the last {step - planned + extension:,} have a schedule of their own (--extend)"
    again = ", ".join(f"{start['step']:,}" for start in starts[1:])
    return told + (f"; continued after step {again}" if again else "")


def _each(name: str, starts: list[dict[str, Any]]) -> str | None:
    """The different values that the starts of a run have."""
    return ", ".join(dict.fromkeys(start[name] for start in starts if start.get(name))) or None


def _end(path: str | None, names: int) -> str | None:
    """The last names of a path, because a card does not tell where the folders of a machine are."""
    return None if path is None else "/".join(Path(path).parts[-names:])


# ---------------------------------------------------------------------------------------------------- words
def _front_matter(layout: str, facts: dict[str, Any], mxfp4: bool) -> str:
    data = facts.get("dataset_name")
    lines = ["---"]
    if layout in LIBRARY:
        lines += [f"library_name: {LIBRARY[layout]}"]
    kind = "image-text-to-text" if facts.get("use_vision") else "text-generation"
    lines += [f"pipeline_tag: {kind}", "license: unknown"]
    if data in ENGLISH and "init_from" not in facts:
        lines += ["language: en"]
    lines += ["tags:", "- gpt_oss", "- mixture-of-experts", "- nano-gpt-oss", *["- mxfp4"] * mxfp4]
    lines += ["- gpt_oss_vision"] * (layout == "vision")
    if data:
        lines += ["datasets:", f"- {json.dumps(_plain(data), ensure_ascii=False)}"]
    return "\n".join([*lines, "---"])


def _head(facts: dict[str, Any]) -> str:
    origin = "Where its weights come from is not recorded."
    if facts["trained"]:
        origin = "Its weights started from random values, not from those of OpenAI."
    if base := facts.get("init_from"):
        origin = f"Its training began from {_text(base)}; what came before is not counted here."
    sees, encoder = "", ""
    if facts.get("use_vision"):
        sees, encoder = "that sees ", " and a ViT as its encoder of images"
    return (
        f"# A gpt-oss {sees}of {facts['total'] / 1e6:,.1f} million parameters\n\nA mixture-of-experts language model "
        f"with the architecture of gpt-oss{encoder}, exported by nano-gpt-oss. {origin}"
    )


def _limits(facts: dict[str, Any]) -> str:
    told = "For experiments with language models, and for teaching. "
    if facts["trained"] and "init_from" not in facts:
        told += "It continues text: it was not trained to follow instructions, to be safe or to be right, "
        told += f"and knows nothing beyond its training data ({_text(facts['dataset_name'])}). "
    told += "No test of safety, truth or bias is recorded."
    rows = facts.get("block_size", math.inf)
    if rows < facts["context_limit"]:
        told += f" Its training had rows of {rows:,} tokens; no test on longer text is recorded."
    return told


def _evaluation(facts: dict[str, Any]) -> str:
    if "scored" not in facts:
        return "No evaluation of these weights is recorded."
    return f"Measured before the export, on the checkpoint{facts['best']}.\n\n{_table(EVALUATION, facts)}"


def energy(state: dict[str, Any], watts: float | None) -> str:
    """A sentence about the energy of the training. Raises ValueError for watts that give none."""
    if watts is None:
        return "The energy of the training was not measured."
    if not 0 < watts < math.inf:
        raise ValueError(f"watts must be a positive number, got {watts}; leave it out if it was not measured")
    if not (progress := state.get("progress")):
        raise ValueError("watts give no energy, because the checkpoint has no training time; leave them out")
    seconds = progress["seconds"]
    hours = watts * seconds / 3600
    spent = f"{hours:.3g} Wh" if hours < 999.5 else f"{hours / 1000:,.2f} kWh"
    return (
        f"The training took {spent}: {watts:g} W, as given at the export, for {seconds:,.0f} s of training. "
        "Evaluations and earlier runs are not counted; emissions are not known."
    )


def _table(rows: dict[str, str], facts: dict[str, Any]) -> str:
    told = ["| | |", "|---|---|"]
    for name, form in rows.items():
        try:
            value = form.format(**facts)
        except KeyError:
            value = "not recorded"
        told.append(f"| {name} | {_text(value)} |")
    return "\n".join(told)


def _plain(text: str) -> str:
    """The text on one line, without characters that do not print, and not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _text(text: str) -> str:
    """The text as plain text of Markdown, also in a table."""
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(_plain(text), quote=False))
