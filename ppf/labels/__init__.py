"""Labels: what the real pruned model scores for policies drawn by samplers."""
