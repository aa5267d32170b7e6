"""The tables of the Triton kernels on the CPU, with captures and streams of CUDA emulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adamp.kernels import triton_tables
from adamp.kernels.options import Unmoved
from adamp.kernels.triton_tables import MAX_SETS, _cache, locate


def tensors(count: int = 3) -> list[Tensor]:
    return [torch.zeros(4, 16 + 16 * i) for i in range(count)]


def step(params: list[Tensor], grads: list[Tensor], **options: Any) -> tuple[triton_tables.Tables, Tensor]:
    return locate(params, (params, grads, None, None, None, None), examined="rows", **options)


class Graph(TorchDispatchMode):
    """Records copies into tables instead of making them, as a capture does; `replay` makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.monkeypatch = monkeypatch

    def __enter__(self) -> Graph:
        self.monkeypatch.setattr(triton_tables, "_is_capturing", lambda device: True)
        return super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.monkeypatch.undo()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.copy_.default and len(args) > 2 and args[2]:  # not blocking: to the device
            self.copies.append((args[0], args[1]))
            return args[0]
        return func(*args, **(kwargs or {}))

    def replay(self) -> None:
        for target, source in self.copies:
            target.copy_(source)


def test_each_capture_fills_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    params, before, moved = (tensors() for _ in range(3))
    tables, _ = step(params, before, capturable=True)
    assert tables.spare is not None
    tables.spare[1].fill_(-1)  # memory that nothing has written to
    graphs, pointers = [], []
    for _ in range(2):
        with Graph(monkeypatch) as graph:
            pointers.append(step(params, moved, capturable=True)[1])
        graphs.append(graph)
    graphs[1].replay()  # the first one has never run
    assert pointers[1][:, 1].tolist() == [g.data_ptr() for g in moved]
    assert (pointers[0] == -1).all()
    step(params, before, capturable=True)
    assert pointers[1][:, 1].tolist() == [g.data_ptr() for g in moved], "an eager step replaces no captured table"


def test_captures_with_the_addresses_of_the_last_step_need_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    params, grads = tensors(), tensors()
    _, pointers = step(params, grads)
    with Graph(monkeypatch) as graph:
        assert step(params, grads)[1] is pointers
    assert not graph.copies


def test_without_capturable_there_is_no_memory_for_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    params, before, moved = tensors(), tensors(), tensors()  # all alive, so that none takes another's address
    tables, _ = step(params, before)
    assert tables.spare is None
    with Graph(monkeypatch), pytest.raises(RuntimeError, match="needs a step with capturable=True before it"):
        step(params, moved)


def test_tables_of_captures_end_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    params, grads = tensors(), tensors()
    step(params, grads)
    with Graph(monkeypatch):
        step(params, grads)
    count = len(_cache)
    del params
    assert len(_cache) == count - 1


def test_the_last_sets_of_parameters_with_gradients_keep_their_tables() -> None:
    params, grads = tensors(MAX_SETS + 2), tensors(MAX_SETS + 2)

    def of_set(last: int) -> triton_tables.Tables:
        return step(params[:last], grads[:last])[0]

    first = of_set(2)
    assert of_set(3) is not first and of_set(2) is first
    for last in range(3, MAX_SETS + 3):
        of_set(last)
    assert len(_cache[params[0]]) == MAX_SETS
    assert of_set(2) is not first


def test_a_step_on_another_stream_keeps_the_tables_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, str]] = []
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: recorded.append((self.data_ptr(), stream)))
    streams = iter(["first", "first", "second", "second"])
    monkeypatch.setattr(triton_tables, "_current_stream", lambda device: next(streams))
    params, grads = tensors(), tensors()
    step(params, grads)  # asks twice: at the start and as tables are built
    assert not recorded
    tables, pointers = step(params, grads)
    used = [tables.layout, tables.items, tables.sums, tables.scalars, pointers]
    assert recorded == [(x.data_ptr(), "second") for x in used]


def test_gradients_that_have_moved_alone_give_the_table_that_is_built_anew() -> None:
    params, grads = tensors(), tensors()
    unmoved = Unmoved()
    tables, pointers = step(params, grads, unmoved=unmoved)
    before = pointers.clone()
    for moved in (tensors(), [torch.zeros(1000)[1 : 1 + p.numel()].view(p.shape) for p in params]):
        unmoved.moved_grads = [g.data_ptr() for g in moved]
        assert step(params, moved, unmoved=unmoved)[0] is tables
        anew, aligned = triton_tables._pointer_table(tables.addresses, tables.row_lengths)
        assert tables.addresses[3:6] == [g.data_ptr() for g in moved]
        assert torch.equal(tables.pointers, anew) and torch.equal(tables.aligned, aligned)
        assert step(params, moved, unmoved=unmoved)[1] is tables.pointers
    assert tables.pointers[:, -1].tolist() == [0, 0, 0] != before[:, -1].tolist()
    assert torch.equal(pointers, before), "a step that still runs may read it"


def test_items_cover_each_entry_once() -> None:
    shapes = [(70, 9), (3, 20_000), (5000,), (), (0, 3), (300_000, 3), (7, 600)]
    params = [torch.empty(shape, device="meta") for shape in shapes]
    tables = triton_tables._build_tables(
        [p.shape for p in params], examined="rows", real=torch.float32, device=torch.device("cpu")
    )
    covered = [0] * len(shapes)
    for tensor, index in tables.items.tolist():
        rows, length, _, parts, width, _, _, item_rows, _ = tables.layout[tensor].tolist()
        first, column = index // parts * item_rows, index % parts * width
        covered[tensor] += min(item_rows, rows - first) * min(width, length - column)
    assert covered == [p.numel() for p in params]
    assert tables.items[: tables.num_examined, 0].unique().tolist() == [0, 1, 5, 6]
    assert len(tables.items) == tables.num_items < 3000
