"""Python modules, as source and as releases of CPython compile it."""

from __future__ import annotations

import base64
import importlib.util
import marshal
import zlib

SOURCE = """\
import os, sys as system
import a.b.c
from . import near
from ..above import one, two as deux
from package.module import (name, other)
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import checked
try:
    import tried
except ImportError:
    import instead
def function():
    import later
    return os, later
class Class:
    import inner
if __name__ == "__main__":
    import started
"""
"""A module that imports in every way that there is."""

_COMPILED = {
    "3.9": (
        "eNptUs2O0zAQtp2kSduk7bILizhw76XiARBCqqplhVQhgYTWQoq8sXc32tjpTlKgCC6wLwMHHshXTn0FTsykIFUrbHn+bM03841Vlg3Y3vrF7q"
        "wEz3M8zU8UmmleMbnTXIpOBzLUQgdVZHuyx5kOdVTFNpGJ7csBp7e9amhTmdpMZp0fVyM7lmPOzBjedTkmcvIp7awDefCWuUchM/c2Xzmj3cUP"
        "5eEZc+IJ04nu3zJ5dML0QA9vmR5+E/K+eaDTawE/urfH8ljz12yabamD5ZajnHIfOqNgK8gRPqid8UH7oUY7dMoaH9XtlQF8l705e7XI5y8W85"
        "eny5Ninw3KRAnmxMiEGOGaVewLa/lndiEQUyyB7xCiSrUGvKibKQci+TuDFNXvfqPsqjKz1cYnF2tXtGXtMkoYdhAJhxHq4u4kxL9JHKEwTCIy"
        "ToBrgRMINGEHPppXqmm6CpbT0Cd5Tq3luR/kua31uiI7zfObtar+3kSlcwa6yvYE1QNjFNRkQ9BYFvmU06rS5fn0IQwpEDSbxvdQtMbKSM3OZ4"
        "XnyjMI8BYD5/V7AxHl61Eg1Gb9UY5WqrhWl2a2qwpiuqe/5nvtZlW6S+iTExdXprg2WkYtlEb74ald1dAuAGqQcekQU+mOrq44oGpl3LQKWqP/"
        "15NPnu4QnxFHzWPqEBlP+QR3ykO0BeqUj3gSjETC/wAOaajY"
    ),
    "3.13": (
        "eNplUt1qE0EUPrOzu9n8NX+NrUHaKBUaL3KlF4oKpRRtAkFYBcXAMN1s0qXJbjy7UeuVV9IX8CF8AB+g4AMI3k3/BK9yV82F4pUzuxGKzsU5Z7"
        "7zP9/M8vkMXDjfLl70uZ59kuI92GCTNmCiCWqxpqjbmk3bRstEsw62bhvtVMtCq5XGTF3Fmu1sK4e5Vh7z8T3VXmgVsFCHbmF93oDLTnG1IhZX"
        "EquEJduqAS4uwzWw0zWwM7e0JBqr3Ut29s5TmWfM85ZwaUAG5Cp0yyngKYB6glewsgqd6324R1ehTxq5qSrQmRIpG0Tovstxqso2NEED3xU0eh"
        "VIW/f5yBVGEO26KOPyj5892mKbD7c229udB87FN1LJVL1RLXkjYkMbfHiu/Q14Aje1NVm/g/M+xpBHLgotCBsEcxIL1TR1kQ75aDx0m+N9YfUn"
        "vhN5gY8F6cqrGGW8hSO9eJzNH0wObn/WF2eq/H/DxIRdiYfpAspxJFEEaUySLsnS0RjQhiGMzSEPw2lRPajK63yAhiksxtTqjIkMY6OgNxkqO8"
        "fYiwkfzj0FxvoehtHQ810/kIDh+b7cqMpYGPHIcxiPIvR2JpEbMoaLqkPcZkGJ8l+hoFASCO/gVC8mEQpXM4y45zPWWEa1u6DhfihMKSJ3JAze"
        "3Gk6gnABqD6oBHaCly6aKj+lAL3nTl6LhTF39vjAbSZboKX8aeU3o/2x5w9QfXyRcnZdZ8/tCUOOLFV2ezQOMNpCDFCkPF/25L2YhmTyapwk98"
        "TI7f2zm7DuJs3u4w15VbSG8pfCOSWEnMHyEeROoHwGa2ewfgL1U1o80svnGiUVyesPUyPVnyYhpe8gxVeaPXjzhV4+lhEU9Nqv8wJYlZl0VU4U"
        "JPXvsCSLf9Q3ynBYzmys0sMVIuUf287gQQ=="
    ),
    "3.14": (
        "eNplUs1rE0EUf7Mzu9nmo/lqmlqtqbSgi5CLHhRFKKWYoBRZRBRMh22ybZcmu3H2Ra0nT9J/xX/Ae/8B8eBpaongyVtrBcWTM7tVgg7M78289+"
        "Z9/N5cnS5kYWJ9mbywM3n6XsFr2ACXtAFTSdBIJEW2QVyjbbYstBqwYbi0nWnZaLemMNvQvqyda+Ux3ypgIbmb7elWEYsN6BQvnyXomQAX0rgl"
        "LJ1PT2Usu1YdcKYGl8DN1MG1rxupP9Y6s+7UjcfqZebvyzrWXbIEei9Cp2JBz9a2RmqtYnUB7jsB3KILEBAn+1UHWneIZKHvCceQNAp9SfFFpM"
        "4s9Aa+NCPc8YVyKTx88mCNr7bWVu+11+92JznSFVHN0fwER0N4avxxeATXjCVwDGEk+Qxp9j30hTSi2CFCkx8TBYtyKvYGw77fHO5Je2sUdjGI"
        "QlFQJr3jYhL+kJU+5Qr7o/2bH9jMqQ7/XzHJwC4m3h1A4oIaVAlpUhhD5hpoaoocKs3VvhfH62/BsaTNuW6Zc5nlfBD1Rn19znP+bOT1zyxFzr"
        "cCEWM/CP0wUgozCEPVSY3zGD0MutxDFMHmCP2Yc1FWNYhpDXkNpT+gd6wGDm9gzEqph9bpGgZeEHLuzImcVtB4L5aWAvQH0vSam82uJJ4EoQlX"
        "is3ouS/0JxU6nGQ9f/RSTg+97q637TfTLoSl7Rltt3BvGITbwtaXTHfH7+76PWmqkpXItQfDSOCaEJGQmSBUOb1eQn9aeSV5pPoU6Pf+6U3at9"
        "Nkd4T+0XqcsfqbcEwJIWOYO4T8EVTGsDyGK0ewOKalQ1Y5Niipqnl+swxS+2ERUj4BBZ9pbv/VR3ruiFVOKLD5n8dFsKvflamqVDpi9Ves079j"
        "K7NwMJtbWaYHS0Thb/sH3Og="
    ),
}


def compiled(source: str) -> bytes:
    """`source` as the file that this Python would write."""
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compile(source, "module.py", "exec"))


def releases() -> dict[str, bytes]:
    """`SOURCE` compiled, by release; Debian's packages of those compiled it."""
    return {name: zlib.decompress(base64.b64decode(text)) for name, text in _COMPILED.items()} | {"this": compiled(SOURCE)}
