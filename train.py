"""The command that trains: python train.py model=gpt n_layer=4, or python train.py --help."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # the library beside this script
    from lmlab.environment import imports

    with imports():
        from lmlab.commands.door import run_command
        from lmlab.commands.train import main

    run_command(main)
