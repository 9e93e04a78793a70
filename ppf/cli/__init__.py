"""The commands: each composes a config, seeds, calls its stage, reports, returns."""
