"""Random work with random blows against a model of what must be there: ``make soak``, or ``python -m tests.soak``.

model.py knows what must be, operations.py what users do, blows.py what goes wrong, soak.py lets them loose and looks.
"""
