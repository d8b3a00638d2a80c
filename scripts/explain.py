"""Shows what a trained model expects in a text. The code: lmlab/commands/explain.py."""

from lmlab.commands.door import run_command
from lmlab.commands.explain import main

if __name__ == "__main__":
    run_command(main)
