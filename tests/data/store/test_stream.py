"""The loader: every row once per epoch, the same rows after a restore, for any number of workers and ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trm_core.data.batch import CapsuleBatch
from trm_core.data.order import RowOrder
from trm_core.data.store import CapsuleFile, CapsuleWriter, open_capsules
from trm_core.data.stream import SampleStream, sequential_batches
from trm_core.data.windows import Source, WorkerReader
from trm_core.errors import CheckpointError, ConfigError, DataError, ResourceError

FEW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = 1003  # not divisible by the block of 64


def write(path: Path, n: int, *, offset: int = 0, dtype: Any = "float16", label_rank: Any = 1) -> CapsuleFile:
    """Row i carries i in its sketches, children and labels, so that every tensor tells its row."""
    number = np.arange(n, dtype=np.float32) + offset
    with CapsuleWriter(
        path, num_capsules=2, dim=3, num_children=2, label_rank=label_rank, dtype=dtype, with_mask=True
    ) as writer:
        writer.append(
            "train",
            {
                "sketches": number[:, None, None] * np.ones((2, 3), np.float32),
                "children": number[:, None, None, None] * np.ones((2, 2, 3), np.float32),
                "mask": np.ones((n, 2), bool),
                **({"labels": np.arange(n) + offset} if label_rank else {}),
            },
        )
        writer.close({})
    return open_capsules(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CapsuleFile]]:
    folder = tmp_path_factory.mktemp("streams")
    opened = [
        write(folder / "a.h5", ROWS),
        write(folder / "b.h5", 130, offset=1500),
        write(folder / "c.h5", 7, offset=1900),
    ]
    yield opened
    for file in opened:
        file.close()


def check(batch: CapsuleBatch, n: int) -> list[int]:
    """Labels of a batch, after seeing that all its tensors belong together."""
    assert len(batch) == n
    assert batch.sketches.shape == (n, 2, 3)
    assert batch.sketches.dtype == torch.float32
    assert batch.children is not None
    assert batch.children.shape == (n, 2, 2, 3)
    assert batch.mask is not None
    assert batch.mask.dtype == torch.bool
    assert batch.rows.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.sketches[:, 1, 2].long(), batch.labels)
    assert torch.equal(batch.children[:, 1, 1, 2].long(), batch.labels)
    return batch.labels.tolist()


def stream(files: list[CapsuleFile], **options: Any) -> SampleStream:
    """Windows of two blocks, so that all boundaries are crossed."""
    weights = [1.0, 0.5, 0.25]
    settings: dict[str, Any] = {"seed": 5, "window_bytes": len(files) * 2 * 64 * files[0].layout.bytes_per_row}
    return SampleStream(list(zip(files, weights, strict=False)), **{**settings, **options})


def taken(source: SampleStream, sizes: list[int]) -> list[int]:
    return [label for size in sizes for label in check(source.take(size), size)]


def test_each_epoch_has_each_row_once(files: list[CapsuleFile]) -> None:
    source = stream(files[:1])
    epochs = [taken(source, [100] * 10 + [3]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert source.epoch == 3.0
    # Shuffled across the file, not only within a block: neighbours in the order are far apart in the file.
    assert np.abs(np.diff(epochs[0])).mean() > 30


def test_whole_file_in_one_window_is_well_shuffled(files: list[CapsuleFile]) -> None:
    order = taken(stream(files[:1], window_bytes=1 << 20), [ROWS])
    assert sorted(order) == list(range(ROWS))
    assert abs(np.corrcoef(order, np.arange(ROWS))[0, 1]) < 0.1


@pytest.mark.parametrize("count", [1, 3])
@FEW
@given(data=st.data())
def test_restore_is_exact_and_sizes_do_not_matter(count: int, files: list[CapsuleFile], data: st.DataObject) -> None:
    sizes = st.lists(st.integers(0, 300), max_size=6)
    before, after = data.draw(sizes), data.draw(sizes)
    source = stream(files[:count])
    first = taken(source, before)
    state = json.loads(json.dumps(source.state_dict()))
    expected = taken(source, after)
    other = stream(files[:count])
    taken(other, data.draw(sizes))  # wherever it stands
    other.load_state_dict(state)
    assert taken(other, [sum(after)]) == expected
    assert other.epoch == source.epoch
    assert taken(stream(files[:count]), [sum(before) + sum(after)]) == first + expected


@pytest.mark.parametrize("count", [1, 3])
@FEW
@given(shares=st.lists(st.lists(st.integers(0, 90), min_size=3, max_size=3), min_size=1, max_size=8))
def test_processes_share_one_order_and_one_position(
    count: int, files: list[CapsuleFile], shares: list[list[int]]
) -> None:
    """Whatever each of three takes in each round; and it does not matter how many take it."""
    alone = taken(stream(files[:count]), [sum(map(sum, shares))])
    ranks = [stream(files[:count]) for _ in range(3)]
    together = []
    for share in shares:
        for rank, source in enumerate(ranks):
            batch = source.take(share[rank], sum(share[:rank]), sum(share[rank + 1 :]))
            together += batch.labels.tolist()
    assert together == alone
    assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()
    other = stream(files[:count])
    other.load_state_dict(ranks[2].state_dict())
    assert taken(other, [100]) == taken(stream(files[:count]), [len(alone), 100])[len(alone) :]


def test_weights_decide_the_mixture_and_each_file_is_walked_whole(files: list[CapsuleFile]) -> None:
    labels = np.array(taken(stream(files), [8000]))
    parts = [labels[labels < 1500], labels[(labels >= 1500) & (labels < 1900)], labels[labels >= 1900]]
    shares = np.array([len(part) for part in parts]) / len(labels)
    np.testing.assert_allclose(shares, np.array([4, 2, 1]) / 7, atol=0.02)
    for part, file in zip(parts, files, strict=True):
        rows = file.rows["train"]
        assert len(set(part[:rows])) == rows


@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_the_same_rows(count: int, files: list[CapsuleFile]) -> None:
    plain = stream(files[:count])
    start = taken(plain, [333])
    state = plain.state_dict()
    expected = taken(plain, [64] * 40)
    source = stream(files[:count], num_workers=2)
    assert taken(source, [333]) == start
    assert taken(source, [64] * 40) == expected
    source.load_state_dict(state)  # back, over windows already asked for
    assert taken(source, [64] * 40) == expected
    assert source.state_dict() == plain.state_dict()
    source.close()
    assert multiprocessing.active_children() == []


def test_dead_worker_is_an_error_and_not_a_hang(files: list[CapsuleFile]) -> None:
    source = stream(files[:1], num_workers=1)
    source.take(1)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)  # does not concern it: the trainer decides when to stop
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"a loader process ended \(exit code -9\)"):
        taken(source, [100] * 20)
    source.close()


def test_workers_survive_signals_to_the_group(files: list[CapsuleFile]) -> None:
    source = stream(files[:1], num_workers=1)
    source.take(1)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert len(taken(source, [100] * 20)) == 2000
    source.close()


def test_worker_reports_an_unreadable_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.h5", 300)
    source = stream([file], num_workers=1)
    source.take(1)
    file.path.unlink()
    fresh = stream([file], num_workers=1)
    with pytest.raises(DataError, match="cannot be opened any more"):
        fresh.take(1)
    fresh.close()
    source.close()


def test_a_window_that_could_not_be_read_is_asked_for_again(tmp_path: Path) -> None:
    """Who tries again gets an answer, and does not wait for the one that was given."""
    file = write(tmp_path / "a.h5", 300)
    (tmp_path / "a.h5").unlink()
    reader = WorkerReader([Source(file, "train", RowOrder(file.rows["train"], 64, 2, 0, 0), file.fields)], 1)
    errors: list[DataError] = []

    def try_often() -> None:
        for _ in range(5):
            try:
                reader.get(0, 0)
            except DataError as error:
                errors.append(error)

    trying = threading.Thread(target=try_often, daemon=True)
    trying.start()
    trying.join(60)
    assert len(errors) == 5
    reader.close()
    file.close()


ORPHANS = """
if __name__ == "__main__":
    import multiprocessing, os, sys
    from trm_core.data.order import RowOrder
    from trm_core.data.store import open_capsules
    from trm_core.data.windows import Source, WorkerReader

    file = open_capsules(sys.argv[1])
    reader = WorkerReader([Source(file, "train", RowOrder(file.rows["train"], 64, 2, 0, 0), file.fields)], 2)
    reader.get(0, 0)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_workers_end_with_the_trainer(how: str, files: list[CapsuleFile], tmp_path: Path) -> None:
    """Killed, or gone without close()."""
    (tmp_path / "train.py").write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, str(tmp_path / "train.py"), str(files[0].path), how],
        stdout=subprocess.PIPE,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == (-9 if how == "kill" else 0)
    pids = [int(pid) for pid in result.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a loader process outlives its trainer"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_fields(files: list[CapsuleFile]) -> None:
    batch = stream(files[:1], fields=["labels"]).take(70)
    assert batch.children is None
    assert batch.mask is None
    assert batch.labels.tolist() == taken(stream(files[:1]), [70])  # the order does not depend on the fields
    with pytest.raises(DataError, match="has no field 'parents'"):
        stream(files[:1], fields=["parents"])


def test_nothing_taken_has_the_right_shapes(files: list[CapsuleFile]) -> None:
    source = stream(files[:1])
    assert check(source.take(0), 0) == []
    assert source.epoch == 0


def test_batches_own_their_memory(tmp_path: Path) -> None:
    """A float32 file, whose values need no conversion: changing a batch must not change later ones."""
    file = write(tmp_path / "a.h5", 10, dtype="float32")
    source = stream([file])
    source.take(10).sketches.zero_()
    assert sorted(taken(source, [10])) == list(range(10))
    file.close()


def test_no_labels_are_ignored_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.h5", 10, label_rank=0)
    assert stream([file]).take(3).labels.tolist() == [-100, -100, -100]
    file.close()


def test_to_device(files: list[CapsuleFile]) -> None:
    batch = stream(files[:1]).take(3).to("meta")
    assert batch.sketches.device.type == batch.labels.device.type == "meta"
    assert batch.parents is None


@pytest.mark.parametrize("batch_size", [17, 100, ROWS, 5000])
def test_sequential_batches(batch_size: int, files: list[CapsuleFile]) -> None:
    batches = list(sequential_batches(files[0], "train", batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert [label for batch in batches for label in check(batch, len(batch))] == list(range(ROWS))
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(ROWS))


def test_what_does_not_fit(files: list[CapsuleFile], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no test split"):
        stream(files[:1], split="test")
    with pytest.raises(DataError, match="has no test split"):
        next(sequential_batches(files[0], "test", 5))
    other = write(tmp_path / "a.h5", 10, label_rank=0)
    with pytest.raises(ConfigError, match=r"label_rank is 0, but 1 in .* cannot be mixed"):
        stream([files[0], other])
    other.close()
    state = stream(files[:1]).state_dict()
    with pytest.raises(CheckpointError, match="seed was 5 when it was saved and is 6 now"):
        stream(files[:1], seed=6).load_state_dict(state)
    with pytest.raises(CheckpointError, match="sources was"):
        stream(files[1:2]).load_state_dict(state)
