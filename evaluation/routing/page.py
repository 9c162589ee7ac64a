"""The page: one HTML file with its data, style and script inside, which opens from disk and asks no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evaluation.report.look import COLOURS, GREY
from evaluation.report.page import STYLE
from evaluation.report.read import figure
from evaluation.routing import measure, replay
from evaluation.routing.changes import Change

HERE = Path(__file__).parent
MOST_CHANGED = 5  # tokens that a row of the table names
# Nothing from elsewhere is loaded, and the page sends nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Changed(NamedTuple):
    """The text read with a change, and how the model goes on with it."""

    change: Change
    bits: torch.Tensor  # (T,) float64, bits of each token more than without the change
    continuations: tuple[str, str]  # greedy, sampled


class Replay(NamedTuple):
    a: str
    b: str
    split: replay.Split


class Found(NamedTuple):
    """Everything that the page shows."""

    name: str  # of the run
    model: str  # the model in short
    settings: str  # of the continuations
    text: measure.Text
    layers: list[int]
    experts: int
    reading: measure.Reading
    load: torch.Tensor  # (L, E) float64
    knock_outs: torch.Tensor | None  # (L, E, T) float64
    continuations: tuple[str, str]  # without a change
    changes: list[Changed]
    replays: list[Replay]

    def per_byte(self, bits: torch.Tensor) -> Any:
        """Bits of tokens (..., T) -> bits per byte of the text, as numbers."""
        return (bits.sum(-1) / self.text.num_bytes).tolist()


def html(found: Found) -> str:
    """The whole page."""
    data = json.dumps(data_of(found), separators=(",", ":")).replace("<", "\\u003c")  # no tag ends inside
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    look = {"GREY": GREY, "BETTER": COLOURS[0], "WORSE": COLOURS[1], "FONT": f'"{STYLE["font.family"]}"'}
    for name, value in look.items():
        style = style.replace(name, value)
    script = script.replace("FONT", STYLE["font.family"])
    sections = "\n".join([*_header(found), *_text(found), *_maps(found), *_changes(found), *_knock_outs(found),
                          *_replays(found)])  # fmt: skip
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Routing of {escape(found.name)}</title>
<style>
{style}</style>
</head>
<body>
{sections}
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def data_of(found: Found) -> dict[str, Any]:
    """What page.js reads. T tokens, L layers with a router, E experts, k experts per token.

    A row of a layer is its place among the layers with a router.
    """
    reading, knocked = found.reading, found.knock_outs
    pairs = (
        []
        if knocked is None
        else [(row, e) for row in range(len(found.layers)) for e in range(found.experts)]
    )
    return {
        "tokens": found.text.tokens,  # T
        "layers": found.layers,  # L
        "experts": found.experts,
        "bits": _rounded(reading.bits),  # T
        "index": reading.index.tolist(),  # L, T, k
        "weight": _rounded(reading.weight),  # L, T, k
        "entropy": _rounded(reading.entropy),  # L, T
        "margin": _rounded(reading.margin),  # L, T
        "next_best": None if reading.next_best is None else reading.next_best.tolist(),  # L, T
        "lead": None if reading.lead is None else _rounded(reading.lead),  # L, T
        "load": _rounded(found.load),  # L, E
        "changes": [{"name": c.change.name, "bits": _rounded(c.bits)} for c in found.changes],  # T
        "knock_outs": {f"{row}:{e}": _rounded(knocked[row, e]) for row, e in pairs},  # T, by row:expert
        "replays": [
            {"kl": _rounded(r.split.kl, 9), "flipped": r.split.flipped.int().tolist()}  # T; L, T
            for r in found.replays
        ],
    }  # fmt: skip


def _rounded(values: Any, digits: int = 3) -> Any:
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, list):
        return [_rounded(value, digits) for value in values]
    return round(values, digits) or 0  # 0 and not -0.0


# ---------------------------------------------------------------------------------- the sections
def _header(found: Found) -> Iterator[str]:
    T, k = len(found.text.tokens), found.reading.index.shape[-1]
    tiles = [
        (figure(found.per_byte(found.reading.bits)), "bits per byte"),
        (str(T - 1), "tokens of text"),
        (f"{k} of {found.experts}", "experts per token"),
        (str(len(found.layers)), "layers with a router"),
    ]
    yield "<header><div>"
    yield f'<h1>{escape(found.name)}</h1><div class="note">{escape(found.model)}</div></div>'
    yield '<div class="tiles">'
    yield from (f'<div class="tile"><b>{value}</b><span>{words}</span></div>' for value, words in tiles)
    yield "</div></header>"


def _text(found: Found) -> Iterator[str]:
    yield "<h2>The text</h2>"
    yield (
        '<p class="note">Point at a token, or click to keep it; the arrow keys go on from there. The experts of a '
        "token process it to predict the next one; its bits are what it cost to predict the token itself. Layers and "
        "experts are counted from 0.</p>"
    )
    yield '<div class="text"><div>'
    yield '<label>Colour by <select id="measure"><option value="bits">bits of each token</option>'
    rows = list(enumerate(found.layers))
    yield from _options("Router", [(f"entropy:{r}", f"entropy, layer {layer}") for r, layer in rows]
                        + [(f"margin:{r}", f"margin, layer {layer}") for r, layer in rows])  # fmt: skip
    changes = [(f"change:{n}", c.change.name) for n, c in enumerate(found.changes)]
    yield from _options("Change of bits", changes)
    if found.knock_outs is not None:
        yield from _options("Change of bits without an expert", [
            (f"knock_out:{r}:{e}", f"without {layer}:{e}") for r, layer in rows for e in range(found.experts)
        ])  # fmt: skip
    yield from _options(
        "Replay", [(f"replay:{n}", f"{r.a} against {r.b}") for n, r in enumerate(found.replays)]
    )
    yield '</select></label><span class="legend" id="legend"></span>'
    yield '<p id="tokens" tabindex="0" aria-label="the text, token by token"></p></div>'
    yield '<div class="panel"><h3 id="token"></h3><div class="note" id="token_bits"></div><div class="wide"><table>'
    next_best = "next best (behind by)" if found.reading.next_best is not None else "next best"
    heads = "layer", "experts (weight)", "entropy", "margin", next_best
    yield f"<thead>{_row('th', heads, 2)}</thead>"
    yield '<tbody id="token_layers"></tbody></table></div></div></div>'


def _options(label: str, options: list[tuple[str, str]]) -> Iterator[str]:
    if options:
        yield f'<optgroup label="{label}">'
        yield from (f'<option value="{value}">{escape(words)}</option>' for value, words in options)
        yield "</optgroup>"


def _maps(found: Found) -> Iterator[str]:
    yield "<h2>Experts of each token</h2>"
    yield (
        '<p class="note">Rows are experts, with their share of all assignments of this text; columns are tokens. '
        "A stronger colour = a larger weight. Below: entropy (1 = undecided) and margin (1 = sure) of the router. "
        + ("A mark above them = a flip in the replay. " if found.replays else "")
        + "Click a column to keep its token, an expert to see what the text costs without it.</p>"
    )
    yield '<div class="maps" id="maps">'
    for row, layer in enumerate(found.layers):
        entropy, margin = (float(x[row].mean()) for x in (found.reading.entropy, found.reading.margin))
        yield f'<div class="layer"><h3>Layer {layer}</h3><div class="note">mean entropy {entropy:.2f}, '
        yield f'mean margin {margin:.2f}</div><div class="caption" id="caption_{row}"></div>'
        yield f'<div class="map" id="map_{row}"><canvas role="img" aria-label="load of the experts of layer {layer}">'
        yield f'</canvas><div class="scroll"><canvas role="img" aria-label="experts by token in layer {layer}">'
        yield "</canvas></div></div></div>"
    yield "</div>"


def _changes(found: Found) -> Iterator[str]:
    if not found.changes:
        return
    yield "<h2>Changes</h2>"
    yield (
        '<p class="note">Without 1:3 = expert 3 of layer 1 is taken out of the choice, the next best takes its place, '
        "and the weights are those of the experts that run. Swapped 1:3=5 = each of the two runs in the place of the "
        f"other, with the other's weight. Marked = from where the continuation differs. {escape(found.settings)}</p>"
    )
    before = found.per_byte(found.reading.bits)
    for number, one in enumerate(found.changes):
        delta = found.per_byte(one.bits)
        yield f'<div class="wide"><h3>{escape(one.change.name)}</h3><table><tbody><tr data-measure="change:{number}">'
        yield f'<td class="number">bits per byte {before:.4f} to {before + delta:.4f}</td>{_signed(delta)}'
        yield f'<td class="tokens">{_tokens(found, one.bits)}</td></tr></tbody></table></div>'
        if not any(found.continuations):
            continue
        yield '<div class="sides">'
        for kind, old, new in zip(("greedy", "sampled"), found.continuations, one.continuations):
            same = _common(old, new)
            yield f'<div><div class="note">{kind}, as it is</div><p>{_marked(old, same)}</p></div>'
            yield f'<div><div class="note">{kind}, changed</div><p>{_marked(new, same)}</p></div>'
        yield "</div>"


def _common(old: str, new: str) -> int:
    """Length of what two texts begin with in common, in whole words unless one is all of the other."""
    place = next((n for n, (x, y) in enumerate(zip(old, new)) if x != y), None)
    if place is None:
        return min(len(old), len(new))
    return max(old.rfind(" ", 0, place), 0)


def _marked(text: str, same: int) -> str:
    rest = f"<mark>{escape(text[same:])}</mark>" if text[same:] else ""
    return escape(text[:same]) + rest


def _knock_outs(found: Found) -> Iterator[str]:
    yield "<h2>Without one expert</h2>"
    if found.knock_outs is None:
        yield '<p class="note">Every token takes all experts, so that nothing can take the place of one.</p>'
        return
    yield (
        '<p class="note">Each expert knocked out by itself, sorted by the change of bits per byte: + = the text costs '
        "more without it. Click a row to colour the text by it, a token to see its experts.</p>"
    )
    totals = found.per_byte(found.knock_outs)  # L lists of E
    for row, layer in enumerate(found.layers):
        order = sorted(range(found.experts), key=lambda e: -totals[row][e])
        heads = "expert", "bits per byte", "share of assignments", "tokens that it changes most, in bits"
        yield f"<details{' open' if row == 0 or found.experts <= 8 else ''}><summary>Layer {layer} "
        yield f"<span>{signed(totals[row][order[-1]])} to {signed(totals[row][order[0]])} bits per byte</span></summary>"
        yield f'<div class="wide"><table><thead>{_row("th", heads, 1, 2)}</thead><tbody>'
        for e in order:
            yield f'<tr data-measure="knock_out:{row}:{e}"><td>{e}</td>{_signed(totals[row][e])}'
            yield f'<td class="number">{float(found.load[row, e]):.1%}</td>'
            yield f'<td class="tokens">{_tokens(found, found.knock_outs[row, e])}</td></tr>'
        yield "</tbody></table></div></details>"


def _replays(found: Found) -> Iterator[str]:
    for one in found.replays:
        split, per_byte = one.split, found.per_byte(one.split.bits)
        yield f"<h2>Replay: {escape(one.a)} against {escape(one.b)}</h2>"
        yield (
            f'<p class="note">A = {escape(one.a)}, B = {escape(one.b)}. Forced = B with the experts that A chose. '
            "Arithmetic = forced - A, flips = B - forced; both sums hold exactly. A share in the logits is that of a part along the difference. A direct flip is one that the rounding "
            "of that layer makes by itself; the others follow from earlier flips. Lead = by how much the last chosen "
            "expert was ahead of the next; error = the largest change of a layer's values by arithmetic.</p>"
        )
        yield f'<div class="wide"><table><thead>{_row("th", ("", "arithmetic", "flips", "together"), 1, 2, 3)}</thead>'
        yield "<tbody>"
        for line in replay_lines(split, per_byte):
            yield _row("td", line, 1, 2, 3)
        yield f'</tbody></table></div><p class="note">{escape(control_line(split))}</p>'
        heads = ("layer", "flips", "direct", "median lead", "median lead at flips", "median error")
        yield f'<div class="wide"><table><thead>{_row("th", heads, *range(1, 6))}</thead><tbody>'
        for layer, flips, direct, *medians in replay.table(split, found.layers):
            numbers = ["-" if value != value else f"{value:.3g}" for value in medians]  # nan: there is none
            yield _row("td", [layer, flips, direct, *numbers], *range(1, 6))
        yield "</tbody></table></div>"


def replay_lines(split: replay.Split, per_byte: list[float]) -> list[tuple[str, str, str, str]]:
    """Rows of words, arithmetic, flips and both. per_byte: bits per byte of A, the forced B, and B."""
    a, forced, b = per_byte
    difference = split.arithmetic + split.flips
    parts = (split.arithmetic, split.flips, difference)
    kls = (split.kl_arithmetic, split.kl - split.kl_arithmetic, split.kl)

    def shares(found: tuple[float, float] | None) -> tuple[str, str, str]:
        return tuple(f"{share:.1%}" for share in (*found, 1.0)) if found else ("-", "-", "no difference")

    return [
        ("logits, root mean square", *(f"{float(x.square().mean().sqrt()):.3g}" for x in parts)),
        ("share of the logits' difference", *shares(split.shares)),
        ("KL(A || B), nats per token", *(f"{float(x.mean()):.3g}" for x in kls)),
        ("share of the KL", *shares(split.kl_shares)),
        (f"bits per byte, from {a:.5f}", *(f"{x:+.2g}" for x in (forced - a, b - forced, b - a))),
    ]


def control_line(split: replay.Split) -> str:
    """A forced along its own routing is A; if not, the split is not to be trusted."""
    if split.control == 0:
        return "Control: A forced along its own routing has the logits of A to the last bit."
    return (
        f"Control: A forced along its own routing differs from A by up to {split.control:.2g} in a logit; parts of "
        "this size mean nothing."
    )


# ---------------------------------------------------------------------------------- parts of a table
def _row(cell: str, values: Any, *numbers: int) -> str:
    """A row of a table; `numbers` are the columns that are aligned to the right."""
    kinds = [' class="number"' if place in numbers else "" for place in range(len(values))]
    cells = (f"<{cell}{kind}>{escape(str(value))}</{cell}>" for kind, value in zip(kinds, values))
    return f"<tr>{''.join(cells)}</tr>"


def _signed(value: float) -> str:
    kind = "worse" if value > 0.00005 else "better" if value < -0.00005 else ""
    return f'<td class="number {kind}">{signed(value)}</td>'


def signed(value: float) -> str:
    """A change with four decimals, such as +0.0123; 0 is +0.0000."""
    return f"{round(value, 4) + 0.0:+.4f}"  # -0.0 + 0.0 is 0.0


def _tokens(found: Found, bits: torch.Tensor) -> str:
    """Buttons with the tokens whose bits change most."""
    made = []
    for place in measure.most_changed(bits, MOST_CHANGED):
        kind = "worse" if bits[place] > 0 else "better"
        token = escape(found.text.tokens[place].replace("\n", "\u23ce"))
        made.append(
            f'<button class="token" data-place="{place}" title="{_around(found.text.tokens, place)}">{token} <span class="{kind}">{float(bits[place]):+.2f}</span>'
            "</button>"
        )
    return "".join(made) or '<span class="note">no token</span>'


def _around(tokens: list[str], place: int) -> str:
    """A token with its number and the words around it, for an attribute."""
    before, after = "".join(tokens[max(0, place - 6) : place]), "".join(tokens[place + 1 : place + 4])
    return escape(f"token {place}: {before}[{tokens[place]}]{after}")
