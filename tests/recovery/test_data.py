"""The order in which training reads its windows."""

from ppf.recovery.data import WindowSampler


def read(
    *, epoch: int = 0, size: int = 16, seed: int = 0, rank: int = 0, ranks: int = 1
) -> list[int]:
    """The windows of an epoch, of 8 windows in all."""
    order = WindowSampler(8, size, seed=seed, rank=rank, ranks=ranks)
    order.set_epoch(epoch)
    windows = list(order)
    assert len(windows) == len(order)
    return windows


def test_every_pass_reads_all_windows_in_another_order() -> None:
    first, second = read()[:8], read()[8:]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second
    assert read(seed=1) != read()


def test_epochs_and_ranks_share_one_sequence() -> None:
    assert read(size=8, epoch=0) + read(size=8, epoch=1) == read()
    assert read(size=12, epoch=1)[:4] == read()[12:]  # an epoch may end within a pass
    shared = [read(rank=rank, ranks=2) for rank in range(2)]
    assert [window for pair in zip(*shared, strict=True) for window in pair] == read()
