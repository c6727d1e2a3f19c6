"""NBD: a client for volumes that another process or host exports, as an endpoint of the copy engine.

Read in this order::

    uri        which server, which export, which TLS; what may be shown of it in a message
    transport  a socket with a deadline on every call; plain, or TLS
    tls        certificates (the ssl module) and pre-shared keys (ssl or GnuTLS: gnutls)
    protocol   the numbers on the wire, and the errors
    handshake  what client and server agree on before the first byte of data
    client     one connection: one request at a time, each answered before its deadline
    pool       several connections to one server; what happens when one of them breaks
    endpoint   the shape that the copy engine knows

A server is not trusted: whatever it sends, a call returns the bytes that were asked for or raises OSError, within its
deadline and a bounded memory.
"""
