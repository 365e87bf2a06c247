"""The run-time type checker of the tests: annotated functions are checked, shapes included."""

from beartype import BeartypeConf, beartype

# An int is welcome where a float is annotated, as PEP 484 says and type checkers agree.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
