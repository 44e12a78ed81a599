"""T5's preprocessors and seqio's packing, which UL2 was made with: rows of the same mixture.

Needs: pip install t5 seqio tensorflow
"""

import functools
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors

EOS, PAD = 1, 0


def rows(
    documents: list[np.ndarray],
    mixture: list[tuple[int, float | None, float, float]],
    vocab_size: int,
    seq_len: int,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Target tokens [B, T] of packed prefix-LM rows, on one thread, for ever.

    `mixture` has one (mode id, mean span, rate, weight) per denoiser; the mean span of the S denoiser is None.
    Sentinels descend from the top of a vocabulary that has room for them.
    """
    half = seq_len // 2
    vocabulary = seqio.PassThroughVocabulary(vocab_size, eos_id=EOS)
    feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)
    features = {"inputs": feature, "targets": feature}
    lengths = [len(document) for document in documents]
    ragged = tf.RaggedTensor.from_row_lengths(np.concatenate(documents).astype(np.int32), lengths)
    source = tf.data.Dataset.from_tensor_slices({"targets": ragged}).repeat()
    streams = []
    for mode, mean_span, rate, _ in mixture:
        budgets = {"inputs": half - 2, "targets": half - 2 if mean_span is None else half}  # a mode token and an EOS
        if mean_span is None:
            stream = preprocessors.prefix_lm(source, budgets, features)
        else:
            stream = preprocessors.span_corruption(
                source, budgets, features, mean_noise_span_length=mean_span, noise_density=rate
            )
        streams.append(stream.map(functools.partial(_with_mode_and_eos, mode)))
    mixed = tf.data.Dataset.sample_from_datasets(streams, [weight for *_, weight in mixture], seed=1)
    packed = seqio.PrefixLMFeatureConverter(pack=True)(mixed, {"inputs": half, "targets": half})
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    for batch in packed.batch(batch_size, drop_remainder=True).with_options(options).as_numpy_iterator():
        yield batch["decoder_target_tokens"]


def _with_mode_and_eos(mode: int, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    inputs, targets = (tf.cast(example[name], tf.int32) for name in ("inputs", "targets"))
    return {"inputs": tf.concat([[mode], inputs, [EOS]], 0), "targets": tf.concat([targets, [EOS]], 0)}
