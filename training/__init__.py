"""Training. This package receives a model and never imports the file of one."""
