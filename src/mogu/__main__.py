"""``python -m mogu``: the command line, for launchers that start modules (``torchrun -m mogu train …``)."""

from mogu.cli.main import main

if __name__ == "__main__":
    main()
