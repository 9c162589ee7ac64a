"""What a record of a data set with images says: a caption, or a question and its answer."""

from typing import NamedTuple

from architecture.images import IMAGE
from data.documents import no_such_column, text_of

CAPTION_COLUMN = "caption"  # read where there is no text column


def question_prompt(question: str) -> str:
    """The prompt of a question. The answer that follows begins with a blank."""
    return f"Question: {question} Answer:"


class Words(NamedTuple):
    prompt: str
    text: str
    kind: str


def words_of(record: dict, number_of_images: int, where: str, text_column: str) -> Words | None:
    """The words of a record, which has `question` and `answer`, or a text. None if the text is empty.

    A text under `caption` is read if there is no text column, and the first of a list of texts. `kind` names
    the kind of a document for evaluation, if it is there.
    """
    require_words(record, where, text_column)
    if "answer" in record and "question" in record:
        question, answer = (text_of(record[name], where, name).strip() for name in ("question", "answer"))
        words = Words(question_prompt(question), f" {answer}" if answer else "", "question")
    else:
        column = text_column if text_column in record else CAPTION_COLUMN
        value = record[column]
        if isinstance(value, list):
            value = value[0] if value else None
        words = Words("", text_of(value, where, column), "caption")
    require_placeholders(words.prompt + words.text, number_of_images, where)
    if not words.text or words.text.isspace():
        return None
    return words._replace(kind=text_of(record.get("kind"), where, "kind") or words.kind)


def require_placeholders(text: str, number_of_images: int, where: str) -> int:
    """Return how many placeholders a text has. Raises ValueError unless it has none, or one for each image."""
    found = text.count(IMAGE)
    if found not in (0, number_of_images):
        raise ValueError(
            f"{where}: its text must have {IMAGE} once for each of its images, or not at all, and has it {found} "
            f"times for {number_of_images} image(s); add or remove one or the other"
        )
    return found


def require_words(columns, where: str, text_column: str) -> None:
    """Raise ValueError if a record with these columns has no words."""
    if not {"question", "answer"} <= set(columns) and not {text_column, CAPTION_COLUMN} & set(columns):
        raise no_such_column(where, text_column, columns)
