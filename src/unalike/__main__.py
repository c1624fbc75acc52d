"""`python -m unalike` is `unalike`."""

from .cli import main

main()
