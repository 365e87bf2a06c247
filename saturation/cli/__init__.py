"""The command line."""

from saturation.cli.commands import main

__all__ = ["main"]
