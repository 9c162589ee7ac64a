"""The test set: a third of the validation documents, which only the verdict of a comparison looks at.

Searches, choices and the log read the other two thirds. A score that was used to choose something is better
than the same score on new text; the test set is text that nothing was chosen on.
"""

from collections.abc import Iterator

import numpy as np

from data.documents import Document, Pictured, Source, identity_of, text_digest

ONE_IN = 3
# Fewer documents than this say little about other text: a standard error over them is itself uncertain by 13 %.
MIN_TEST_DOCUMENTS = 30


def is_test_document(text: str | bytes) -> bool:
    """Whether a validation document belongs to the test set.

    Only the text decides, so all copies of a document are on the same side. The digits of the digest are not
    those of is_validation_document, which all validation documents may share.
    """
    return text_digest(text) // 1000 % ONE_IN == 0


class PartOfValidation(Source):
    """The test documents of a validation source, or all others, in the order of the source.

    tokenizer: decodes the documents of token files, so that they are divided as their texts are.
    The identity is that of the whole source: it says which data a run read, and its settings say which part.
    """

    def __init__(self, source: Source, tokenizer, *, test: bool):
        self._source, self._tokenizer, self._test = source, tokenizer, test
        self.name = f"the test third of {source.name}" if test else f"{source.name} without its test third"
        self.identity, self.digests, self.not_read = source.identity, source.digests, source.not_read

    def left_out(self) -> str:
        return self._source.left_out()

    def documents(self) -> Iterator[Document]:
        """Raises ValueError at the end if there was no document."""
        found = False
        for document in self._source.documents():
            if is_test_document(self.text_of(document)) == self._test:
                found = True
                yield document
        if not found:
            what = "no test document" if self._test else "only test documents"
            raise ValueError(
                f"{self._source.name} has {what} among its validation documents, of which the hash of the text "
                f"puts one in {ONE_IN} into the test set; give more documents with --val_dataset"
            )

    def check_tokenizer(self, tokenizer) -> None:
        self._source.check_tokenizer(tokenizer)

    def text_of(self, document: Document) -> str | bytes:
        if isinstance(document, Pictured):
            raise ValueError(
                f"{self.name} has images, and the test set is one of text; leave out --hold_out_test"
            )
        if isinstance(document, str):
            return document
        self._source.check_tokenizer(self._tokenizer)  # ids of another tokenizer are other text
        return self._tokenizer.decode_bytes(np.asarray(document).tolist())


def read_test_set(source: Source, tokenizer) -> tuple[list[Document], str]:
    """The test documents of a validation source, and their identity: how many, and a hash of their texts.

    Raises ValueError if there are fewer than MIN_TEST_DOCUMENTS, or no others.
    """
    part = PartOfValidation(source, tokenizer, test=True)
    documents, content, others = [], bytearray(), 0
    for document in source.documents():
        text = part.text_of(document)
        if is_test_document(text):
            documents.append(document)
            content += text_digest(text).to_bytes(64, "big")
        else:
            others += 1
    if len(documents) < MIN_TEST_DOCUMENTS or not others:
        raise ValueError(
            f"the test set of {source.name} must have at least {MIN_TEST_DOCUMENTS} documents, got "
            f"{len(documents)} of its {len(documents) + others:,} validation documents: the hash of the text "
            f"puts one in {ONE_IN} there; give about {ONE_IN * MIN_TEST_DOCUMENTS + 20} or more with --val_dataset"
        )
    return documents, identity_of(len(documents), bytes(content))
