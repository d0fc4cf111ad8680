"""DASO and the field around it: long-tailed semi-supervised image classification, each method written once."""

__version__ = "0.1.0"
