"""`python -m pipeline.cli`: the command without an installation."""

from pipeline.cli import main

main()
