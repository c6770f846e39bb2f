"""The HTTP edge: bytes in, errors as envelopes, bytes out. Litestar is imported here and in `app.py` alone."""
