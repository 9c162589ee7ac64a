"""How a model learns. Handed a model; never imports a concrete one."""
