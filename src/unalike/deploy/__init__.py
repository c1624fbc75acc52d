"""From one machine to real sites: folders for a server and its sites, their certificates and keys.

This layer writes and reads files; `engines.flower` carries the messages.
"""
