"""How a step is computed: options and state, the choice of implementation, foreach, DTensor, precision."""

from adamp.installation import check_installation

# Here, as every part of the package needs this one: the published package replaces adamp/__init__.py
check_installation()
