"""How the built-in roles of inputs are opened; ``runner/inputs.py`` says what these modules have."""
