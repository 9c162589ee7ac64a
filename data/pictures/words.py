"""Tell a scene in words: its one right caption, or a question about it and the one right answer."""

from data.image_records import question_prompt
from data.pictures.scenes import COLORS, Group, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
WHERE = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def tell(scene: Scene) -> tuple[str, str]:
    """Return the prompt and the text of a scene."""
    if scene.kind == "caption":
        return "", caption(scene)
    question, answer = ask(scene)
    return question_prompt(question), f" {answer}"


def caption(scene: Scene) -> str:
    """The groups in the order of COLORS; a shape that is alone in the picture has its place."""
    if sum(group.count for group in scene.groups) == 1:
        return f"{describe(scene.groups[0])} {WHERE[scene.places[0][0]]}"
    return " and ".join(map(describe, sorted(scene.groups, key=lambda group: COLORS.index(group.color))))


def describe(group: Group) -> str:
    count, shape = ("a", group.shape) if group.count == 1 else (NUMBERS[group.count], plural(group.shape))
    return f"{count} {group.size} {group.color} {shape}"


def ask(scene: Scene) -> tuple[str, str]:
    """The question and the answer of a scene that was made for a question."""
    group, other, yes = scene.groups[0], scene.groups[-1], "yes" if scene.yes else "no"
    those = f"is the {group.shape}" if group.count == 1 else f"are the {plural(group.shape)}"
    return {
        "count": (f"How many {plural(group.shape)} are there?", NUMBERS[group.count]),
        "color": (f"What color {those}?", group.color),
        "shape": (f"Which shape is {group.color}?", group.shape),
        "size": (f"{those.capitalize()} small or big?", group.size),
        "place": (f"Where is the {group.shape}?", WHERE[scene.places[0][0]]),
        "more": (f"Are there more {plural(group.shape)} than {plural(other.shape)}?", yes),
        "total": ("How many shapes are there?", NUMBERS[sum(g.count for g in scene.groups)]),
        "left": (f"Is the {group.shape} left of the {other.shape}?", yes),
        "above": (f"Is the {group.shape} above the {other.shape}?", yes),
    }[scene.kind]
