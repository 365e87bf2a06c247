"""What file managers, network disks, notebooks and downloads leave, which is never looked at."""

from __future__ import annotations

import re

_LEFTOVER = re.compile(
    r"\._.*|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.fseventsd|\.Trash(es|-\d+)?|__MACOSX|Icon\r"
    r"|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|@eaDir|#recycle|#snapshot|\.snapshots?|lost\+found"
    r"|\.nfs.+|\.fuse_hidden.+|\.cache|\.git|\.ipynb_checkpoints|\.sync\w*|\.stfolder|\.~lock.*|\.#.+"
    r"|.+\.(aria2|aria2__temp|crdownload|part|partial|filepart|download|incomplete|lock|swp)|.+~"
    r"|__pycache__"
)


def is_leftover(name: str) -> bool:
    """Say whether a name is that of something that no training wrote.

    >>> is_leftover("._model.safetensors"), is_leftover(".zarray")
    (True, False)
    """
    return bool(_LEFTOVER.fullmatch(name))
