"""Draws loss curves. The code: lmlab/commands/plot.py."""

from lmlab.commands.door import run_command
from lmlab.commands.plot import main

if __name__ == "__main__":
    run_command(main)
