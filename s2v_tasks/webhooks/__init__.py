"""Messages to receivers outside: who may be called, what is sent, and how it is signed."""
