"""Labels: measured losses of the pruned model, for policies that samplers draw."""
