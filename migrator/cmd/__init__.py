"""The programs."""

import os
import warnings

# Libraries import eventlet whether it is used or not, and it warns each time; an operator can do nothing about it.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
# We look up no name through it, and loading its own resolver takes a tenth of the start.
os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
