"""Shows runs in TensorBoard. The code: lmlab/commands/board.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

try:
    from lmlab.commands.board import main
    from lmlab.commands.door import run_command
except KeyboardInterrupt:  # during the imports, when there is nothing to lose
    raise SystemExit(130) from None

if __name__ == "__main__":
    run_command(main)
