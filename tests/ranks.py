"""Ranks without processes: what rank 0 sends, the others receive later."""


class FakeRanks:
    """One rank. All ranks of a run share the list of what was sent."""

    def __init__(self, rank: int, sent: list[object]) -> None:
        self.is_global_zero, self.sent = rank == 0, sent
        self.global_rank, self.world_size = rank, 2

    def broadcast(self, obj: object, src: int = 0) -> object:
        if self.is_global_zero:
            self.sent.append(obj)
        return self.sent[-1]
