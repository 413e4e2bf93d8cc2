"""Kinetic and exchange-correlation energy functionals."""
