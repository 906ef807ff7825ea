"""Subjects with a name: those of packages, random ones, and the series that this project trained."""
