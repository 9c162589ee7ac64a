"""What a run and the commands that make data use unless told otherwise; light, so that --help is immediate."""

TOKENIZER = "stories4k"  # shipped in data/tokenizers; a larger vocabulary would be most of a small model
TEXT_COLUMN = "text"
