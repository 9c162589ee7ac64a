"""Names and defaults shared by training and by the data commands. Importing this module is fast, so --help is too."""

# Shipped in data/tokenizers. With a larger vocabulary, most weights of a small model would be embeddings.
TOKENIZER = "stories4k"
TEXT_COLUMN = "text"
BUNDLED = "bundled"  # the dataset that data/stories writes
