"""The six published task orders.

Orders 1 to 3 are the standard benchmark of four tasks, orders 4 to 6 the long benchmark of fifteen.

References:
    Wang et al., *Orthogonal Subspace Learning for Language Model Continual Learning*, arXiv:2310.14152.
"""

ORDERS: dict[str, tuple[str, ...]] = {
    "order1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "order2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "order3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "order4": (
        *("MNLI", "CB", "WiC", "COPA", "QQP", "BoolQA", "RTE", "IMDB"),
        *("yelp", "amazon", "SST-2", "dbpedia", "agnews", "MultiRC", "yahoo"),
    ),
    "order5": (
        *("MultiRC", "BoolQA", "WiC", "MNLI", "CB", "COPA", "QQP", "RTE"),
        *("IMDB", "SST-2", "dbpedia", "agnews", "yelp", "amazon", "yahoo"),
    ),
    "order6": (
        *("yelp", "amazon", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB"),
        *("SST-2", "dbpedia", "agnews", "yahoo", "MultiRC", "BoolQA", "WiC"),
    ),
}
"""Name of an order -> the names of its data sets, first task first."""
