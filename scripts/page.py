"""Writes a page in which a trained model writes. The code: lmlab/commands/page.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the library beside this script

try:
    from lmlab.commands.door import run_command
    from lmlab.commands.page import main
except KeyboardInterrupt:  # during the imports, when there is nothing to lose
    raise SystemExit(130) from None

if __name__ == "__main__":
    run_command(main)
