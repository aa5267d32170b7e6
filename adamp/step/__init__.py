"""How a step is computed: options and state, the choice of implementation, foreach, DTensor, precision."""
