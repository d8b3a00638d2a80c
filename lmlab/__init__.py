"""A laboratory for small language models. CONTRIBUTING.md says in which order to read it."""

import os

# Where numpy isn't loaded yet: its threads and torch's would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
