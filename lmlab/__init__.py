"""A laboratory for small language models. README.md says in which order to read it."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own threads and torch's, in turn, wait for each other
