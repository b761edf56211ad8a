"""Black-box tests: real kernel processes, real clients, nothing but the protocol in between."""
