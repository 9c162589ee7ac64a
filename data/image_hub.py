"""Sets of images with captions or questions on the Hugging Face Hub, streamed as data/hub.py streams texts."""

from dataclasses import dataclass

from architecture.images import read_image
from common.script import shown
from data.documents import Document, Pictured, is_validation_document
from data.hub import HubSource, in_one_sentence
from data.image_records import Words, require_words, words_of


@dataclass
class Undecoded:
    """A document before its images are decoded. Its length is what it takes in the window of a stream."""

    files: list[bytes]
    words: Words

    def __len__(self):
        return len(self.words.text) + sum(map(len, self.files))


class ImageHubSource(HubSource):
    """One split of a set with a column of images (`image`, or the first one) and columns of words.

    size: of the images, in pixels.  The hash rule looks at the first image.
    """

    def __init__(self, *arguments, size: int, **options):
        self._size = size
        super().__init__(*arguments, **options)

    def require_columns(self, columns):
        features = self._dataset.features or {}
        found = [name for name in features if "Image(" in repr(features[name])]
        if not found:
            only = f", only {', '.join(sorted(columns))}" if columns else ""
            raise ValueError(
                f"{self._repository} has no column of images{only}; use another set, or download it and write "
                "captions.jsonl beside its images"
            )
        require_words(columns, self._repository, self._text_column)
        self._image_column = "image" if "image" in found else found[0]

    def document(self, text: Undecoded) -> Document:
        words = text.words
        if not text.files:
            return words.prompt + words.text
        name = f"{self._repository}, {words.text[:40]!r}"
        images = tuple(read_image(file, self._size, f"of {name}") for file in text.files)
        return Pictured(images, *words, name)

    def _document(self, example):
        value = example.get(self._image_column)
        values = [] if value is None else value if isinstance(value, list) else [value]
        words = words_of(example, len(values), self._repository, self._text_column)
        if words is None:
            self.skipped += 1
            return None
        files = [self._bytes(value) for value in values]
        ours = is_validation_document(files[0] if files else words.prompt + words.text) == (
            self._side == "validation"
        )
        return Undecoded(files, words) if self._side is None or ours else None

    def _bytes(self, value):
        """The bytes of an image, which a row holds, or which a file of the same revision holds."""
        data, path = (
            (value.get(name) for name in ("bytes", "path")) if isinstance(value, dict) else (None, None)
        )
        if isinstance(data, bytes):
            return data
        if not isinstance(path, str) or not path.startswith(
            f"hf://datasets/{self._repository}@{self.revision}/"
        ):
            raise ValueError(
                f"a row of {self._repository} has an image that is not inside the set ({shown(str(path)[:60])}); "
                "use another set, or download it and write captions.jsonl beside its images"
            )
        from huggingface_hub import HfFileSystem, constants

        with in_one_sentence(self._repository, f"reading {path} from the Hub"):
            return HfFileSystem(endpoint=constants.ENDPOINT).cat_file(path)
