"""What the numbers of a network's configuration may be, for who reads one that others wrote.

The upper ends lie beyond every network that there is. They keep what is made of these numbers
(products, lists of layers, tables of positions) within what a machine can count and build.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Width = Annotated[int, Meta(ge=1, le=2**20)]
Pixels = Annotated[int, Meta(ge=1, le=2**13)]
Rows = Annotated[int, Meta(ge=1, le=2**24)]  # of a vocabulary, of positions
Layers = Annotated[int, Meta(ge=1, le=300)]
Layer = Annotated[int, Meta(ge=-301, le=300)]  # one of them, from either end
Room = Annotated[int, Meta(ge=1, le=2**20)]  # for a text, in tokens
Epsilon = Annotated[float, Meta(ge=0, le=1)]
Base = Annotated[float, Meta(gt=0, le=1e30)]  # of rotary angles
Exponent = Annotated[float, Meta(ge=-80, le=80)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
