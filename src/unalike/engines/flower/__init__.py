"""Flower as an engine: the loop's frames as Flower messages, a site that answers them, and what passes them on.

    loop ──frame──► engine ──► records ──► Grid ═══ SuperLink ═══ SuperNode ──► client ──► channel ──► host ──► Site
                                                                  (no torch: a process a message)   (warm, with torch)

Only `engine` and `grid` run at the server and `client`, `warm` and `host` at a site. The method's file and the loop are
those of every other engine, and so are the bits.
"""
