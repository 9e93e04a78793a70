"""Hydra configs; a package, so that `pkg://ppf.conf` finds them in an installed wheel."""
