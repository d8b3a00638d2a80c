"""Draws text from a trained model. The code: lmlab/commands/sample.py."""

from lmlab.commands.door import run_command
from lmlab.commands.sample import main

if __name__ == "__main__":
    run_command(main)
