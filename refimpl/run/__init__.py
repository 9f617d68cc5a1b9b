"""What caching, autoencoder training and training share: settings, processes, keyed draws."""
