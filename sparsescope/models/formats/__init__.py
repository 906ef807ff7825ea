"""How models are stored: folders, the hub, GGUF, Marian, series of checkpoints, wheels; read with
every field checked.
"""
