"""The equivariant point-convolution network."""
