"""Results, the parameters that name them, how they are stored, and what is registered. No
torch, no figures.
"""
