"""`unalike plan`: will my devices take part, and in what? Told without training anything.

`make` turns experiments into plans (`memory.plan`), `commands` is the command; `report.plan` shows them.
"""
