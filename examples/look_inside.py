"""Look inside a trained model: which experts does each token of a story use, and where does its attention go?

    python examples/look_inside.py model_quickstart [--prompt TEXT] [--out FOLDER]

Writes routing.png and attention.png. The cells (`# %%`) also run one by one in VS Code or Jupyter.
"""

# %% Setup: the model, and one story that it tells
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs from any folder

import matplotlib
import matplotlib.pyplot as plt
import torch

from inference import encode_prompt, generate_text, load_model

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument(
    "checkpoint", nargs="?", default="model_quickstart", help="a run's folder or a checkpoint"
)
parser.add_argument("--prompt", default="Once upon a time")
parser.add_argument("--max_tokens", type=int, default=60, help="tokens to show; more make the pictures wide")
parser.add_argument("--out", type=Path, default=Path("."), help="folder of the pictures")
args = parser.parse_args()

try:
    model = load_model(args.checkpoint)
except ValueError as error:
    sys.exit(f"look_inside.py: error: {error}")
tokenizer = model.tokenizer
story = generate_text(model, args.prompt, args.max_tokens, temperature=0.8, seed=1)
ids = torch.tensor([encode_prompt(tokenizer, story)[: args.max_tokens]])  # (1, T)
words = [tokenizer.decode([token]).replace("\n", "\\n") for token in ids[0].tolist()]
print(story)

# %% Which experts: one forward pass gives every router's choice
with torch.no_grad():
    router = model(ids).router

width = max(6.0, 0.17 * len(words))
figure, axes = plt.subplots(
    len(router.layers),
    1,
    figsize=(width, 1.6 * len(router.layers) + 1),
    sharex=True,
    squeeze=False,
    layout="constrained",
)
for ax, layer, logits, chosen in zip(axes[:, 0], router.layers, router.logits, router.chosen):
    probability = logits[0].softmax(-1)  # (T, E)
    image = ax.imshow(probability.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for place, experts in enumerate(chosen[0].tolist()):  # a dot on each expert that the token goes to
        ax.plot([place] * len(experts), experts, ".", color=matplotlib.colormaps["Oranges"](0.8), ms=4)
    ax.set_ylabel(f"layer {layer}\nexpert")
    ax.set_yticks(range(probability.shape[1]))
axes[-1, 0].set_xticks(range(len(words)), words, rotation=90, fontsize=7)
figure.colorbar(image, ax=axes, label="router probability", fraction=0.02)
figure.suptitle("Router probability of each expert; a dot marks an expert that the token uses")
figure.savefig(args.out / "routing.png", dpi=110)

# %% Where attention goes: per layer (1, heads, T, T), averaged over the heads here
weights = model.attention_weights(ids)
figure, axes = plt.subplots(
    1, len(weights), figsize=(5 * len(weights), 5.4), squeeze=False, layout="constrained"
)
for layer, (ax, of_layer) in enumerate(zip(axes[0], weights)):
    mean = of_layer[0].mean(0)  # (T, T): row = the token that looks, column = the token it looks at
    ax.imshow(mean.sqrt(), cmap="magma", vmin=0, vmax=1)
    ax.set_title(f"layer {layer}: {1 - mean.sum(-1).mean():.0%} of attention goes to the sinks", fontsize=9)
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=5)
    ax.set_yticks(range(len(words)), words, fontsize=5)
figure.suptitle("Attention, mean over heads (colour: square root of the weight)")
figure.savefig(args.out / "attention.png", dpi=110)

# %% Hook into attention: what the first block adds to the residual stream
updates = []
hook = model.block[0].attn.register_forward_hook(lambda block, inputs, output: updates.append(output))
with torch.no_grad():
    model(ids)
hook.remove()
print(
    f"layer 0: attention changes the residual stream by {updates[0].norm(dim=-1).mean():.2f} per token, on average"
)
print(f"wrote {args.out / 'routing.png'} and {args.out / 'attention.png'}")
