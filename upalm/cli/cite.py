"""`upalm cite`: BibTeX of this software and of the papers."""

from dataclasses import dataclass

from upalm._version import __version__

BIBTEX = {
    "upalm": """@software{upalm,
  title  = {upalm: U-PaLM and UL2R in JAX},
  author = {{The upalm developers}},
  year   = {2026},
  version = {VERSION}
}""",
    "U-PaLM": """@inproceedings{tay2023transcending,
  title     = {Transcending Scaling Laws with 0.1\\% Extra Compute},
  author    = {Tay, Yi and Wei, Jason and Chung, Hyung Won and Tran, Vinh Q. and So, David R. and Shakeri, Siamak
               and Garcia, Xavier and Zheng, Huaixiu Steven and Rao, Jinfeng and Chowdhery, Aakanksha and Zhou, Denny
               and Metzler, Donald and Petrov, Slav and Houlsby, Neil and Le, Quoc V. and Dehghani, Mostafa},
  booktitle = {Proceedings of the 2023 Conference on Empirical Methods in Natural Language Processing},
  year      = {2023},
  note      = {arXiv:2210.11399}
}""",
    "UL2": """@inproceedings{tay2023ul2,
  title     = {{UL2}: Unifying Language Learning Paradigms},
  author    = {Tay, Yi and Dehghani, Mostafa and Tran, Vinh Q. and Garcia, Xavier and Wei, Jason and Wang, Xuezhi
               and Chung, Hyung Won and Shakeri, Siamak and Bahri, Dara and Schuster, Tal and Zheng, Huaixiu Steven
               and Zhou, Denny and Houlsby, Neil and Metzler, Donald},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  note      = {arXiv:2205.05131}
}""",
    "PaLM": """@article{chowdhery2023palm,
  title   = {{PaLM}: Scaling Language Modeling with Pathways},
  author  = {Chowdhery, Aakanksha and Narang, Sharan and Devlin, Jacob and others},
  journal = {Journal of Machine Learning Research},
  volume  = {24},
  number  = {240},
  year    = {2023},
  note    = {arXiv:2204.02311}
}""",
}


@dataclass(frozen=True)
class Cite:
    """Print BibTeX of upalm, U-PaLM, UL2 and PaLM."""

    def __call__(self) -> None:
        print("\n\n".join(BIBTEX.values()).replace("VERSION", __version__))
