"""Verbs: read data, train, evaluate, save. Handed a model; never imports a concrete one."""
