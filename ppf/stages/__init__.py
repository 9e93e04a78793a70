"""The commands: collect, train, search, prune, recover, evaluate, serve.

Their steps have modules of their own: `fit` belongs to train and search, `score` to train;
`budgets`, `byte_budget`, `results` and `tested` to search; `distillation` to recover; `lineage` to
all that read or write a model.
"""
