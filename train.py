"""The command that trains: python train.py model=gpt n_layer=4, or python train.py --help."""

if __name__ == "__main__":
    try:
        from lmlab.commands.door import run_command
        from lmlab.commands.train import main

        run_command(main)
    except KeyboardInterrupt:  # during the imports, when there is nothing to save
        raise SystemExit(130) from None
