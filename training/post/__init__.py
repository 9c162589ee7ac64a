"""Post-training: what post_train.py trains in place of next-token prediction."""
