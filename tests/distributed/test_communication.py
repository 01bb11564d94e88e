"""Sums and broadcasts between ranks, on matrices of small integers, so that sums are exact in any order."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gorp.core.distributed import broadcast_from_owner, num_ranks, sum_over_ranks
from gorp.core.sketched import FrameInputs, gradient_rows, sketched_frames
from tests.matrices import basis


def integers(*shape, seed):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def a_sum_is_the_same_on_every_rank_and_leaves_its_argument(rank, ranks):
    x = integers(5, 3, seed=rank).mT  # column-major
    before = x.clone()
    total = sum_over_ranks(x)
    assert torch.equal(total, sum(integers(5, 3, seed=r) for r in range(ranks)).mT)
    assert torch.equal(x, before)


def a_column_major_matrix_arrives_unscrambled(rank, ranks):
    """A broadcast sends memory as it lies; SVD and QR give columns first, an empty receiver has rows first."""
    sent = torch.linalg.qr(torch.randn(12, 5, generator=torch.Generator().manual_seed(0))).Q
    assert not sent.is_contiguous()
    mine = sent if rank == 0 else torch.full((12, 5), float(rank))
    received = broadcast_from_owner(mine)
    assert torch.equal(received, sent)
    assert rank == 0 or (mine == rank).all()


def every_rank_knows_how_many_there_are(rank, ranks):
    assert num_ranks() == ranks


def a_frame_is_that_of_all_ranks_rows(rank, ranks):
    """17 rows do not divide evenly; Σ is that of the sum over ranks, not yet of the mean."""
    torch.manual_seed(0)
    x, d, away_from = torch.randn(17, 9).double(), torch.randn(17, 7).double(), basis(9, 2)
    part = slice(rank * 17 // ranks, (rank + 1) * 17 // ranks)
    settings = {"rank": 3, "oversampling": 8, "power_steps": 0}
    mine = [(x[part], d[part])]
    (rows,) = gradient_rows([mine], count=11, generators=[torch.Generator().manual_seed(0)])
    psi = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 11**0.5
    torch.testing.assert_close(rows, psi.mT @ d.mT @ x / ranks)
    seen = FrameInputs(pairs=mine, basis=away_from, rows=rows)
    (frame,) = sketched_frames([seen], **settings)
    copies = [torch.empty_like(frame.right) for _ in range(ranks)]
    dist.all_gather(copies, frame.right)
    assert all(torch.equal(copy, copies[0]) for copy in copies)
    left, sigma, right_t = torch.linalg.svd(d.mT @ x @ (torch.eye(9).double() - away_from @ away_from.mT))
    torch.testing.assert_close(frame.right @ frame.right.mT, right_t[:3].mT @ right_t[:3])
    torch.testing.assert_close(frame.left @ frame.left.mT, left[:, :3] @ left[:, :3].mT)
    torch.testing.assert_close(frame.sigma, sigma[:3], rtol=1e-9, atol=1e-9)


def _worker(rank, ranks, rendezvous, check):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    try:
        check(rank, ranks)
    finally:
        dist.destroy_process_group()


CHECKS = [
    a_sum_is_the_same_on_every_rank_and_leaves_its_argument,
    a_column_major_matrix_arrives_unscrambled,
    every_rank_knows_how_many_there_are,
    a_frame_is_that_of_all_ranks_rows,
]


def all_of_them(rank, ranks):
    for check in CHECKS:
        check(rank, ranks)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_on_gloo(ranks, tmp_path):
    mp.spawn(_worker, (ranks, tmp_path / "rendezvous", all_of_them), nprocs=ranks)


def test_alone_nothing_is_sent_and_nothing_copied():
    x = torch.randn(4, 3)
    assert sum_over_ranks(x) is x and broadcast_from_owner(x) is x
    assert num_ranks() == 1
