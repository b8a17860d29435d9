from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from vmferry_lab.keys import Keys
from vmferry_lab.layout import HOSTS
from vmferry_lab.seed import write_seed


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    for name in ("id_ed25519", "hosta_ed25519", "hostb_ed25519"):
        (tmp_path / name).write_text(f"private {name}\n")
        (tmp_path / f"{name}.pub").write_text(f"public {name}\n")
    (tmp_path / "known_hosts").write_text("known\n")
    return Keys(tmp_path)


def _seed(tmp_path: Path, keys: Keys) -> tarfile.TarFile:
    target = tmp_path / "seed"
    places = list(HOSTS)
    write_seed(target, HOSTS[1], places, keys)
    return tarfile.open(target)


def _read(tar: tarfile.TarFile, name: str) -> str:
    file = tar.extractfile(name)
    assert file is not None
    with file:
        return file.read().decode()


def test_a_host_gets_its_own_name_address_and_key(tmp_path: Path, keys: Keys) -> None:
    with _seed(tmp_path, keys) as tar:
        assert _read(tar, "etc/hostname") == "hostb\n"
        assert "Address=10.83.0.12/24" in _read(tar, "etc/systemd/network/30-xenbr0.network")
        assert _read(tar, "etc/ssh/ssh_host_ed25519_key") == "private hostb_ed25519\n"


def test_hosts_know_each_other_by_name(tmp_path: Path, keys: Keys) -> None:
    with _seed(tmp_path, keys) as tar:
        hosts = _read(tar, "etc/hosts").splitlines()
        assert {"10.83.0.11 hosta", "10.83.0.12 hostb"} <= set(hosts)
        assert _read(tar, "root/.ssh/id_ed25519") == "private id_ed25519\n"
        assert _read(tar, "root/.ssh/authorized_keys") == "public id_ed25519\n"


def test_private_keys_are_readable_by_root_alone(tmp_path: Path, keys: Keys) -> None:
    with _seed(tmp_path, keys) as tar:
        for name in ("root/.ssh/id_ed25519", "etc/ssh/ssh_host_ed25519_key"):
            assert tar.getmember(name).mode == 0o600


def test_a_host_is_up_soon_since_its_seed_is_small(tmp_path: Path, keys: Keys) -> None:
    _seed(tmp_path, keys).close()
    assert (tmp_path / "seed").stat().st_size < 65536


def test_the_seed_fills_whole_sectors_of_a_disk(tmp_path: Path, keys: Keys) -> None:
    _seed(tmp_path, keys).close()
    assert (tmp_path / "seed").stat().st_size % 512 == 0
