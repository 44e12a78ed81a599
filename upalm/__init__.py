"""U-PaLM and UL2R: continue a causal language model with a mixture of denoisers.

Read the modules in the order of the data: `tokenizer`, `ul2r`, `data`, `model`, `train`, `infer`.
"""

__version__ = "0.1.0"
