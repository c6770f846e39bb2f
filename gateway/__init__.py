"""An OpenAI-compatible caching and routing gateway."""

__version__ = "0.1.0"
