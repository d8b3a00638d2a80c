"""A laboratory for small language models. Read it along the way of the data: corpora, tokenizers, data, models, module,
optim, callbacks, runs, generate, evaluate. config and cli stand before it, experiment ties it together.
"""
