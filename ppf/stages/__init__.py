"""The commands: collect, train, search, prune, recover, evaluate, compress, serve.

Their steps have modules of their own: `fit` belongs to train and search, `accuracy` to train;
`budgets`, `byte_budget` and `results` to search; `tested` to search and prune; `distillation` to
recover; `upload` to prune and compress; `lineage`, `about` and `outcome` to most.
"""
