"""Experiments on small autoencoders: the average of the weights, the batch, and the decoder finetuned."""
