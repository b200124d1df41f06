"""The learned optimizer: Eq. 31 as optax transformations, its network and its meta-weights."""
