"""`python -m ppap_framework` is `ppap`."""

from ppap_framework.cli import main

if __name__ == "__main__":
    main()
