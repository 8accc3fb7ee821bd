"""Public data sets as Logs: one file per set, each saying what it is and on what terms it may be used.

Nothing is shipped with RecStack. Every loader reads files that are already on this machine: in `data_dir`, else in the
folder that the environment variable RECSTACK_DATA names, else in ../shared/data, else in the user's cache. `download`
fetches the originals for those who have a network; `describe` lists the sets, their size and their terms.
"""

# Not lazy: several functions have their file's name, and a file imported later would take its function's place.
from recstack.data.datasets.about import About, Remote, describe
from recstack.data.datasets.census import census_income
from recstack.data.datasets.citeulike import citeulike_a
from recstack.data.datasets.coat import coat
from recstack.data.datasets.download import download, fetch
from recstack.data.datasets.files import resolve_data_dir
from recstack.data.datasets.frappe import frappe
from recstack.data.datasets.kuairand import kuairand_pure
from recstack.data.datasets.letor import letor, read_letor
from recstack.data.datasets.libsvm import read_libsvm
from recstack.data.datasets.lightgbm_example import lightgbm_example
from recstack.data.datasets.lightgcn import lightgcn, read_adjacency
from recstack.data.datasets.movielens import movielens_1m, movielens_1m_by_age, movielens_100k
from recstack.data.datasets.ncf import ncf
from recstack.data.datasets.open_bandit import open_bandit
from recstack.data.datasets.s3rec import s3rec
from recstack.data.datasets.sasrec import sasrec
from recstack.data.datasets.trivago import trivago
from recstack.data.datasets.xmrec import xmrec
from recstack.data.datasets.yandex2009 import yandex2009

__all__ = [
    "About",
    "Remote",
    "census_income",
    "citeulike_a",
    "coat",
    "describe",
    "download",
    "fetch",
    "frappe",
    "kuairand_pure",
    "letor",
    "lightgbm_example",
    "lightgcn",
    "movielens_1m",
    "movielens_1m_by_age",
    "movielens_100k",
    "ncf",
    "open_bandit",
    "read_adjacency",
    "read_letor",
    "read_libsvm",
    "resolve_data_dir",
    "s3rec",
    "sasrec",
    "trivago",
    "xmrec",
    "yandex2009",
]
