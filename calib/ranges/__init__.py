"""Calibration sets and the ranges measured on them."""
