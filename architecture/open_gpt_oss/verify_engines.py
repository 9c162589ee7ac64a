"""verify with llama.cpp and MLX: log-probabilities of the next token, beside those of this project.

A GGUF file goes to llama.cpp and a folder of --format mlx to MLX as it is. Of a folder in another layout a
temporary export is made. YaRN whose limits these programs round is compared with their limits, after its
difference from the true limits was printed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from architecture.checkpoint import LazyWeights
from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import engines, gguf_file, targets, weights

# In nats, where llama.cpp rounds what goes into a product of matrices as well: to 16 bits or, for MXFP4, to 8.
# Nine positions in ten must keep it: where a router wants two experts almost equally, rounding may choose the other,
# and that position differs more.
ROUNDED_TOLERANCE, ROUNDED_SHARE = 0.2, 0.9


class Given(NamedTuple):
    """What is verified. layout: original, hf, mlx or gguf.  rounds: whether its weights are narrower than float32."""

    path: Path
    layout: str
    config: ModelConfig
    weights: LazyWeights
    rounds: bool


def choose(text: str | None, path: Path, layout: str) -> list[str]:
    """The engines of --with, or the one for which the path was made. ValueError for what cannot be compared."""
    own = targets.PROGRAMS.get(layout)
    chosen = [own or "transformers"] if text is None else [part.strip() for part in text.split(",")]
    for engine in chosen:
        if engine not in engines.INSTALL:
            raise ValueError(
                f"--with takes {', '.join(engines.INSTALL)}, separated by commas, got {engine!r}"
            )
        if own not in (None, engine):
            raise ValueError(
                f"{path} is in the format of {own}, which {engine} does not open; use --with {own}"
            )
        module, install = engines.INSTALL[engine]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"verify --with {engine} needs {module}, which is not installed; {install}")
    return chosen


def size(ids: torch.Tensor, config: ModelConfig) -> str:
    rows, tokens = ids.shape
    return f"{rows} rows of {tokens} tokens, {tokens / config.sliding_window:.1f} windows"


def with_engine(engine: str, given: Given, ours: Transformer, ids: torch.Tensor, tolerance: float) -> bool:
    """Print the differences from an engine; returns whether one exceeds the tolerance.

    tolerance: largest difference over the largest absolute value, where the engine computes in float32.
    """
    print(f"{engine}: {size(ids, ours.config)}")
    layout = next(layout for layout, program in targets.PROGRAMS.items() if program == engine)
    used = ours.config.num_ids
    with tempfile.TemporaryDirectory() as scratch:
        path = given.path if given.layout == layout else exported(given, layout, Path(scratch))
        theirs = log_probabilities(engine, path, ids, used)
    if (told := targets.yarn_warning(ours.config, layout)) is not None:
        print(f"  warning: {told}")
        apart, _ = differences(ours, ids, theirs)
        print(f"  with the true limits of YaRN: largest difference {apart.max():.1e} nats, not judged")
        round_yarn(ours, layout)
    apart, largest = differences(ours, ids, theirs)
    ours.rope.config = ours.config  # for the next engine
    rounds = given.rounds and engine == "llama.cpp"
    allowed, share = (ROUNDED_TOLERANCE, ROUNDED_SHARE) if rounds else (tolerance * largest, 1.0)
    within = int((apart <= allowed).sum())
    bad = within < share * len(apart)
    told = f" in {share:.0%} of them, kept in {within}" if rounds else ""
    print(
        f"  log-probabilities: largest difference {apart.max():.1e} nats over {len(apart)} positions, allowed "
        f"{allowed:.1e}{told}{'  <-- too large' if bad else ''}"
    )
    return bad


def exported(given: Given, layout: str, scratch: Path) -> Path:
    """A temporary export of a folder, for the program that reads this layout."""
    from architecture.open_gpt_oss.export import write_folder

    folder, pack = scratch / layout, bool(given.weights.in_mxfp4)
    write_folder(weights.read_folder(given.path), folder, layout=layout, pack=pack)
    return folder / gguf_file.FILE if layout == "gguf" else folder


def log_probabilities(
    engine: str, path: Path, ids: torch.Tensor, vocabulary: int
) -> dict[tuple[int, int], torch.Tensor]:
    """{(row, number of ids before): (vocabulary,) float32} of an engine, at the lengths of engines.lengths."""
    found, prefixes = {}, engines.lengths(ids.shape[1])
    if engine == "mlx":
        model = engines.Mlx(path)
        for row, text in enumerate(ids.tolist()):
            values = model.log_probabilities(text)
            found |= {(row, length): values[length - 1] for length in prefixes}
        return found
    model = engines.LlamaCpp(path, context=ids.shape[1] + 1)
    for row, text in enumerate(ids.tolist()):
        found |= {(row, length): model.log_probabilities(text[:length], vocabulary) for length in prefixes}
    return {where: values for where, values in found.items() if values is not None}


@torch.no_grad()
def differences(
    ours: Transformer, ids: torch.Tensor, theirs: dict[tuple[int, int], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """(positions,): the largest difference of a log-probability at each; and the largest absolute value of theirs.

    Both in nats.
    """
    used = ours.config.num_ids
    values = ours(ids).logits[..., :used].float().log_softmax(-1)
    apart = [(values[row, length - 1] - their).abs().max() for (row, length), their in theirs.items()]
    return torch.stack(apart), max(their.abs().max().item() for their in theirs.values())


def round_yarn(model: Transformer, target: str) -> None:
    """Let a model rotate as the program of a target does; see targets.rounded_yarn."""
    if (limits := targets.rounded_yarn(model.config, target)) is not None:
        model.rope.config = SimpleNamespace(**asdict(model.config), yarn_range=limits)
