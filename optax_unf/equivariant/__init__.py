"""Equivariant maps on weight spaces, as pure functions of parameters and features."""
