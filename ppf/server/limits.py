"""What the server accepts from clients: the section `limits` of conf/serve.yaml."""

from dataclasses import dataclass

from ppf.ranges import Count, Natural, Positive


@dataclass(frozen=True)
class Limits:
    """Limits of one server; see conf/serve.yaml for what is answered beyond them.

    Args:
        body_mib: largest body of a request, in MiB.
        sequences: largest number of texts that are generated at a time.
        context: largest number of tokens of a prompt and its answer together.
        turn_seconds: seconds for which one ratio is served before another has its turn.
        queue: requests that may be open besides the first `sequences`.
        seconds: time limit of a request in seconds, including its waiting time.
    """

    body_mib: Positive
    sequences: Count
    context: Count
    turn_seconds: Positive
    queue: Natural
    seconds: Positive
