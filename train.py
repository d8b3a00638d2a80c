"""The command that trains: python train.py model=gpt n_layer=4, or python train.py --help."""

if __name__ == "__main__":
    try:
        from lmlab.commands.train import main

        main()
    except KeyboardInterrupt:  # before the first step, when there is nothing to save
        raise SystemExit(130) from None
