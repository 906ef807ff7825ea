"""How the built-in roles of inputs are opened; ``core/roles.py`` says what these modules have."""
