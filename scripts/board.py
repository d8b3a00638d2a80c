"""Shows runs in TensorBoard. The code: lmlab/commands/board.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

from lmlab.environment import imports

with imports():
    from lmlab.commands.board import main
    from lmlab.commands.door import run_command

if __name__ == "__main__":
    run_command(main)
