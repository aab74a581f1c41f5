"""Tell if a path is on a file system that is reached over a network.

There HDF5's guarantees end: readers of a growing file, and a writer that is killed, need writes to arrive in the order
in which they were made, and a lock needs to be seen by all. Neither is sure over a network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs"),
    *("glusterfs", "ocfs2", "gfs2", "orangefs", "pvfs2", "wekafs", "panfs", "davfs", "davfs2", "sshfs"),
}
_LOCAL_FUSE = {"fuseblk", "fuse.ntfs-3g", "fuse.ext2", "fuse.lxcfs", "fuse.overlayfs", "fuse.fuse-overlayfs"}


def network_file_system(path: str | os.PathLike[str], mounts: str | None = None) -> str:
    """Return kind and place of the network file system that a path is on, as ``"nfs4 at /home"``; empty if it is on
    none, or this system does not say.

    Args:
        path: Need not exist.
        mounts: As ``/proc/mounts`` has it, which is read if this is ``None``.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    place = Path(path).resolve()
    best, kind = Path(), ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = Path(_unescaped(fields[1]))
        # Of two mounts at one place the later hides the earlier.
        if (mount == place or mount in place.parents) and len(mount.parts) >= len(best.parts):
            best, kind = mount, fields[2]
    over_network = kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
    return f"{kind} at {best}" if over_network else ""


def _unescaped(field: str) -> str:
    r"""Return a field without escapes: ``/my\040disk`` -> ``/my disk``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
