"""Which paths are on a network file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_sgdinf.record.network import network_file_system

MOUNTS = r"""
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/me/scratch xfs rw 0 0
//nas/share /mnt/my\040disk cifs rw 0 0
tmpfs /mnt/my\040disk/tmp tmpfs rw 0 0
sshfs#me@there:/ /remote fuse.sshfs rw 0 0
/dev/sdc1 /usb fuse.ntfs-3g rw 0 0
bucket /data fuse.gcsfuse rw 0 0
server:/old /twice nfs rw 0 0
/dev/sdd1 /twice ext4 rw 0 0
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/runs/a.tlog", ""),
        ("/home/me/runs/a.tlog", "nfs4 at /home"),
        ("/home", "nfs4 at /home"),
        ("/homes/a.tlog", ""),
        ("/home/me/scratch/a.tlog", ""),
        ("/mnt/my disk/a.tlog", "cifs at /mnt/my disk"),
        ("/mnt/my disk/tmp/a.tlog", ""),
        ("/remote/a.tlog", "fuse.sshfs at /remote"),
        ("/usb/a.tlog", ""),
        ("/data/a.tlog", "fuse.gcsfuse at /data"),
        ("/twice/a.tlog", ""),
    ],
)
def test_the_mount_that_holds_the_path_decides(path: str, kind: str) -> None:
    assert network_file_system(path, MOUNTS) == kind


def test_links_are_followed(tmp_path: Path) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    mounts = f"server:/x {there} nfs rw 0 0\n/dev/sda1 / ext4 rw 0 0\n"
    assert network_file_system(link / "a.tlog", mounts) == f"nfs at {there}"
    assert network_file_system(tmp_path / "a.tlog", mounts) == ""


def test_this_machine_says_something_or_nothing(tmp_path: Path) -> None:
    assert isinstance(network_file_system(tmp_path), str)
