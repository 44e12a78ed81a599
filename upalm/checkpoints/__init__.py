"""Checkpoint folders: save, load, export."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.checkpoints.folder import export, load_model, open_checkpoint
    from upalm.checkpoints.lineage import Stage, stages
    from upalm.checkpoints.manager import Checkpoints
