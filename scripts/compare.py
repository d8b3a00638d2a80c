"""Compares runs: averages configurations over their seeds. The code: lmlab/commands/compare.py."""

from lmlab.commands.compare import main
from lmlab.commands.door import run_command

if __name__ == "__main__":
    run_command(main)
