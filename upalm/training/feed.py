"""Batches of a run on its devices: training batches in order, and validation batches.

Dims: A accumulation steps, B batch rows, T positions.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jax.sharding import Mesh

from upalm.data.config import Corpus, Weighted
from upalm.data.loader import Loader
from upalm.data.shards import Shards, manifest_hash
from upalm.distributed.sharding import rows_here, to_devices
from upalm.training.config import TrainConfig
from upalm.training.spikes import Skip
from upalm.ul2r.denoisers import Denoiser
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

Corpora = Corpus | Sequence[Weighted]
"""Corpus of a split, or several with their shares of the rows."""


class Feed:
    """The batches of a run. Each process makes the rows that its own devices work on.

    Args:
        config: of the run.
        symbols: of the tokenizer.
        train: training corpora.
        validation: validation corpora.
        mesh: the devices, or None for a single one.
    """

    def __init__(self, config: TrainConfig, symbols: Symbols, train: Corpora, validation: Corpora, mesh: Mesh | None):
        self._config, self._mesh = config, mesh
        sizes, make = config.data.batch_sizes(), partial(Loader, symbols=symbols, seed=config.seed)
        rows = {n: rows_here(mesh, n, config.accumulation) for n in sizes}
        self._make_loader = partial(make, train, config.data, rows=rows)
        steady = replace(config.data, batch_ramp=())  # validation batches are of one size
        self._validation = make(validation, steady, rows={sizes[0]: rows_here(mesh, sizes[0], 1)})
        self.restart(0)

    def restart(self, step: int, skips: Sequence[Skip] = ()) -> None:
        """Go to the batch of `step`, leaving out the batches that loss spikes led to skip."""
        self.skips, self._step = tuple(skips), step
        self._loader = self._make_loader(skips=self.skips)
        self._batches: Iterator[Batch] | None = None

    @property
    def mixture(self) -> Sequence[Denoiser]:
        """Denoisers of the training batches."""
        return self._loader.mixture

    def first_row(self, step: int) -> int:
        """Number of the first row in the batch of `step`, counted from the beginning of training."""
        return self._loader.first_row(step)

    def fingerprint(self) -> str:
        """Return a checksum of the training data: of tokens in memory, or of the manifests of shards."""
        digest = hashlib.sha256()
        for corpus in self._loader.corpora:
            if isinstance(corpus, Shards):
                digest.update(manifest_hash(str(corpus.folder)).encode())
            else:
                digest.update(corpus.ids.tobytes())
                digest.update(corpus.offsets.tobytes())
        return digest.hexdigest()[:16]

    def next(self) -> Batch:
        """The next training batch, [A, B / A, T]."""
        if self._batches is None:
            self._batches = iter(self._loader.batches(self._step, self._config.n_steps))
        rows = next(self._batches)
        n = self._config.data.batch_size_at(self._step)
        self._step += 1
        return self._to_devices(rows, self._loader, n, self._config.accumulation)

    def validation(self) -> Iterator[Batch]:
        """The validation batches, [1, B, T]; the same at every call."""
        for k in range(self._config.eval_batches):
            yield self._to_devices(self._validation.batch(k), self._validation, self._config.data.batch_size, 1)

    def _to_devices(self, rows: Batch, loader: Loader, n: int, accumulation: int) -> Batch:
        numbers = loader.rows[n] if loader.rows is not None else np.arange(n)
        return to_devices(self._mesh, rows, numbers, n, accumulation)
