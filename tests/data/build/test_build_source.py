"""`data.source`: built once into the cache, found again, rebuilt when damaged, safe with several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_sources import random_table

from trm_core.config.schema import BuildConfig, DataConfig
from trm_core.data.source import cache_folder, ensure_built
from trm_core.data.store.reader import open_capsules
from trm_core.errors import ConfigError, DataError


def test_built_once_and_found_again(tmp_path: Path) -> None:
    data = DataConfig(source=str(random_table(tmp_path / "t.csv")), cache_dir=str(tmp_path / "cache"))
    path = ensure_built(data)
    written = path.stat().st_mtime_ns
    said: list[str] = []
    assert ensure_built(data, log=said.append) == path
    assert path.stat().st_mtime_ns == written
    assert said == [f"using {path}, built earlier from {data.source}"]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_another_setting_or_content_is_another_file_but_workers_are_not(tmp_path: Path) -> None:
    source = random_table(tmp_path / "t.csv")
    cache = str(tmp_path / "cache")

    def built(**settings: int) -> Path:
        return ensure_built(DataConfig(source=str(source), cache_dir=cache, build=BuildConfig(**settings)))

    first = built()
    assert built(workers=1) == first
    assert built(seed=1) != first
    random_table(source, seed=9)
    assert built() != first


def test_a_damaged_file_is_built_again(tmp_path: Path) -> None:
    data = DataConfig(source=str(random_table(tmp_path / "t.csv")), cache_dir=str(tmp_path / "cache"))
    path = ensure_built(data)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    said: list[str] = []
    assert ensure_built(data, log=said.append) == path
    assert "building it again" in said[0]
    with open_capsules(path) as file:
        assert file.rows["train"] > 0


def test_processes_that_ask_at_once_get_the_same_file(tmp_path: Path) -> None:
    source = random_table(tmp_path / "t.csv", 3000)
    code = (
        "import sys; from trm_core.config.schema import DataConfig; from trm_core.data.source import ensure_built;"
        "print(ensure_built(DataConfig(source=sys.argv[1], cache_dir=sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    paths = {out.strip() for out, _ in results}
    assert len(paths) == 1
    assert [str(file) for file in (tmp_path / "cache").iterdir()] == list(paths)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRM_CACHE", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path
    assert cache_folder(DataConfig(cache_dir="~/x")) == Path(os.path.expanduser("~/x"))
    monkeypatch.delenv("TRM_CACHE")
    assert cache_folder(DataConfig()) == Path(os.path.expanduser("~/.cache/trm"))


def test_no_source_or_none_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source is not set"):
        ensure_built(DataConfig())
    with pytest.raises(DataError, match=r"nothing.csv: no such file"):
        ensure_built(DataConfig(source="nothing.csv", cache_dir=str(tmp_path)))
