"""What a model is made of: roles of its modules, sites and parameters by role, and the hooks that
read or change them.
"""
