"""What a data set would be trained as, before it is."""
