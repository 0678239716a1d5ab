"""What a container may use, from trees of files as control groups of both versions lay them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.errors import DeployError
from engines.machine.limits import available_memory, cores, quota, total_memory
from engines.machine.share import VARIABLE, MachineShare

GB = 10**9


def _tree(root: Path, **files: object) -> Path:
    for name, content in {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def _new(root: Path, path: str = "/", **files: object) -> Path:
    """Version 2."""
    here = f"sys/fs/cgroup{path}".rstrip("/")
    return _tree(root, **{"proc/self/cgroup": f"0::{path}", **{f"{here}/{k}": v for k, v in files.items()}})


def _old(root: Path, path: str, **files: object) -> Path:
    """Version 1; beside it the empty hierarchy of version 2, as systemd mounts it."""
    lines = f"4:memory:{path}\n1:cpu,cpuacct:{path}\n0::/"
    places = {"memory": "sys/fs/cgroup/memory", "cpu": "sys/fs/cgroup/cpu,cpuacct"}
    return _tree(root, **{
        "proc/self/cgroup": lines,
        **{f"{places[name.split('.')[0]]}{path}/{name}": value for name, value in files.items()},
    })  # fmt: skip


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    for root in (
        _tree(tmp_path / "none"),
        _new(tmp_path / "new", **{"memory.max": "max", "cpu.max": "max 100000"}),
        _old(tmp_path / "old", "", **{
            "memory.limit_in_bytes": 9223372036854771712, "cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000,
        }),
    ):  # fmt: skip
        assert (cores(root), total_memory(root), available_memory(root)) == (8, 16_384_000_000, 9_216_000_000)


def test_a_container_of_version_2(tmp_path: Path) -> None:
    """As `docker run --memory 4g --cpus 2.5`: of its own namespace, so that its group is the top."""
    root = _new(tmp_path, **{
        "memory.max": 4 * GB, "memory.current": 3 * GB, "memory.stat": f"anon 1\ninactive_file {GB}\nactive_file 5",
        "cpu.max": "250000 100000",
    })  # fmt: skip
    assert (cores(root), total_memory(root), available_memory(root)) == (3, 4 * GB, 2 * GB)
    assert quota(root) == 3


def test_a_container_of_version_1(tmp_path: Path) -> None:
    root = _old(tmp_path, "/docker/12ab", **{
        "memory.limit_in_bytes": 2 * GB, "memory.usage_in_bytes": GB,
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {GB // 2}",
        "cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000,
    })  # fmt: skip
    assert cores(root) == 1
    assert total_memory(root) == 2 * GB
    assert available_memory(root) == GB + GB // 2  # of the group and those inside it, as usage is


def test_a_container_sees_its_limits_at_the_top_although_its_path_is_the_hosts(tmp_path: Path) -> None:
    root = _new(tmp_path, "/system.slice/docker-12ab.scope")
    for name, value in {"memory.max": GB, "memory.current": 0, "cpu.max": "100000 100000"}.items():
        (root / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(f"{value}\n")
    assert (cores(root), total_memory(root)) == (1, GB)


def test_the_least_of_the_groups_that_it_is_in_counts(tmp_path: Path) -> None:
    root = _new(tmp_path, "/user.slice/job", **{"memory.max": 8 * GB, "memory.current": 0, "cpu.max": "max 100000"})
    (root / "sys/fs/cgroup/user.slice/memory.max").write_text(f"{3 * GB}\n")
    (root / "sys/fs/cgroup/user.slice/memory.current").write_text(f"{4 * GB}\n")
    (root / "sys/fs/cgroup/user.slice/cpu.max").write_text("400000 100000\n")
    assert (cores(root), total_memory(root), available_memory(root)) == (4, 3 * GB, 0)


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "::::", "0::/../../etc", "4:memory"])
def test_files_that_say_nothing_bound_nothing(tmp_path: Path, text: str) -> None:
    root = _tree(
        tmp_path, **{"proc/self/cgroup": text, "sys/fs/cgroup/cpu.max": "0 0", "sys/fs/cgroup/memory.max": "?"}
    )
    assert (cores(root), total_memory(root)) == (8, 16_384_000_000)


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert (cores(tmp_path), total_memory(tmp_path), available_memory(tmp_path)) == (8, None, None)
    assert quota(tmp_path) is None


def test_processes_that_share_a_machine_have_no_more_than_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _new(tmp_path, **{"memory.max": 6 * GB, "memory.current": 0, "cpu.max": "700000 100000"})
    share = MachineShare.of(cores(root), 3)
    monkeypatch.setenv(*share.environment().popitem())
    assert MachineShare.own() == share
    assert (cores(root), quota(root), total_memory(root), available_memory(root)) == (2, 2, 2 * GB, 2 * GB)
    assert MachineShare.of(cores(root), 2) == MachineShare(1, 6)  # of one that shares already
    assert MachineShare.of(cores(root), 5).cores == 1
    monkeypatch.setenv(*MachineShare(64, 1).environment().popitem())
    assert (cores(root), total_memory(root)) == (7, 6 * GB)  # a share of more than there is


@pytest.mark.parametrize("text", ["", "4", "0/1", "4/0", "-4/2", "4/2/1", "a/b"])
def test_a_share_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(DeployError, match=r"EDGESEG_SHARE: got '.*', expected cores/processes, such as 4/2"):
        cores()
