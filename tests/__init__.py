"""The tests. `make types` checks annotations while they run: it gives jaxtyping `tests.check`.

Shapes and types of every annotated function of the package are held against what it is called with.
An int is a float, as in Python's own typing.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
