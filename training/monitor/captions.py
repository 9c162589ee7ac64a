"""What a model says about images of the validation data, in text and as one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from architecture.generation.decode import length_limit
from architecture.generation.text import encode_prompt, generate_texts, image_format
from architecture.images import IMAGE
from architecture.tokenizer import encode_text
from data.documents import Source
from data.images import Pictured

COLUMNS = 4  # of the picture
WRAP = 34  # characters in a line under an image


class Captioned(NamedTuple):
    """A document with images and what the model says in place of its text."""

    document: Pictured
    said: str

    @property
    def right(self) -> bool:
        return self.said == self.document.text


def asked(document: Pictured) -> Pictured:
    """The document with all up to its last placeholder in the prompt, because a model writes no image."""
    before, image, after = document.text.rpartition(IMAGE)
    return document._replace(prompt=document.prompt + before + image, text=after)


def examples(source: Source, number: int) -> list[Pictured]:
    """The first documents with images of a source, at most `number`, as of `asked`."""
    pictured = (asked(document) for document in source.documents() if isinstance(document, Pictured))
    return list(itertools.islice(pictured, number))


def captioned(
    model: nn.Module,
    documents: Sequence[Pictured],
    images: Sequence[Sequence[np.ndarray]] | None = None,
) -> list[Captioned]:
    """What the model says after each prompt, with the most probable token at each step.

    documents: as of `asked`.  images: the images to show in place of the documents' own.
    A text ends with the end-of-text token, or one token after the length of the longest true text: from there
    on it is wrong in any case. A document that the model's context cannot hold is cut.
    """
    shown = [document.images for document in documents] if images is None else images
    lengths = [
        len(encode_prompt(model.tokenizer, document.prompt, image_format(model), len(own)))
        for document, own in zip(documents, shown)
    ]
    longest = max(len(encode_text(model.tokenizer, document.text)) for document in documents)
    room = length_limit(model) - max(lengths)
    if room <= longest and len(documents) > 1:  # alone, each has the room that its own prompt leaves
        return [captioned(model, [one], [own])[0] for one, own in zip(documents, shown)]
    if room < 1:
        return [Captioned(documents[0], "")]
    prompts = [document.prompt for document in documents]
    texts = generate_texts(model, prompts, min(longest + 1, room), temperature=0, images=shown)
    return [Captioned(one, text[len(one.prompt) :]) for one, text in zip(documents, texts)]


def as_json(found: Sequence[Captioned]) -> list[dict[str, str]]:
    return [{"prompt": document.prompt, "true": document.text, "generated": said} for document, said in found]


def as_line(found: Captioned) -> str:
    """The prompt and the generated text, with the true one in brackets if they differ."""
    document, said = found
    truth = "" if found.right else f"   [true:{'' if document.text[:1] == ' ' else ' '}{document.text}]"
    return " ".join(f"{document.prompt}{said}{truth}".split("\n"))


def picture(found: Sequence[Captioned]) -> np.ndarray:
    """Draw each document's first image with prompt, true and generated text below: (height, width, 3) uint8.

    A generated text that equals the true one is green, another one red.
    """
    from textwrap import fill

    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would keep global state
    from matplotlib.figure import Figure

    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(2.3 * COLUMNS, 3.0 * rows), dpi=110)
    canvas = FigureCanvasAgg(figure)
    for place, (document, said) in enumerate(found):
        row, column = divmod(place, COLUMNS)
        left, bottom = column / COLUMNS, 1 - (row + 1) / rows
        axes = figure.add_axes((left + 0.02, bottom + 0.4 / rows, 1 / COLUMNS - 0.04, 0.58 / rows))
        axes.imshow(document.images[0].transpose(1, 2, 0), interpolation="nearest")
        axes.set_axis_off()
        asked = document.prompt.strip().replace("\n", " ")
        told = [fill(asked, WRAP)] if asked else []
        told += [fill(f"true: {document.text.strip()}", WRAP)]
        above = figure.text(left + 0.02, bottom + 0.38 / rows, "\n".join(told), fontsize=6.5, va="top")
        lines = above.get_text().count("\n") + 1
        figure.text(
            left + 0.02,
            bottom + (0.38 - 0.043 * lines) / rows,
            fill(f"said: {said.strip()}", WRAP),
            fontsize=6.5,
            va="top",
            color="green" if said == document.text else "firebrick",
        )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
