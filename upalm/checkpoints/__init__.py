"""Checkpoint folders: save, resume and share a model."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.checkpoints.folder import Checkpoint, export, load_model, open_checkpoint
    from upalm.checkpoints.lineage import CheckpointInfo, Stage, stages
    from upalm.checkpoints.manager import Checkpoints
    from upalm.checkpoints.shipped import PALM_TINY, UPALM_TINY
