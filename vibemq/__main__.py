"""`python -m vibemq`: the same as the command `vibemq`."""

from vibemq.cli.main import main

if __name__ == "__main__":
    main()
