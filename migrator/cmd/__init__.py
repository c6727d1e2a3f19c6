"""The programs."""

import warnings

# Libraries import eventlet whether it is used or not, and it warns each time; an operator can do nothing about it.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
