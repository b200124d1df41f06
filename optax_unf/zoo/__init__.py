"""The Tiny RNN Zoo: small sequence-to-sequence models, and predictors of their success from their weights."""
