"""`python -m deltalearn`."""

from deltalearn.cli import main

if __name__ == "__main__":
    main()
