"""The predictor: maps policies to log-perplexity, with a standard deviation."""

import warnings

# gpytorch's linear_operator uses it when it is imported.
warnings.filterwarnings("ignore", message="`torch.jit.script` is")
