"""Decoding token by token, dense and sparse by the same code: how fast a model answers, and how well."""

from sparsescope.inference.decode.decoder import Decoder as Decoder

__all__ = ["Decoder"]
