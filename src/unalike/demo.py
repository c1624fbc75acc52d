"""What `unalike run` does when it is asked for nothing in particular: a comparison that fits a laptop's coffee break.

scikit-learn's embedded digits, ten clients with five architectures, labels divided by Dirichlet(0.5), at least 20 test
rows a client. Rates and α₀ were chosen on validation by `benchmarks/demo_search.py`, with equally many trials a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMMON: Mapping[str, Any] = {
    "data": "digits",
    "clients": 10,
    "partition": "dirichlet:0.5",
    "min_per_client": 100,
    "rounds": 10,
    "local_epochs": 1,
    "batch_size": 32,
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "pfedafm": {"lr": 0.2, "lr_theta": 0.1, "alpha0": 0.25, "lr_alpha": 1.0},
    "standalone": {"lr": 0.1, "momentum": 0.5},
    "fedavg": {"lr": 0.2, "momentum": 0.5},
}
