import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from tasks.base import InputError
from tasks.retrieval import proxy_anchor_loss, semihard_triplet_loss, semihard_triplets
from tasks.retrieval.losses import unit_rows

# Worked examples, float64.
ROWS = [[-1.53, -0.48, -0.98], [-0.81, 1.06, -0.81], [-0.03, 0.88, -0.58], [-0.11, 0.11, 0.06]]
LABELS = [2, 3, 1, 2]
PROXIES = [[-1.23, 0.08, 1.36], [-1.55, 0.86, 0.12], [-0.64, 2.0, 0.76], [-1.2, 0.07, 0.58], [-0.19, 0.68, -0.07]]
EIGHT = [[-0.68, 0.2, -0.46], [0.13, -1.19, -0.58], [-0.2, 0.9, 1.15], [-1.32, -0.79, 0.65], [-1.99, -0.46, -0.1],
         [1.26, 0.69, -0.33], [-0.37, -0.25, 1.52], [-0.43, -0.3, 0.35]]  # fmt: skip
EIGHT_LABELS = [0, 0, 1, 1, 2, 2, 2, 3]


def double(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def random_problem(seed, *, num=16, classes=5, features=7):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, features, generator=generator, dtype=torch.float64).requires_grad_()
    return rows, torch.randint(classes, (num,), generator=generator), generator


@pytest.mark.parametrize(
    ("alpha", "margin", "loss"), [(32, 0.1, 31.15938583), (4, 0.2, 5.32571145), (32, 0.0, 26.892836)]
)
def test_proxy_anchor_gives_the_worked_example(alpha, margin, loss):
    found = proxy_anchor_loss(double(ROWS), torch.tensor(LABELS), double(PROXIES), alpha=alpha, margin=margin)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(loss, rel=1e-8)
    single = proxy_anchor_loss(
        torch.tensor(ROWS), torch.tensor(LABELS), torch.tensor(PROXIES), alpha=alpha, margin=margin
    )
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(loss, rel=1e-4)


def test_proxy_anchor_has_the_gradients_of_the_worked_example_and_none_along_a_proxy():
    rows, proxies = double(ROWS), double(PROXIES)
    proxy_anchor_loss(rows, torch.tensor(LABELS), proxies).backward()
    assert rows.grad[0].tolist() == pytest.approx([2.42501716, -4.83171871, -1.41944007], rel=1e-8)
    assert proxies.grad[0].tolist() == pytest.approx([-0.57711039, 2.18833018, -0.65067073], rel=1e-8)
    assert (proxies * proxies.grad).sum(1).abs().max() < 1e-12


def test_proxy_anchor_of_a_batch_is_not_the_mean_of_its_halves():
    labels = torch.tensor(LABELS)
    halves = [proxy_anchor_loss(double(ROWS)[part], labels[part], double(PROXIES)) for part in (slice(2), slice(2, 4))]
    assert torch.stack(halves).mean().item() == pytest.approx(26.76398225, rel=1e-8)


def test_lengths_of_embeddings_and_proxies_do_not_matter():
    rows, proxies, labels = double(ROWS), double(PROXIES), torch.tensor(LABELS)
    longer = torch.tensor([[3.0], [0.1], [7.0], [2.0]])
    assert proxy_anchor_loss(rows * longer, labels, 5 * proxies).item() == pytest.approx(31.15938583, rel=1e-8)
    eight, of_eight = double(EIGHT), torch.tensor(EIGHT_LABELS)
    assert torch.allclose(semihard_triplet_loss(9 * eight, of_eight), semihard_triplet_loss(eight, of_eight))


@pytest.mark.parametrize("seed", range(6))
def test_proxy_anchor_agrees_with_the_library(seed):
    rows, labels, generator = random_problem(seed)
    proxies = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    alpha, margin = 4.0 + 8 * seed, 0.05 * seed
    theirs = ProxyAnchorLoss(num_classes=5, embedding_size=7, margin=margin, alpha=alpha).double()
    theirs.proxies.data.copy_(proxies)
    mine = proxies.clone().requires_grad_()
    loss, other = proxy_anchor_loss(rows, labels, mine, alpha=alpha, margin=margin), theirs(rows, labels)
    assert loss.item() == pytest.approx(other.item(), rel=1e-12)
    for one, two in zip(
        torch.autograd.grad(loss, [rows, mine]), torch.autograd.grad(other, [rows, theirs.proxies]), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-12)


def test_half_precision_and_extreme_sharpness_stay_finite():
    rows, proxies = torch.tensor(ROWS).half(), torch.tensor(PROXIES).half()
    loss = proxy_anchor_loss(rows, torch.tensor(LABELS), proxies, alpha=1000)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = proxy_anchor_loss(torch.tensor(ROWS), torch.tensor(LABELS), torch.tensor(PROXIES))
    assert inside.item() == pytest.approx(31.15938583, rel=1e-5)


@pytest.mark.parametrize(
    ("margin", "mined", "loss"), [(0.1, 5, 0.04565105), (0.2, 9, 0.10367937), (0.5, 17, 0.30585237)]
)
def test_semihard_triplets_give_the_worked_example(margin, mined, loss):
    rows, labels = double(EIGHT), torch.tensor(EIGHT_LABELS)
    assert len(semihard_triplets(rows, labels, margin=margin)[0]) == mined
    found = semihard_triplet_loss(rows, labels, margin=margin)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(loss, rel=1e-6)


def test_the_semihard_triplets_of_the_worked_example_are_these():
    found = torch.stack(semihard_triplets(double(EIGHT), torch.tensor(EIGHT_LABELS)), 1).tolist()
    assert found == [[0, 1, 2], [2, 3, 5], [4, 6, 1], [5, 4, 3], [5, 4, 7]]


@pytest.mark.parametrize("seed", range(6))
def test_semihard_triplets_and_their_loss_agree_with_the_library(seed):
    rows, labels, _ = random_problem(seed)
    margin = 0.1 + 0.05 * seed
    mined = TripletMarginMiner(margin=margin, type_of_triplets="semihard")(rows, labels)
    ours = semihard_triplets(rows, labels, margin=margin)
    assert {tuple(t) for t in torch.stack(ours, 1).tolist()} == {tuple(t) for t in torch.stack(mined, 1).tolist()}
    theirs = TripletMarginLoss(margin=margin)(rows, labels, mined)
    loss = semihard_triplet_loss(rows, labels, margin=margin)
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-14)
    (one,), (two,) = torch.autograd.grad(loss, [rows]), torch.autograd.grad(theirs, [rows])
    assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize(
    "labels", [[0] * 8, list(range(8)), [0, 0, 1, 2, 3, 4, 5, 6]], ids=["one class", "no pair", "one pair"]
)
def test_batches_without_triplets_give_zero_and_zero_gradients(labels):
    # The pair of the last case lies together, and everything else far away.
    rows = torch.eye(8, dtype=torch.float64)
    rows[1] = rows[0] + 0.01 * rows[2]
    rows.requires_grad_()
    loss = semihard_triplet_loss(rows, torch.tensor(labels))
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(rows.grad, torch.zeros_like(rows))


def test_batches_of_one_class_or_one_picture_have_a_proxy_loss_with_gradients():
    for labels in ([1, 1, 1, 1], [3, 1, 0, 4]):
        rows, proxies = double(ROWS), double(PROXIES)
        proxy_anchor_loss(rows, torch.tensor(labels), proxies).backward()
        assert torch.isfinite(rows.grad).all()
        assert (proxies.grad.norm(dim=1) > 0).all()
    assert torch.isfinite(proxy_anchor_loss(double(ROWS)[:1], torch.tensor([0]), double(PROXIES)[:1]))


def test_copies_of_a_picture_have_finite_gradients():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.05], [1.0, 0.05]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    assert len(semihard_triplets(rows, labels)[0]) == 8
    semihard_triplet_loss(rows, labels).backward()
    assert torch.isfinite(rows.grad).all()
    assert rows.grad.abs().sum() > 0


def test_a_zero_row_stays_zero():
    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.tensor([2, 3, 1])}, r"labels are \(3,\)"),
        ({"labels": torch.tensor([2, 3, 1, 5])}, "labels span 1..5; 5 proxies"),
        ({"labels": torch.tensor([2, 3, 1, -1])}, "labels span -1..3"),
        ({"proxies": torch.zeros(5, 2)}, r"proxies are \(5, 2\)"),
        ({"embeddings": torch.zeros(0, 3), "labels": torch.zeros(0)}, "at least one row"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"margin": -0.1}, "margin is -0.1"),
    ],
)
def test_input_that_does_not_fit_is_named(change, words):
    given = {
        "embeddings": torch.tensor(ROWS),
        "labels": torch.tensor(LABELS),
        "proxies": torch.tensor(PROXIES),
        **change,
    }
    with pytest.raises(InputError, match=words):
        proxy_anchor_loss(given.pop("embeddings"), given.pop("labels"), given.pop("proxies"), **given)
