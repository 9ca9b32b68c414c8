"""ioptim: recipes that make a trained model faster, smaller and cheaper, with verdicts that can be believed."""

__version__ = "0.1.0"
