"""``python -m recstack`` is the script ``recstack``."""

from recstack.cli import main

if __name__ == "__main__":
    main()
