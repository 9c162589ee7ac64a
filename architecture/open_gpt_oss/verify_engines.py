"""verify with llama.cpp and MLX: log-probabilities of the next token, beside those of this project.

A GGUF file goes to llama.cpp and a folder of --format mlx to MLX as it is. Of a folder in another layout a
temporary export is made. YaRN whose limits these programs round is compared with their limits, after its
difference from the true limits was printed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from architecture import checkpoint
from architecture.gptoss import ModelConfig, Transformer
from architecture.open_gpt_oss import engines, gguf_file, targets, weights
from common.device import available_memory
from common.files import reading

FORMATS = {"transformers": None, "llama.cpp": "gguf", "mlx": "mlx"}  # {engine: the format made for it}
# In nats, where llama.cpp rounds what goes into a product of matrices as well: to 16 bits or, for MXFP4, to 8.
# Nine positions in ten must keep it: where a router wants two experts almost equally, rounding may choose the other,
# and that position differs more.
ROUNDED_TOLERANCE, ROUNDED_SHARE = 0.2, 0.9
MOST_PREFIXES = 24  # of each row, because llama.cpp gives log-probabilities for one position at a time


def kind_of(path: str | Path) -> str | None:
    """ "gguf", "mlx", or "folder" for one of gpt-oss's layouts; None for anything else."""
    path = Path(path)
    if gguf_of(path) is not None:
        return "gguf"
    if not checkpoint.is_model_folder(path):
        return None
    return "mlx" if _is_mlx(path) else "folder"


def gguf_of(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the one in an exported folder."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    return path / gguf_file.FILE if (path / gguf_file.FILE).is_file() else None


def choose(text: str | None, path: str | Path) -> list[str]:
    """The engines of --with, or the one for which the path was made. ValueError for what cannot be compared."""
    kind = kind_of(path)
    if kind is None:
        weights.require_folder(path)
    own = {form: engine for engine, form in FORMATS.items() if form}.get(kind)
    chosen = [own or "transformers"] if text is None else [part.strip() for part in text.split(",")]
    for engine in chosen:
        if engine not in FORMATS:
            raise ValueError(
                f"--with takes {', '.join(FORMATS)}, separated by commas, got {engine!r}; name one or more of them"
            )
        if own not in (None, engine):
            raise ValueError(
                f"{path} is in the format of {own}, which {engine} does not open; use --with {own}"
            )
        module, install = engines.INSTALL[engine]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"verify --with {engine} needs {module}, which is not installed; {install}")
    return chosen


def run(engine: str, path: Path, tokens: int | None, tolerance: float, rows: int) -> bool:
    """Print the differences from an engine; returns whether one exceeds the tolerance.

    tolerance: largest difference over the largest absolute value, where the engine computes in float32.
    """
    kind, rounds = kind_of(path), False

    def accept(config: ModelConfig) -> None:
        random_ids(config, tokens, rows)
        require_memory(config)

    with tempfile.TemporaryDirectory() as scratch:
        if kind == "gguf":
            path = gguf_of(path)
            config, tensors, kinds = gguf_file.read(path, accept)
            rounds = kinds != {"F32"}
        else:
            accept(weights.read_config(path)[1])
            if kind == "mlx":
                config, tensors = read_mlx(path)
            else:
                path, config, tensors, rounds = _exported(engine, path, Path(scratch))
        ours = checkpoint.without_values(Transformer, config)
        checkpoint.load_weights(ours, {name: tensor.float() for name, tensor in tensors.items()}, path)
        ids = random_ids(config, tokens, rows)
        windows = ids.shape[1] / config.sliding_window
        print(f"{engine}: {rows} rows of {ids.shape[1]} tokens, {windows:.1f} windows")
        return _judge(ours.eval(), engine, path, ids, tolerance, rounds)


def random_ids(config: ModelConfig, tokens: int | None, rows: int) -> torch.Tensor:
    """(rows, tokens) int64; without a number three windows and one more, or what fits."""
    tokens = tokens or min(3 * config.sliding_window + 1, config.context_limit)
    if not 2 <= tokens <= config.context_limit:
        raise ValueError(
            f"--tokens must be from 2 to the context limit of {config.context_limit}, got {tokens}"
        )
    used = config.used_vocab_size or config.vocab_size
    return torch.randint(used, (rows, tokens), generator=torch.Generator().manual_seed(0))


def require_memory(config: ModelConfig) -> None:
    """Raise ValueError unless two models in float32 fit: ours and that of the other program."""
    needed, room = 8 * config.parameter_counts()["total"], available_memory(torch.device("cpu"))
    if needed > room:
        raise ValueError(
            f"verify holds two models in float32, {needed / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free; use a "
            "machine with more memory, or verify a smaller model of the same kind"
        )


def _judge(
    ours: Transformer, engine: str, path: Path, ids: torch.Tensor, tolerance: float, rounds: bool
) -> bool:
    used = ours.config.used_vocab_size or ours.config.vocab_size
    theirs = log_probabilities(engine, path, ids, used)
    told = targets.yarn_warning(ours.config, FORMATS[engine])
    if told is not None:
        print(f"  warning: {told}")
        apart, _ = difference(ours, ids, theirs)
        print(f"  with the true limits of YaRN: largest difference {apart:.1e} nats, not judged")
        round_yarn(ours, FORMATS[engine])
    apart, largest = differences(ours, ids, theirs)
    rounds = rounds and engine == "llama.cpp"
    allowed, share = (ROUNDED_TOLERANCE, ROUNDED_SHARE) if rounds else (tolerance * largest, 1.0)
    within = int((apart <= allowed).sum())
    bad = within < share * len(apart)
    told = f" in {share:.0%} of them, kept in {within}" if rounds else ""
    print(
        f"  log-probabilities: largest difference {apart.max():.1e} nats over {len(apart)} positions, allowed "
        f"{allowed:.1e}{told}{'  <-- too large' if bad else ''}"
    )
    return bad


def log_probabilities(
    engine: str, path: Path, ids: torch.Tensor, vocabulary: int
) -> dict[tuple[int, int], torch.Tensor]:
    """{(row, number of ids before): (vocabulary,) float32} of an engine, at up to MOST_PREFIXES lengths."""
    found, prefixes = {}, list(engines.lengths(ids.shape[1], MOST_PREFIXES))
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


def difference(
    ours: Transformer, ids: torch.Tensor, theirs: dict[tuple[int, int], torch.Tensor]
) -> tuple[float, float]:
    """The largest difference of a log-probability, and the largest absolute value of theirs, in nats."""
    apart, largest = differences(ours, ids, theirs)
    return apart.max().item(), largest


@torch.no_grad()
def differences(
    ours: Transformer, ids: torch.Tensor, theirs: dict[tuple[int, int], torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """(positions,): the largest difference of a log-probability at each, and the largest absolute value of
    theirs, in nats."""
    used = ours.config.used_vocab_size or ours.config.vocab_size
    values = ours(ids).logits[..., :used].float().log_softmax(-1)
    apart = [(values[row, length - 1] - their).abs().max() for (row, length), their in theirs.items()]
    return torch.stack(apart), max(their.abs().max().item() for their in theirs.values())


def round_yarn(model: Transformer, target: str) -> None:
    """Let a model rotate as the program of a target does; see targets.rounded_yarn."""
    config = model.config
    if (limits := targets.rounded_yarn(config, target)) is not None:
        model.rope.config = SimpleNamespace(
            rope_theta=config.rope_theta,
            head_dim=config.head_dim,
            rope_scaling_factor=config.rope_scaling_factor,
            yarn_range=limits,
        )


def _exported(engine: str, folder: Path, scratch: Path) -> tuple[Path, ModelConfig, dict, bool]:
    """A folder of gpt-oss in the format of an engine, beside config and tensors of the folder itself."""
    from architecture.open_gpt_oss.export import write_folder

    layout, config = weights.read_config(folder)
    tensors = weights.FolderWeights(folder, layout, config)
    written = scratch / FORMATS[engine]
    packed = bool(tensors.made)
    write_folder(weights.read_folder(folder), written, layout=FORMATS[engine], pack=packed)
    rounds = packed or tensors.dtype != torch.float32
    path = gguf_of(written) or written
    return path, config, dict(tensors), rounds


# ---------------------------------------------------------------------------------------------------- MLX
def read_mlx(folder: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The config and the tensors of a folder of --format mlx, under our names."""
    _, config = weights.read_config(folder)
    files, checksums = weights._open_files(folder)
    with reading(folder, "weights for MLX", way_out="export it again"):

        def tensor(name: str) -> torch.Tensor:
            value = files[name].get_tensor(name)
            if checksums.get(name, weights.checksum(value)) != weights.checksum(value):
                raise ValueError(f"its tensor {name} was changed after it was written")
            return value

        return config, targets.whole(config, "mlx", tensor)


def _is_mlx(folder: Path) -> bool:
    try:
        return any(".gate_proj." in name for name in weights._open_files(folder)[0])
    except ValueError:  # whoever reads the folder tells what is wrong with it
        return False
