"""`python -m edgeformer`."""

from edgeformer.cli import main

if __name__ == "__main__":
    main()
