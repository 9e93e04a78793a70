"""The stages, each a call on a resolved config: collect → train → search → prune → evaluate."""
