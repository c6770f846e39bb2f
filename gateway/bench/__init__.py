"""`gateway bench`: what the gateway adds to a request, a stream and a token on this machine. Imported by nobody who serves."""
