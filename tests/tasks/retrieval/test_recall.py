import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from tasks.base import InputError
from tasks.retrieval import recall, recall_at_k

E = [[1.43, 0.86, 0.77], [0.47, 0.55, 0.45], [0.2, 0.53, -1.01], [0.36, 3.59, -3.81], [0.54, -0.1, 0.22],
     [1.1, -1.91, 3.11], [-2.59, -3.52, -3.87], [-0.43, -0.55, -0.27]]  # fmt: skip
Q = [[-2.45, -1.68, -4.96], [0.93, -1.18, 0.69], [0.71, -0.45, 0.85], [1.68, 0.75, -0.69], [-0.78, -1.12, -1.43]]
G = [[-1.38, -1.86, -0.37], [-2.03, -3.43, 0.38], [0.58, 0.94, 5.62], [-1.97, -0.14, 1.93], [0.9, -0.96, 1.53],
     [0.52, -1.0, -0.87], [1.85, 0.79, 0.25], [5.06, -4.4, -1.34], [0.63, 1.58, -1.37]]  # fmt: skip


def by_hand(queries, labels, gallery=None, gallery_labels=None, *, ks, strict=True):
    """Count one query at a time; rows must be of length 1 and their products exact."""
    hits = dict.fromkeys(ks, 0)
    for i, query in enumerate(queries):
        scores = [(float(row @ query), gallery_labels[j] if gallery is not None else labels[j]) for j, row in
                  enumerate(queries if gallery is None else gallery) if gallery is not None or j != i]  # fmt: skip
        own = [s for s, label in scores if label == labels[i]]
        if not own:
            continue
        ahead = sum((s >= max(own)) if strict else (s > max(own)) for s, label in scores if label != labels[i])
        for k in ks:
            hits[k] += ahead < k
    return {k: count / len(queries) for k, count in hits.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recall_gives_the_worked_examples(dtype):
    found = recall_at_k(torch.tensor(E, dtype=dtype), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), ks=(1, 2, 4))
    assert found == {1: 0.875, 2: 1.0, 4: 1.0}
    labels = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 4])
    found = recall_at_k(
        torch.tensor(Q, dtype=dtype), labels[0], torch.tensor(G, dtype=dtype), labels[1], ks=(1, 2, 3, 5)
    )
    assert found == {1: 0.8, 2: 0.8, 3: 0.8, 5: 1.0}
    assert list(recall_at_k(torch.tensor(E), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))) == [1, 2, 4, 8]


def test_ties_count_against_the_query_and_a_query_never_finds_itself():
    copies = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert recall_at_k(copies, torch.tensor([0, 1, 0, 1]), ks=(1,)) == {1: 0}
    collapsed, labels = torch.tensor([[1.0, 0]] * 6), torch.tensor([0, 0, 1, 1, 2, 2])
    assert recall_at_k(collapsed, labels, ks=(1, 4, 5)) == {1: 0, 4: 0, 5: 1}
    assert recall_at_k(collapsed, labels, ks=(1,), ties="optimistic") == {1: 1}
    query, gallery = torch.tensor([[1.0, 0]]), torch.tensor([[0.8, 0.6], [0.8, -0.6]])
    both = torch.tensor([0]), torch.tensor([1, 0])
    assert recall_at_k(query, both[0], gallery, both[1], ks=(1, 2)) == {1: 0, 2: 1}
    assert recall_at_k(query, both[0], gallery, both[1], ks=(1,), ties="optimistic") == {1: 1}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6), st.integers(1, 3), st.booleans(),
       st.sampled_from([1, 7, 1024]))  # fmt: skip
def test_recall_equals_a_count_by_hand_where_every_second_pair_ties(seed, num, classes, features, strict, side):
    generator = np.random.default_rng(seed)
    # Rows +-e_i and (+-0.6, +-0.8): of length 1, with a handful of different cosines.
    axes = np.concatenate([np.eye(4), -np.eye(4), [[0.6, 0.8, 0, 0], [0.6, -0.8, 0, 0], [0.8, 0.6, 0, 0]]])
    rows = torch.from_numpy(axes[generator.integers(len(axes), size=num) % (4 * features)])
    labels = torch.from_numpy(generator.integers(classes, size=num))
    ties = "strict" if strict else "optimistic"
    half = num // 2
    parts = (rows[:half], labels[:half], rows[half:], labels[half:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "SIDE", side)
        assert recall_at_k(rows, labels, ks=(1, 3), ties=ties) == by_hand(rows, labels, ks=(1, 3), strict=strict)
        assert recall_at_k(*parts, ks=(2,), ties=ties) == by_hand(*parts, ks=(2,), strict=strict)


@pytest.mark.parametrize(("side", "block_bytes"), [(1, 1), (64, 5000), (150, 2**26)])
def test_the_size_of_blocks_changes_nothing(side, block_bytes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(200, 8, generator=generator), torch.randint(40, (200,), generator=generator)
    whole = recall_at_k(rows, labels)
    monkeypatch.setattr(recall, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(recall, "SIDE", side)
    assert recall_at_k(rows, labels) == whole
    half = recall_at_k(rows[:70], labels[:70], rows[70:], labels[70:])
    monkeypatch.undo()
    assert recall_at_k(rows[:70], labels[:70], rows[70:], labels[70:]) == half


def test_copies_tie_exactly_wherever_they_stand_and_whatever_their_scale():
    # Each row of class 0 has its nearest own example doubled in another class: never a hit at 1, always at 2.
    generator = torch.Generator().manual_seed(1)
    for num, features in ((37, 129), (101, 512)):
        rows = torch.randn(num, features, generator=generator)
        twin = rows + 0.1 * torch.randn(num, features, generator=generator)
        order = torch.randperm(2 * num, generator=generator)
        gallery = torch.cat([twin, 4 * twin])[order]  # a power of two scales without rounding
        labels = torch.cat([torch.arange(num), torch.full((num,), -1)])[order]
        found = recall_at_k(rows, torch.arange(num), gallery, labels, ks=(1, 2))
        assert found == {1: 0, 2: 1}


def test_close_calls_are_decided_in_double_precision_one_by_one_and_in_bulk(monkeypatch):
    # Cosines that differ by 1e-10, far below float32's rounding but not float64's.
    generator = torch.Generator().manual_seed(2)
    near = 1 - 1e-10 * torch.randperm(120, generator=generator).double()
    rows = torch.stack([near, (1 - near**2).sqrt()], 1)
    labels = torch.arange(120) % 30
    query, asked = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([7])
    rank = int((near > near[labels == 7].max()).sum())
    found = recall_at_k(query, asked, rows, labels, ks=(rank, rank + 1) if rank else (1,))
    assert found == ({rank: 0, rank + 1: 1} if rank else {1: 1})
    # In float32 the rows are what they are after rounding; single sums and the product in float64 agree.
    single = rows.float()
    one = recall_at_k(query.float(), asked, single, labels, ks=(1, 50))
    monkeypatch.setattr(recall, "MANY", 10**9)
    assert recall_at_k(query.float(), asked, single, labels, ks=(1, 50)) == one


def test_recall_at_1_agrees_with_the_library():
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(300, 16, generator=generator))
    labels = torch.arange(300) % 25
    pytest.importorskip("faiss", reason="the library's search needs it")
    theirs = AccuracyCalculator(include=("precision_at_1",), k=1).get_accuracy(rows, labels)
    assert recall_at_k(rows, labels, ks=(1,))[1] == pytest.approx(theirs["precision_at_1"])


def test_a_query_without_any_example_of_its_class_misses():
    rows, labels = torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]), torch.tensor([0, 0, 1])
    assert recall_at_k(rows, labels, ks=(1, 100)) == {1: 2 / 3, 100: 2 / 3}


def test_inputs_are_not_changed_and_the_answer_needs_no_gradient():
    rows = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = rows.detach().clone()
    recall_at_k(rows, torch.arange(10) % 3)
    assert torch.equal(rows, before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r, n: recall_at_k(r, n, ks=()), "ks is"),
        (lambda r, n: recall_at_k(r, n, ks=(1, 0)), "ks is"),
        (lambda r, n: recall_at_k(r, n[:2]), r"labels are \(2,\)"),
        (lambda r, n: recall_at_k(r, n, r), "give both or neither"),
        (lambda r, n: recall_at_k(r, n, r[:, :1], n), "2 features and the gallery 1"),
        (
            lambda r, n: recall_at_k(r * torch.tensor([[1.0], [float("nan")], [1]]), n),
            "1 of 3 embeddings are not finite",
        ),
        (lambda r, n: recall_at_k(r[:0], n[:0]), "at least one row"),
        (lambda r, n: recall_at_k(r, n, ties="lucky"), "ties is 'lucky'"),
    ],
)
def test_what_cannot_be_searched_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([0, 0, 1]))
