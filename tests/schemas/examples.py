"""The examples that the schemas ship: a datum as people write it, and its bytes.

`python -m tests.schemas.examples` writes the bytes anew, after a schema was changed on purpose.
"""

import json
import struct
from datetime import datetime
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
from tailrace_schemas.codec import Codec
from tailrace_schemas.rows import WINDOW_ROWS

__all__ = ["DIRECTORY", "SCHEMAS", "arrow_rows", "avro_datum", "definition_of", "example", "schema_of"]

DIRECTORY = Path(str(files("tailrace_schemas") / "examples"))
SCHEMAS = sorted(path.stem for path in (DIRECTORY.parent / "avro").glob("*.avsc"))
"""The Avro schemas."""


def example(name: str) -> dict[str, Any]:
    """An example file."""
    found: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text())
    return found


def definition_of(name: str) -> dict[str, Any]:
    """An Avro schema as its file says it."""
    found: dict[str, Any] = json.loads((DIRECTORY.parent / "avro" / f"{name}.avsc").read_text())
    return found


def schema_of(name: str) -> Any:
    """An Avro schema for fastavro, which is the other implementation here."""
    return fastavro.parse_schema(definition_of(name))


def avro_datum(name: str, datum: dict[str, Any]) -> dict[str, Any]:
    """What an Avro library is given for an example's datum."""
    if name == "SampleBatch":
        table = BytesIO()
        fastavro.schemaless_writer(table, schema_of("SeriesTable"), datum["series_table"])
        samples = len(datum["value"])
        return datum | {
            "series_table": table.getvalue(),
            "series_index": struct.pack(f"<{samples}I", *datum["series_index"]),
            "time_offset_us": struct.pack(f"<{samples}i", *datum["time_offset_us"]),
            "value": struct.pack(f"<{samples}d", *datum["value"]),
        }
    if name == "DeadLetter":
        return datum | {"payload": bytes.fromhex(datum["payload"])}
    if name == "WindowRows":
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, WINDOW_ROWS) as writer:
            writer.write_batch(arrow_rows(WINDOW_ROWS, datum["rows"]))
        return datum | {"rows": sink.getvalue().to_pybytes()}
    return datum


def arrow_rows(schema: Any, rows: list[dict[str, Any]]) -> Any:
    """A record batch of an example's rows; times are ISO 8601, maps are objects."""
    times = {field.name for field in schema if pa.types.is_timestamp(field.type)}

    def value(key: str, one: Any) -> Any:
        if key in times:
            return datetime.fromisoformat(one)
        return list(one.items()) if isinstance(one, dict) else one

    return pa.RecordBatch.from_pylist([{key: value(key, one) for key, one in row.items()} for row in rows], schema)


def main() -> None:
    """Write the bytes of every Avro example."""
    for name in SCHEMAS:
        content = example(name)
        datum = avro_datum(name, content["datum"])
        codec = Codec(name)
        encoded = codec.encode_bare(datum) if name == "SeriesTable" else codec.encode(datum)
        path = DIRECTORY / f"{name}.json"
        text = path.read_text()
        path.write_text(text.replace(f'"hex": "{content["hex"]}"', f'"hex": "{encoded.hex()}"'))


if __name__ == "__main__":
    main()
