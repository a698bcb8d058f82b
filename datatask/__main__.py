"""`python -m datatask` is the command `datatask`."""

from datatask.adapters.cli.main import main

if __name__ == "__main__":
    main()
