"""Making data: train a tokenizer, write token files. (Reading it is training/data_sources.py.)"""
