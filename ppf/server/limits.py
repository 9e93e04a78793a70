"""What the server accepts from clients: the section `limits` of conf/serve.yaml."""

from dataclasses import dataclass

from ppf.ranges import Count, Natural, Positive


@dataclass(frozen=True)
class Limits:
    """See conf/serve.yaml for the meaning and unit of each, and what is answered beyond it."""

    sequences: Count
    context: Count
    turn_seconds: Positive
    queue: Natural
    seconds: Positive
