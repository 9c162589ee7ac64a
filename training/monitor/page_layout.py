"""The charts of a run on the custom scalars page of TensorBoard.

Their groups answer questions in the order in which people ask them. A chart without data is left out.
"""

from __future__ import annotations

LEARNING = {
    "validation bits per byte (compares across tokenizers)": [r"val/bits_per_byte$"],
    "loss, nats per token (val: cross-entropy, the same tokens each time)": [r"train/loss$", r"val/loss$"],
    "validation loss by place in the window (from 0, 1, 2, 4, ...)": [r"val/loss_by_position/"],
    "learning rate": [r"optim/lr$"],
    "gradient norm before clipping": [r"optim/grad_norm$"],
    "gradient norm by kind of parameter": [r"optim/grad_norm/"],
}

EXPERTS = {
    "balance loss (1 = even, E/k = collapsed)": [r"train/balance_loss$"],
    "max violation of training since the last evaluation (0 = even)": [r"moe/max_violation_since_eval/"],
    "max violation of one step (0 = even)": [r"moe/max_violation/"],
    "dead experts (under 1 % of an even load)": [r"moe/dead_experts/"],
    "update-to-weight ratio of mlp1, percentiles of the experts": [r"moe/update_to_weight/mlp1_"],
    "update-to-weight ratio of mlp2, percentiles of the experts": [r"moe/update_to_weight/mlp2_"],
}

ROUTERS = {
    "router entropy / ln E (1 = undecided, 0 = certain)": [r"moe/entropy/"],
    "top-1 margin, probability": [r"moe/margin/"],
    "top-k margin: k-th minus (k+1)-th value of the choice, median": [r"moe/choice_margin/"],
    "tokens with a top-k margin under 0.01": [r"moe/choice_margin_under_0\.01/"],
    "tokens with a top-k margin under 0.05": [r"moe/choice_margin_under_0\.05/"],
    "tokens with a top-k margin under 0.1": [r"moe/choice_margin_under_0\.1/"],
    "gradient of a router logit, RMS": [r"moe/router_logit_grad_rms/"],
    "flip rate: tokens whose experts changed since the last evaluation": [r"moe/flip_rate/"],
}

CONTEXT = {
    "validation loss by segment of the document (from 0, 1, 2, 4, ...)": [r"val/loss_by_segment/"],
    "length of the carried state": [r"context/state_norm$"],
    "gate: the share of a state that is new": [r"context/gate$"],
}

IMAGES = {
    "exact match of generated captions and answers, the first 100 validation images": [r"val/exact_match$"],
    "distance of image and text tokens in the routers (0 = equal, 1 = no expert in common)": [
        r"moe/image_text_distance/"
    ],
}

REWARDS = {  # of GRPO and PPO
    "mean reward of the responses, training and held-out prompts": [r"post/reward$", r"val/reward$"],
    "parts of the reward, training": [r"post/reward/"],
    "parts of the reward, held-out prompts": [r"val/reward/"],
    "KL divergence from the reference, nats per token": [r"post/kl$"],
    "entropy of the responses, nats per token": [r"post/entropy$"],
    "share of tokens whose ratio is clipped": [r"post/clip_fraction$"],
    "tokens of a response": [r"post/response_tokens$", r"val/response_tokens$"],
    "share of responses that end by themselves": [r"post/ended$", r"val/ended$"],
    "share of the router's choices in which sampler and training differ": [r"post/routing_flips$"],
    "share of a step that sampling takes": [r"post/sampling_share$"],
    "responses per second of a step": [r"post/samples_per_second$"],
}

TASKS = {  # by kind of post-training
    "grpo": REWARDS | {"prompts left out, because all of their rewards are equal": [r"post/groups_dropped$"]},
    "ppo": REWARDS
    | {
        "variance of the returns that the value head explains (1 = all, 0 = a constant does as well)": [
            r"post/explained_variance$"
        ],
        "loss of the value head": [r"post/value_loss$"],
    },
    "sft": {
        "loss of held-out responses, nats per token": [r"val/response_loss$"],
        "held-out tasks: share of the words used, and share of stories with all three": [
            r"val/words$",
            r"val/all_words$",
        ],
        "held-out tasks: share of stories with the feature, that the checker passes, that end": [
            r"val/feature$",
            r"val/passes$",
            r"val/ended$",
        ],
        "responses cut off at block_size, share of a step": [r"data/truncated$"],
    },
    "dpo": {
        "held-out pairs in which the chosen response is more probable, share with its 95 % interval": [
            r"val/pair_accuracy"
        ],
        "pairs whose chosen response has the larger reward, share (1/2 = as the reference)": [
            r"val/reward_accuracy$",
            r"post/accuracy$",
        ],
        "sampled responses that end, and stories that the checker passes, share": [
            r"val/ended$",
            r"val/passes$",
        ],
        "loss of pairs (log 2 = as the reference)": [r"val/dpo_loss$", r"post/loss$"],
        "reward: beta times log-probability over that of the reference": [r"post/reward_"],
        "log-probability of a response, nats": [r"post/logp_"],
        "choices of experts that differ from those of the reference, share": [r"post/routing_shift$"],
        "responses cut off at block_size, share of a step": [r"data/truncated$"],
    },
}

MACHINE = {
    "training tokens per second": [r"perf/tokens_per_second$"],
    "peak memory, GB": [r"perf/peak_memory_gb$"],
    "passes over the data": [r"data/epoch$"],
}


def page_layout(
    *,
    routed: bool,
    capacity: bool,
    sinks: bool,
    utilisation: bool,
    carries: bool = False,
    images: bool = False,
    kind: str = "",
) -> dict[str, dict[str, list[str]]]:
    """Return the page of a run: {group: {title of a chart: patterns of its tags}}.

    routed: the model has routers.  capacity: they drop assignments.  sinks: its attention has sinks.
    utilisation: the peak FLOPs of the device are known.  carries: a state is passed from segment to segment.
    images: the model reads images.  kind: of post-training.
    """
    dropped = {"assignments dropped over capacity, share": [r"moe/dropped/"]} if capacity else {}
    mass = {"attention on the sinks, share per head": [r"attention/sink_mass/"]} if sinks else {}
    mfu = {"model FLOPs utilisation": [r"perf/mfu$"]} if utilisation else {}
    groups = {
        "Is it learning?": LEARNING,
        "Does it learn its task?": TASKS.get(kind, {}),
        "Are the experts in use?": EXPERTS | dropped if routed else {},
        "Do the routers decide, and stay with it?": ROUTERS if routed else {},
        "Where does attention rest?": mass,
        "What does the context carry?": CONTEXT if carries else {},
        "What does it see?": IMAGES if images else {},
        "Is the machine busy?": MACHINE | mfu,
    }
    shown = [(title, charts) for title, charts in groups.items() if charts]
    return {f"{n}  {title}": charts for n, (title, charts) in enumerate(shown, start=1)}
