"""Measures how good a trained model is. The code: lmlab/commands/evaluate.py."""

from lmlab.commands.door import run_command
from lmlab.commands.evaluate import main

if __name__ == "__main__":
    run_command(main)
