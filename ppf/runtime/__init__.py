"""One model in memory that can be pruned to any ratio."""

from ppf.runtime.batch import DecodingBatch
from ppf.runtime.model import DynamicModel
from ppf.runtime.search_folder import Policies
