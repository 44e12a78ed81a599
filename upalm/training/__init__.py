"""Training."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.training.config import CheckpointConfig, Continue, Scratch, TrainConfig
    from upalm.training.launch import prepare, run
    from upalm.training.loop import fit
    from upalm.training.loss import loss_fn
    from upalm.training.optim import Adafactor, AdamW, Schedule
    from upalm.training.resume import LazyModel
    from upalm.training.step import TrainState, train_step
