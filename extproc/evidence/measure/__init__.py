"""Measures of a configuration on traffic, with their controls."""
