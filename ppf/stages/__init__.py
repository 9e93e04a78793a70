"""The stages, functions of a resolved config: collect → train → search → prune → evaluate."""
