"""Files beside checkpoints that hold no weights, and layouts of weights that are not read here.

What file managers, network disks, notebooks and downloads leave is never looked at; the layouts
that training frameworks write in pieces are known by name, so that the error can say which it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

_LEFTOVER = re.compile(
    r"\._.*|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.fseventsd|\.Trash(es|-\d+)?|__MACOSX|Icon\r"
    r"|Thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|@eaDir|#recycle|#snapshot|\.snapshots?|lost\+found"
    r"|\.nfs.+|\.fuse_hidden.+|\.cache|\.git|\.ipynb_checkpoints|\.sync\w*|\.stfolder|\.~lock.*|\.#.+"
    r"|.+\.(aria2|aria2__temp|crdownload|part|partial|filepart|download|incomplete|lock|swp)|.+~"
    r"|__pycache__"
)
_NO_WEIGHTS = re.compile(
    r"(optimizer|optim|optimizer_state|scheduler|lr_scheduler|scaler|rng_state|random_states?)"
    r"([_-]?\d+)*(_\w+)?\.(pt|pth|bin|pkl|safetensors)"
    r"|(training_args|trainer_state|sampler|dataloader|dl_state_dict|custom_checkpoint_\d+)\.\w+"
    r"|.*_(optim|model)_states\.pt|model_optim_rng\.pt|.*\.distcp"
)


def is_leftover(name: str) -> bool:
    """Say whether a name is that of something that no training wrote.

    >>> is_leftover("._model.safetensors"), is_leftover(".zarray")
    (True, False)
    """
    return bool(_LEFTOVER.fullmatch(name))


def holds_no_weights(name: str) -> bool:
    """Say whether a file of this name holds an optimizer's or a trainer's state.

    >>> holds_no_weights("rng_state_0.pth"), holds_no_weights("pytorch_model.bin")
    (True, False)
    """
    return bool(_NO_WEIGHTS.fullmatch(name))
