from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest

from lightning_sgdinf.report.embedded_data import EmbeddedData, characters, script_json


def held(embedded: EmbeddedData, reference: dict) -> bytes:
    text = re.findall(r'id="explorer-data">(.*?)</script>', embedded.html({}))[0]
    return base64.b64decode(text[reference["at"] : reference["at"] + reference["size"]])


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "f4", "f8"])
def test_arrays_lie_in_byte_planes(kind: str) -> None:
    values = (np.arange(5) * 250 + 3).astype(kind)
    embedded = EmbeddedData()
    embedded.blob(b"before")
    reference = embedded.array(values)
    assert reference["type"] == kind
    planes = np.frombuffer(zlib.decompress(held(embedded, reference)), np.uint8).reshape(-1, 5)
    assert planes.T.copy().tobytes() == values.tobytes()
    assert len(embedded) == reference["at"] + reference["size"]


@pytest.mark.parametrize(("largest", "kind"), [(0, "u1"), (255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4")])
def test_codes_take_as_few_bytes_as_they_can(largest: int, kind: str) -> None:
    assert EmbeddedData().codes([0, largest], largest)["type"] == kind


def test_strings_come_back_even_if_they_are_not_text() -> None:
    embedded = EmbeddedData()
    reference = embedded.strings(["a", "</script>", "\ud800", "é\n"])
    assert json.loads(zlib.decompress(held(embedded, reference))) == ["a", "</script>", "?", "é\n"]


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;", "\u2028\u2029", "\ud800", '"', "\\"])
def test_json_cannot_leave_its_element(text: str) -> None:
    written = script_json({"a": text})
    assert json.loads(written) == {"a": text}
    assert written.isascii()
    assert not set("<>&") & set(written)


@pytest.mark.parametrize("count", range(8))
def test_characters_of_base64(count: int) -> None:
    assert characters(count) == len(base64.b64encode(bytes(count)))
