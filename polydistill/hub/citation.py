"""How this project and the papers behind it are cited, in BibTeX; CITATION.cff says the same."""

from __future__ import annotations

import polydistill

RUSU = """\
@inproceedings{rusu2016policy,
  title = {Policy Distillation},
  author = {Rusu, Andrei A. and Gomez Colmenarejo, Sergio and Gulcehre, Caglar and Desjardins, Guillaume and
            Kirkpatrick, James and Pascanu, Razvan and Mnih, Volodymyr and Kavukcuoglu, Koray and Hadsell, Raia},
  booktitle = {International Conference on Learning Representations},
  year = {2016},
  url = {https://arxiv.org/abs/1511.06295},
}"""
FURLANELLO = """\
@inproceedings{furlanello2018born,
  title = {Born-Again Neural Networks},
  author = {Furlanello, Tommaso and Lipton, Zachary C. and Tschannen, Michael and Itti, Laurent and
            Anandkumar, Anima},
  booktitle = {Proceedings of the 35th International Conference on Machine Learning},
  year = {2018},
  url = {https://arxiv.org/abs/1805.04770},
}"""


def software() -> str:
    """The entry of this project, in the version that runs."""
    return f"""\
@software{{polydistill,
  title = {{polydistill}},
  author = {{{{The polydistill authors}}}},
  version = {{{polydistill.__version__}}},
}}"""
