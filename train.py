"""The door: python train.py key=value …   (python train.py --help says which)"""

from lmlab.cli import main

if __name__ == "__main__":
    main()
