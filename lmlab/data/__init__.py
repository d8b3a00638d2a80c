"""From a text to batches: corpora, tokenizers, the parts of a text, windows of tokens."""
